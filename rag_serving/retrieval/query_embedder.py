"""Vectors of questions: embedders are loaded once, and concurrent questions are embedded in batches."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rag_serving.errors import EmbedderUnavailable, LakeCorrupt, LakeUnavailable, RagError
from rag_serving.lake.embedders.base import Embedder
from rag_serving.lake.object_store import ObjectStore

MOST_TOGETHER = 32
_RETRY_SECONDS = 10.0
QUESTION_CUT = "question_cut_at_window"
"""Mark of a question that exceeds the embedding model's window."""

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class QuestionVectors:
    """The vectors of one question by fingerprint."""

    found: Mapping[str, npt.NDArray[np.float32]]
    marks: tuple[str, ...] = ()
    """A mark if a model's window cut the question."""
    failed: frozenset[str] = frozenset()
    """Fingerprints of embedders that do not work."""


class QueryEmbedders:
    """The embedders of a lake by fingerprint, loaded on first use. Belongs to one event loop.

    An embedder that cannot be loaded is tried again after `_RETRY_SECONDS`, because a try reads all of its files.
    """

    def __init__(
        self,
        objects: ObjectStore,
        load: Callable[[ObjectStore, str], Embedder],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = objects
        self._load = load
        self._clock = clock
        self._loaded: dict[str, QueryEmbedder] = {}
        self._failed: dict[str, tuple[float, EmbedderUnavailable]] = {}
        self._loading: dict[str, asyncio.Task[QueryEmbedder]] = {}

    async def check(self, fingerprints: Iterable[str]) -> None:
        """Load the embedders; raises `EmbedderUnavailable` or `LakeUnavailable` if none of them works."""
        problem: RagError | None = None
        loaded = 0
        for fingerprint in sorted(set(fingerprints)):
            try:
                await self._query_embedder(fingerprint)
                loaded += 1
            except (EmbedderUnavailable, LakeUnavailable) as error:
                problem = problem or error
        if problem is not None and not loaded:
            raise problem

    @property
    def failed(self) -> Collection[str]:
        """Fingerprints of the embedders that could not be loaded at the last try."""
        return self._failed.keys()

    async def embedder(self, fingerprint: str) -> Embedder:
        """Return a loaded embedder; raises `EmbedderUnavailable` or `LakeUnavailable`."""
        return (await self._query_embedder(fingerprint)).embedder

    async def vectors(self, question: str, fingerprints: Iterable[str]) -> QuestionVectors:
        """Embed the question with each of the embedders.

        Raises `EmbedderUnavailable` or `LakeUnavailable` if none of them works.
        """
        vectors: dict[str, npt.NDArray[np.float32]] = {}
        marks: tuple[str, ...] = ()
        failed: dict[str, RagError] = {}
        for fingerprint in sorted(set(fingerprints)):
            try:
                one = await self._query_embedder(fingerprint)
                vectors[fingerprint] = await one.embed(question)
            except (EmbedderUnavailable, LakeUnavailable) as error:
                failed[fingerprint] = error
                _log.warning("cannot search by meaning in the shards of embedder %s: %s", fingerprint, error)
                continue
            if not one.embedder.fits(question):
                marks = (QUESTION_CUT,)
        if failed and not vectors:
            raise failed[min(failed)]
        return QuestionVectors(vectors, marks, frozenset(failed))

    async def _query_embedder(self, fingerprint: str) -> QueryEmbedder:
        found = self._loaded.get(fingerprint)
        if found is not None:
            return found
        loading = self._loading.get(fingerprint)
        if loading is None:
            loading = self._loading[fingerprint] = asyncio.create_task(self._load_now(fingerprint))
            loading.add_done_callback(lambda _: self._loading.pop(fingerprint))
        return await asyncio.shield(loading)  # others wait for it, too, when this caller leaves

    async def _load_now(self, fingerprint: str) -> QueryEmbedder:
        tried, known = self._failed.get(fingerprint, (-math.inf, None))
        if known is not None and self._clock() - tried < _RETRY_SECONDS:
            raise known
        try:
            embedder = await asyncio.to_thread(self._load, self._objects, fingerprint)
        except (EmbedderUnavailable, LakeCorrupt) as error:
            unavailable = EmbedderUnavailable(str(error))
            self._failed[fingerprint] = self._clock(), unavailable
            raise unavailable from error
        self._failed.pop(fingerprint, None)
        found = self._loaded[fingerprint] = QueryEmbedder(embedder)
        return found
