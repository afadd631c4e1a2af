"""Vectors of questions: embedders are loaded once, and concurrent questions are embedded in batches."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from rag_serving.lake.embedders.base import Embedder
from rag_serving.lake.object_store import ObjectStore

MOST_TOGETHER = 32
QUESTION_CUT = "question_cut_at_window"
"""Mark of a question that exceeds the embedding model's window."""


class QueryEmbedder:
    """Embeds questions in batches: those that arrive during a batch form the next one. Belongs to one event loop."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._waiting: list[tuple[str, asyncio.Future[npt.NDArray[np.float32]]]] = []
        self._running: asyncio.Task[None] | None = None

    async def embed(self, question: str) -> npt.NDArray[np.float32]:
        """Return a unit vector of shape ``(dimensions,)``; raises the embedder's errors."""
        result: asyncio.Future[npt.NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, result))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await result

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
            batch = [(question, result) for question, result in batch if not result.done()]  # cancelled callers
            if batch:
                await self._embed(batch)

    async def _embed(self, batch: Sequence[tuple[str, asyncio.Future[npt.NDArray[np.float32]]]]) -> None:
        try:
            vectors = await asyncio.to_thread(self.embedder.embed_queries, [question for question, _ in batch])
        except Exception as error:  # noqa: BLE001 - raised to every caller
            for _, result in batch:
                if not result.done():
                    result.set_exception(error)
            return
        for vector, (_, result) in zip(vectors, batch, strict=True):
            if not result.done():
                result.set_result(vector)


class QueryEmbedders:
    """The embedders of a lake by fingerprint, loaded on first use. Belongs to one event loop."""

    def __init__(self, objects: ObjectStore, load: Callable[[ObjectStore, str], Embedder]) -> None:
        self._objects = objects
        self._load = load
        self._loaded: dict[str, QueryEmbedder] = {}
        self._loading = asyncio.Lock()

    async def embedder(self, fingerprint: str) -> Embedder:
        """Return a loaded embedder; raises `EmbedderUnavailable` or `LakeError`."""
        return (await self._query_embedder(fingerprint)).embedder

    async def vectors(
        self, question: str, fingerprints: Iterable[str]
    ) -> tuple[dict[str, npt.NDArray[np.float32]], tuple[str, ...]]:
        """Return the question's vectors by fingerprint, and a mark if a model's window cut the question."""
        vectors: dict[str, npt.NDArray[np.float32]] = {}
        marks: tuple[str, ...] = ()
        for fingerprint in sorted(set(fingerprints)):
            one = await self._query_embedder(fingerprint)
            vectors[fingerprint] = await one.embed(question)
            if not one.embedder.fits(question):
                marks = (QUESTION_CUT,)
        return vectors, marks

    async def _query_embedder(self, fingerprint: str) -> QueryEmbedder:
        found = self._loaded.get(fingerprint)
        if found is None:
            async with self._loading:
                found = self._loaded.get(fingerprint)
                if found is None:
                    embedder = await asyncio.to_thread(self._load, self._objects, fingerprint)
                    found = self._loaded[fingerprint] = QueryEmbedder(embedder)
        return found
