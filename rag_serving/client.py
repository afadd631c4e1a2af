"""The client: one asynchronous core, and a thin synchronous face on it.

Settings come from `RAG_*` variables by `from_env()`; everything that talks to the outside can be injected for tests.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args

from rag_serving.answer import MODEL_UNAVAILABLE, PROMPT_VERSION, LanguageModel, extract, generate
from rag_serving.cache import AnswerCache, CacheStore, MemoryStore, open_redis, scope_tag
from rag_serving.catalog import Catalog, CatalogEntry, Snapshot
from rag_serving.embedding import Embedder, load_embedder
from rag_serving.errors import CacheUnavailable, InvalidArgument, InvalidQuestion, ModelUnavailable
from rag_serving.objects import Objects, open_objects
from rag_serving.reranking import HostedReranker, Reranker
from rag_serving.results import Answer, CacheState, Hits
from rag_serving.search import Mode, Query, Searcher
from rag_serving.settings import ServingSettings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_QUESTION_CHARACTERS = 4_000
MAX_K = 100
MAX_PREFIX_CHARACTERS = 1_024

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class AsyncRagClient:
    """Searches and answers from the published shards. Use it within one event loop, and `close` it there."""

    def __init__(
        self,
        settings: ServingSettings,
        *,
        objects: Objects | None = None,
        cache_store: CacheStore | None = None,
        model: LanguageModel | None = None,
        reranker: Reranker | None = None,
        load: Callable[[Objects, str], Embedder] = load_embedder,
    ) -> None:
        self._settings = settings
        self._objects = objects or open_objects(settings.lake_uri)
        self._catalog = Catalog(self._objects, refresh_seconds=settings.catalog_refresh)
        if reranker is None and settings.rerank_model is not None:
            reranker = HostedReranker(settings.rerank_model)
        self._searcher = Searcher(
            settings.lake_uri,
            concurrency=settings.search_concurrency,
            wide=settings.wide_shards,
            cache_bytes=settings.search_cache_bytes,
            reranker=reranker,
        )
        self._cache = AnswerCache(
            cache_store or _open_store(settings),
            similarity=settings.cache_similarity,
            ttl_seconds=settings.cache_ttl,
        )
        self._model = model or _configured_model(settings)
        self._load = load
        self._embedders: dict[str, Embedder] = {}
        self._loading = asyncio.Lock()

    @classmethod
    def from_env(cls) -> Self:
        """A client with the settings of the environment; raises `SettingsError`."""
        return cls(ServingSettings.from_env())

    async def search(
        self,
        question: str,
        *,
        regions: Sequence[str] | None = None,
        departments: Sequence[str] | None = None,
        k: int = 8,
        mode: Mode = "hybrid",
        path_prefix: str | None = None,
        modified_from: date | None = None,
        modified_before: date | None = None,
        join_neighbours: bool = False,
    ) -> Hits:
        """The `k` (1 to 100) best passages in those regions and departments; None means all of them.

        `mode` says what finds them: the meaning (``vector``), the words (``text``, which needs no embedding model), or
        both, fused by rank (``hybrid``). `path_prefix` is the beginning of the object's key below
        ``region/department/``; `modified_from` (inclusive) and `modified_before` (exclusive) are of the document's last
        change, a date or a time without a zone being taken for UTC. A passage that repeats a better one is left out and
        named in the other's `also_in`. With `join_neighbours`, passages that follow each other in their document come
        as one.

        Raises `InvalidQuestion`, `InvalidArgument`, `InvalidShardName`, `UnknownScope`, `LakeError` or
        `EmbedderUnavailable`.
        """
        clock = _Clock()
        query = Query(
            _checked_question(question),
            _checked_k(k),
            mode=_checked_mode(mode),
            path_prefix=_checked_prefix(path_prefix),
            modified_from=_checked_moment("modified_from", modified_from),
            modified_before=_checked_moment("modified_before", modified_before),
            join_neighbours=join_neighbours,
        )
        snapshot = await self._snapshot()
        entries, broken = snapshot.route(regions, departments), snapshot.broken_in(regions, departments)
        vectors: dict[str, npt.NDArray[np.float32]] = {}
        cut: tuple[str, ...] = ()
        if mode != "text":
            vectors, cut = await self._vectors(query.question, entries)
        clock.lap("embed")
        hits, failed = await self._searcher.search(query, vectors, entries, snapshot)
        clock.lap("search")
        return Hits(hits, clock.timings(), broken + cut + failed)

    async def warm(
        self, *, regions: Sequence[str] | None = None, departments: Sequence[str] | None = None
    ) -> list[CatalogEntry]:
        """Open the tables and load the indexes and models for a scope, so that its first question is quick.

        Versions published later are warmed by themselves. Raises what `search` raises.
        """
        snapshot = await self._snapshot()
        entries = snapshot.route(regions, departments)
        for fingerprint in {entry.current.fingerprint for entry in entries}:
            await self._embedder(fingerprint)
        await self._searcher.warm(entries, snapshot)
        return entries

    async def ask(
        self,
        question: str,
        *,
        regions: Sequence[str] | None = None,
        departments: Sequence[str] | None = None,
        k: int = 8,
        tenant: str = "default",
    ) -> Answer:
        """An answer from those regions and departments, from the cache when an equal question was answered before.

        `k` is how many passages the answer may rest on. Answers are shared within a `tenant` only. Raises what `search`
        raises; a failing cache or language model does not raise but is named in `Answer.degraded`.
        """
        clock = _Clock()
        question = _checked_question(question)
        query = Query(question, _checked_k(k))
        snapshot = await self._snapshot()
        entries, broken = snapshot.route(regions, departments), snapshot.broken_in(regions, departments)
        digests = {entry.shard.key: entry.current.content_digest for entry in entries}
        tag = scope_tag(
            tenant=tenant,
            shards=sorted(digests),
            fingerprints=sorted({entry.current.fingerprint for entry in entries}),
            model=self._model.name if self._model else None,
            prompt=PROMPT_VERSION,
            k=k,
        )
        problems: list[str] = []
        exact = await self._tolerant(self._cache.exact(tag, question, digests), problems)
        clock.lap("cache")
        if exact is not None:
            return _served(exact.answer, "exact", question, clock, similarity=1.0)
        vectors, cut = await self._vectors(question, entries)
        degraded = broken + cut
        clock.lap("embed")
        vector = next(iter(vectors.values())) if len(vectors) == 1 and not degraded else None
        if vector is not None and not problems:
            found = await self._tolerant(self._cache.semantic(tag, question, vector, digests), problems)
            clock.lap("cache")
            if found is not None:
                return _served(
                    found.entry.answer,
                    "semantic",
                    question,
                    clock,
                    similarity=round(found.similarity, 4),
                    cached_question=found.entry.question,
                )
        hits, failed = await self._searcher.search(query, vectors, entries, snapshot)
        clock.lap("search")
        answer = await self._answer(question, hits, entries, degraded + failed)
        clock.lap("answer")
        # What was made under a fault is not kept: the next asker deserves the whole.
        if vector is not None and not problems and not answer.degraded:
            await self._tolerant(self._cache.store(tag, vector, answer, digests), problems)
            clock.lap("cache")
        cache: CacheState = "bypass" if problems else "miss"
        return answer.model_copy(
            update={"cache": cache, "degraded": answer.degraded + tuple(problems), "timings": clock.timings()}
        )

    async def shards(self) -> list[CatalogEntry]:
        """What is published now, sorted by shard."""
        return [entry for _, entry in sorted((await self._snapshot()).entries.items())]

    async def close(self) -> None:
        """Let go of the cache's connections and of the tables."""
        await self._searcher.close()
        await self._cache.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _snapshot(self) -> Snapshot:
        snapshot = self._catalog.cached() or await asyncio.to_thread(self._catalog.snapshot)
        self._searcher.follow(snapshot)
        return snapshot

    async def _vectors(
        self, question: str, entries: Sequence[CatalogEntry]
    ) -> tuple[dict[str, npt.NDArray[np.float32]], tuple[str, ...]]:
        vectors: dict[str, npt.NDArray[np.float32]] = {}
        degraded: tuple[str, ...] = ()
        for fingerprint in sorted({entry.current.fingerprint for entry in entries}):
            embedder = await self._embedder(fingerprint)
            vectors[fingerprint] = await asyncio.to_thread(embedder.embed_query, question)
            if not embedder.fits(question):
                degraded = ("question_cut_at_window",)
        return vectors, degraded

    async def _embedder(self, fingerprint: str) -> Embedder:
        async with self._loading:
            if fingerprint not in self._embedders:
                self._embedders[fingerprint] = await asyncio.to_thread(self._load, self._objects, fingerprint)
            return self._embedders[fingerprint]

    async def _answer(
        self, question: str, hits: Sequence[Any], entries: Sequence[CatalogEntry], degraded: tuple[str, ...]
    ) -> Answer:
        if self._model is not None and hits:
            try:
                answer = await generate(self._model, question, hits)
                return answer.model_copy(update={"degraded": answer.degraded + degraded})
            except ModelUnavailable as error:
                _log.warning("answering with an extract: %s", error)
                degraded = (*degraded, MODEL_UNAVAILABLE)
        embedder = await self._embedder(entries[0].current.fingerprint)
        return await asyncio.to_thread(extract, embedder, question, hits, degraded=degraded)

    async def _tolerant(self, operation: Awaitable[_T], problems: list[str]) -> _T | None:
        try:
            return await operation
        except CacheUnavailable as error:
            if "cache_unavailable" not in problems:
                problems.append("cache_unavailable")
                _log.warning("answering without the cache: %s", error)
            return None


class RagClient:
    """The synchronous face of `AsyncRagClient`; safe between threads, which share its one event loop."""

    def __init__(self, make: Callable[[], AsyncRagClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rag-client", daemon=True)
        self._thread.start()

        async def build() -> AsyncRagClient:
            return make()

        try:
            self._core = self._run(build())
        except BaseException:
            self._stop()
            raise

    @classmethod
    def from_env(cls) -> Self:
        """A client with the settings of the environment; raises `SettingsError`."""
        return cls(AsyncRagClient.from_env)

    def search(
        self,
        question: str,
        *,
        regions: Sequence[str] | None = None,
        departments: Sequence[str] | None = None,
        k: int = 8,
        mode: Mode = "hybrid",
        path_prefix: str | None = None,
        modified_from: date | None = None,
        modified_before: date | None = None,
        join_neighbours: bool = False,
    ) -> Hits:
        """See `AsyncRagClient.search`."""
        return self._run(
            self._core.search(
                question,
                regions=regions,
                departments=departments,
                k=k,
                mode=mode,
                path_prefix=path_prefix,
                modified_from=modified_from,
                modified_before=modified_before,
                join_neighbours=join_neighbours,
            )
        )

    def warm(
        self, *, regions: Sequence[str] | None = None, departments: Sequence[str] | None = None
    ) -> list[CatalogEntry]:
        """See `AsyncRagClient.warm`."""
        return self._run(self._core.warm(regions=regions, departments=departments))

    def ask(
        self,
        question: str,
        *,
        regions: Sequence[str] | None = None,
        departments: Sequence[str] | None = None,
        k: int = 8,
        tenant: str = "default",
    ) -> Answer:
        """See `AsyncRagClient.ask`."""
        return self._run(self._core.ask(question, regions=regions, departments=departments, k=k, tenant=tenant))

    def shards(self) -> list[CatalogEntry]:
        """See `AsyncRagClient.shards`."""
        return self._run(self._core.shards())

    def close(self) -> None:
        """Let go of the cache's connections and end the event loop."""
        if not self._loop.is_closed():
            self._run(self._core.close())
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            with suppress(RuntimeError):
                future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Clock:
    """Milliseconds by phase."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._laps[phase] = self._laps.get(phase, 0.0) + (now - self._last) * 1000
        self._last = now

    def timings(self) -> dict[str, float]:
        total = (time.perf_counter() - self._started) * 1000
        return {phase: round(value, 2) for phase, value in {**self._laps, "total": total}.items()}


def _served(answer: Answer, state: CacheState, question: str, clock: _Clock, **found: Any) -> Answer:
    update = {"question": question, "cache": state, "timings": clock.timings(), **found}
    return answer.model_copy(update=update)


def _checked_question(question: str) -> str:
    if not isinstance(question, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
        raise InvalidQuestion(f"the question must be a string, not {type(question).__name__}")
    # Spaces that are not printable (no-break, full-width, carriage return) part words too.
    spaced = (" " if c.isspace() and c not in "\n\t" else c for c in question)
    text = "".join(c for c in spaced if c in "\n\t" or c.isprintable()).strip()
    if not text:
        raise InvalidQuestion("the question is empty")
    if len(text) > MAX_QUESTION_CHARACTERS:
        raise InvalidQuestion(
            f"the question has {len(text)} characters; {MAX_QUESTION_CHARACTERS} at most. Ask it in a sentence or two"
        )
    return text


def _checked_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"k must be a whole number from 1 to {MAX_K}, not {k!r}")
    return k


def _checked_mode(mode: Mode) -> Mode:
    if mode not in get_args(Mode):
        raise InvalidArgument(f"mode must be one of {', '.join(get_args(Mode))}, not {str(mode)[:80]!r}")
    return mode


def _checked_prefix(prefix: str | None) -> str | None:
    if prefix is None:
        return None
    if not isinstance(prefix, str) or len(prefix) > MAX_PREFIX_CHARACTERS or not all(map(str.isprintable, prefix)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(
            f"path_prefix must be the beginning of a path below region/department/, of at most {MAX_PREFIX_CHARACTERS} "
            "printable characters, for example 'policies/'"
        )
    return prefix.removeprefix("/") or None


def _checked_moment(name: str, moment: date | None) -> datetime | None:
    if moment is None:
        return None
    if not isinstance(moment, date):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"{name} must be a date or a datetime, not {type(moment).__name__}")
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)  # noqa: DTZ001  # the zone follows
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise InvalidArgument(f"{name} lies outside the years that a zone can be applied to") from None


def _open_store(settings: ServingSettings) -> CacheStore:
    if settings.redis_url is None:
        return MemoryStore(settings.cache_memory_entries)
    url = settings.redis_url.get_secret_value()
    return open_redis(url, timeout=settings.cache_timeout, prefix=settings.cache_prefix)


def _configured_model(settings: ServingSettings) -> LanguageModel | None:
    if settings.llm_model is None:
        return None
    return LanguageModel(settings.llm_model, settings.llm_timeout, settings.llm_retries, settings.llm_max_tokens)
