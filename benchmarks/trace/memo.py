"""Memoise searches and vectors for all compared caches, so that the same question retrieves the same passages.

The key of a search contains the content digests of its shards, so a search is repeated after a publish.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rag_serving.lake.catalog import Snapshot
from rag_serving.lake.catalog_entry import CatalogEntry
from rag_serving.lake.embedders.base import Embedder
from rag_serving.lake.search.query import Query
from rag_serving.results import Hit
from rag_serving.retrieval.searcher import SearchBackend

if TYPE_CHECKING:
    import numpy.typing as npt


class RememberingSearcher:
    """Memoises another searcher."""

    def __init__(self, searcher: SearchBackend) -> None:
        self._searcher = searcher
        self._found: dict[str, tuple[list[Hit], tuple[str, ...]]] = {}
        self.searches = 0
        self.unsteady = 0
        """Concurrent identical searches that found different passages."""

    async def search(
        self,
        query: Query,
        vectors: Mapping[str, npt.NDArray[np.float32]],
        entries: Sequence[CatalogEntry],
        snapshot: Snapshot,
    ) -> tuple[list[Hit], tuple[str, ...]]:
        """Return the best passages, from memory if possible."""
        contents = [(entry.shard.key, entry.current.content_digest) for entry in entries]
        key = json.dumps([query.question, query.k, contents])
        if key not in self._found:
            self.searches += 1
            found = await self._searcher.search(query, vectors, entries, snapshot)
            if self._found.setdefault(key, found) is not found:  # concurrent identical searches
                self.unsteady += _chunks(self._found[key]) != _chunks(found)
        return self._found[key]

    async def warm(self, entries: Iterable[CatalogEntry], snapshot: Snapshot) -> None:
        """Warm the other searcher."""
        await self._searcher.warm(entries, snapshot)

    def follow(self, snapshot: Snapshot) -> None:
        """Let the other searcher follow the snapshot."""
        self._searcher.follow(snapshot)

    @property
    def dropped_rows(self) -> int:
        """Return those of the other searcher."""
        return self._searcher.dropped_rows

    async def close(self) -> None:
        """Do nothing, because several clients share the searcher."""


def _chunks(found: tuple[list[Hit], tuple[str, ...]]) -> set[str]:
    return {hit.chunk_id for hit in found[0]}


class RememberingEmbedder:
    """Memoises the question vectors of another embedder."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._vectors: dict[str, npt.NDArray[np.float32]] = {}
        self.identity = embedder.identity

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed documents with the other embedder."""
        return self._embedder.embed_documents(texts)

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """Embed a question, once."""
        return self.embed_queries([text])[0]

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed questions, each once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._embedder.embed_queries(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])

    def fits(self, text: str) -> bool:
        """Return whether the text fits into the other embedder's window."""
        return self._embedder.fits(text)
