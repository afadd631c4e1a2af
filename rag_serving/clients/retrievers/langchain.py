"""A retriever for LangChain."""

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from rag_serving.clients.retrievers import metadata_of
from rag_serving.clients.sync import RagClient


class RagShardsRetriever(BaseRetriever):
    """Returns the passages that `client.search` finds; `options` are its other arguments.

    A passage's text is the page content, and the fields of its `Hit` are the metadata. Raises the errors of `search`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    client: RagClient
    options: dict[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002  # the interface's
        **more: Any,
    ) -> list[Document]:
        hits = self.client.search(query, **{**self.options, **more})
        return [Document(page_content=hit.text, metadata=metadata_of(hit), id=hit.chunk_id) for hit in hits]
