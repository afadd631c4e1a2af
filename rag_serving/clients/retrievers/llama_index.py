"""A retriever for LlamaIndex."""

import asyncio
from typing import Any

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from rag_serving.clients.retrievers import metadata_of, score_of
from rag_serving.clients.sync import RagClient


class RagShardsRetriever(BaseRetriever):
    """Returns the passages that `client.search` finds; `options` are its other arguments.

    The score of a node is the one that orders the passages, and the fields of its `Hit` are the metadata, which neither
    embedding models nor language models are shown. Raises the errors of `search`.
    """

    def __init__(self, client: RagClient, **options: Any) -> None:
        super().__init__()
        self._client = client
        self._options = options

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found: list[NodeWithScore] = []
        for hit in self._client.search(query_bundle.query_str, **self._options):
            metadata = metadata_of(hit)
            node = TextNode(
                id_=hit.chunk_id,
                text=hit.text,
                metadata=metadata,
                excluded_embed_metadata_keys=list(metadata),
                excluded_llm_metadata_keys=[name for name in metadata if name != "title"],
            )
            found.append(NodeWithScore(node=node, score=score_of(hit)))
        return found

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
