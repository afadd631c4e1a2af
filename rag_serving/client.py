"""The client: one asynchronous core, and a thin synchronous face on it.

Settings come from `RAG_*` variables by `from_env()`; everything that talks to the outside can be injected for tests.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rag_serving.answer import EVIDENCE_FLOORS, PROMPT_VERSION, LanguageModel, is_weak, standalone
from rag_serving.arguments import (
    checked_history,
    checked_k,
    checked_mode,
    checked_moment,
    checked_prefix,
    checked_question,
    checked_tenant,
)
from rag_serving.asking import Answerer, Asked, Clock, failed, finished
from rag_serving.cache import AnswerCache, CacheStore, MemoryStore, Note, StoreState, question_key, scope_tag
from rag_serving.catalog import Catalog, CatalogEntry, Snapshot
from rag_serving.embedding import Embedder, load_embedder
from rag_serving.errors import DeadlineExceeded, InvalidArgument, ModelUnavailable, RagError, error_named
from rag_serving.events import Done, Event, Failed
from rag_serving.flight import FlightBoard, Flights
from rag_serving.gate import Gate
from rag_serving.guards import Judge
from rag_serving.objects import Objects, open_objects
from rag_serving.query_embedding import QueryEmbedders
from rag_serving.redis_store import open_redis
from rag_serving.reranking import HostedReranker, Reranker
from rag_serving.results import Answer, Hit, Hits, Turn
from rag_serving.search import Mode, Query, Searcher, Searching
from rag_serving.settings import ServingSettings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MOST_REWRITTEN = 1_000
_ENTRY = re.compile(r"[0-9a-f]{32}:[0-9a-f]{32}")

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Health:
    """What a client can do just now."""

    shards: int
    cache: StoreState
    model: str | None


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
        judge: Judge | None = None,
        searcher: Searching | None = None,
        clock: Callable[[], float] = time.time,
        load: Callable[[Objects, str], Embedder] = load_embedder,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._objects = objects or open_objects(settings.lake_uri)
        self._catalog = Catalog(self._objects, refresh_seconds=settings.catalog_refresh)
        if reranker is None and settings.rerank_model is not None:
            reranker = HostedReranker(settings.rerank_model)
        self._searcher: Searching = searcher or Searcher(
            settings.lake_uri,
            concurrency=settings.search_concurrency,
            wide=settings.wide_shards,
            cache_bytes=settings.search_cache_bytes,
            reranker=reranker,
        )
        store = cache_store or _open_store(settings)
        self._cache = AnswerCache(
            store, ttl_seconds=settings.cache_ttl, refusal_ttl_seconds=settings.cache_refusal_ttl, clock=clock
        )
        self._model = model or _configured_model(settings)
        self._embedders = QueryEmbedders(self._objects, load)
        self._flights = Flights(store if isinstance(store, FlightBoard) else None)
        self._searches = Gate("searches", running=settings.search_concurrency, waiting=settings.queue_limit)
        self._calls = Gate("model calls", running=settings.llm_concurrency, waiting=settings.queue_limit)
        self._rewritten: OrderedDict[str, _Rewritten] = OrderedDict()
        self._answerer = Answerer(
            self._cache,
            self._searcher,
            self._embedders,
            self._flights,
            judge or _configured_judge(settings),
            model=self._model,
            mode=settings.cache_mode,
            sure=settings.cache_similarity,
            weak=partial(_is_weak, settings.min_evidence),
            searches=self._searches,
            calls=self._calls,
            deadline=settings.ask_deadline,
            clock=clock,
        )

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
        within: Sequence[str] | None = None,
    ) -> Hits:
        """The `k` (1 to 100) best passages in those regions and departments; None means all of them.

        `mode` says what finds them: the meaning (``vector``), the words (``text``, which needs no embedding model), or
        both, fused by rank (``hybrid``). `path_prefix` is the beginning of the object's key below
        ``region/department/``; `modified_from` (inclusive) and `modified_before` (exclusive) are of the document's last
        change, a date or a time without a zone being taken for UTC. A passage that repeats a better one is left out and
        named in the other's `also_in`. With `join_neighbours`, passages that follow each other in their document come
        as one. `within` holds patterns of the shards that the caller may see, as in ``oslo/*``; no other exists then.

        Raises `InvalidQuestion`, `InvalidArgument`, `InvalidShardName`, `UnknownScope`, `LakeError` or
        `EmbedderUnavailable`.
        """
        clock = Clock()
        query = Query(
            checked_question(question),
            checked_k(k),
            mode=checked_mode(mode),
            path_prefix=checked_prefix(path_prefix),
            modified_from=checked_moment("modified_from", modified_from),
            modified_before=checked_moment("modified_before", modified_before),
            join_neighbours=join_neighbours,
        )
        snapshot = (await self._snapshot()).within(within)
        entries, broken = snapshot.route(regions, departments), snapshot.broken_in(regions, departments)
        vectors: dict[str, npt.NDArray[np.float32]] = {}
        cut: tuple[str, ...] = ()
        if mode != "text":
            vectors, cut = await self._embedders.vectors(
                query.question, {entry.current.fingerprint for entry in entries}
            )
        clock.lap("embed")
        async with self._searches.enter():
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
            await self._embedders.embedder(fingerprint)
        await self._searcher.warm(entries, snapshot)
        if self._model is not None:
            await self._model.warm()
        return entries

    async def ask(
        self,
        question: str,
        *,
        regions: Sequence[str] | None = None,
        departments: Sequence[str] | None = None,
        k: int = 8,
        history: Sequence[Turn | dict[str, Any]] = (),
        tenant: str = "default",
        within: Sequence[str] | None = None,
    ) -> Answer:
        """An answer from those regions and departments, from the cache when an equal question was answered before.

        `k` is how many passages the answer may rest on. `history` holds the turns of a conversation before, oldest
        first: the question is then rewritten into one that stands alone, which is what is answered and cached. Answers
        are shared within a `tenant` only. `within` is as for `search`.

        Raises what `search` raises, `Overloaded` and `DeadlineExceeded`; a failing cache or language model does not
        raise but is named in `Answer.degraded`.
        """
        events = self.stream(
            question, regions=regions, departments=departments, k=k, history=history, tenant=tenant, within=within
        )
        last = await finished(events)
        if isinstance(last, Failed):
            raise error_named(last.error)(last.message)
        return last.answer

    async def stream(
        self,
        question: str,
        *,
        regions: Sequence[str] | None = None,
        departments: Sequence[str] | None = None,
        k: int = 8,
        history: Sequence[Turn | dict[str, Any]] = (),
        tenant: str = "default",
        within: Sequence[str] | None = None,
    ) -> AsyncGenerator[Event]:
        """The answer as it is made, see `rag_serving.events`; the same events whether the cache answers or not.

        Wrong arguments raise at the first event; what fails later is the last event, `Failed`.
        """
        clock = Clock()
        deadline = asyncio.get_running_loop().time() + self._settings.ask_deadline
        asked_as = checked_question(question)
        k, tenant, turns = checked_k(k), checked_tenant(tenant), checked_history(history)
        rewritten = _Rewritten(asked_as)
        if turns:
            rewritten = await self._standalone(asked_as, turns)
            clock.lap("rewrite")
        snapshot = (await self._snapshot()).within(within)
        entries, marks = snapshot.route(regions, departments), snapshot.broken_in(regions, departments)
        asked = self._asked(rewritten, k, tenant, snapshot, entries, marks)
        try:
            async for event in _until(deadline, self._answerer.answer(asked, clock)):
                yield Done(answer=rewritten.told(event.answer, asked_as)) if isinstance(event, Done) else event
        except RagError as error:
            yield failed(error)

    def _asked(
        self,
        rewritten: _Rewritten,
        k: int,
        tenant: str,
        snapshot: Snapshot,
        entries: Sequence[CatalogEntry],
        marks: tuple[str, ...],
    ) -> Asked:
        tag = scope_tag(
            tenant=tenant,
            shards=[entry.shard.key for entry in entries],
            fingerprints=sorted({entry.current.fingerprint for entry in entries}),
            model=[self._model.name, *self._model.fallbacks] if self._model else None,
            prompt=PROMPT_VERSION,
            k=k,
        )
        return Asked(Query(rewritten.question, k), tenant, tag, entries, snapshot, marks + rewritten.marks)

    async def _standalone(self, question: str, turns: Sequence[Turn]) -> _Rewritten:
        if self._model is None:
            return _Rewritten(question, marks=("history_not_read",))  # only a language model can
        key = hashlib.sha256(json.dumps([question, [turn.model_dump() for turn in turns]]).encode()).hexdigest()
        known = self._rewritten.get(key)
        if known is not None:
            self._rewritten.move_to_end(key)
            return replace(known, tokens={}, cost=0.0)
        try:
            async with self._calls.enter():
                text, generated = await standalone(self._model, question, turns)
        except ModelUnavailable as error:
            _log.warning("the question is taken as it stands: %s", error)
            return _Rewritten(question, marks=("history_not_read",))
        made = _Rewritten(checked_question(text), generated.tokens, self._model.cost(generated))
        self._rewritten[key] = made
        while len(self._rewritten) > _MOST_REWRITTEN:
            self._rewritten.popitem(last=False)
        return made

    async def feedback(self, answer: Answer, *, correct: bool, tenant: str = "default") -> bool:
        """Tell whether an answer was right. A wrong one leaves the cache; says whether it was there.

        The pair of questions, where the answer was found by another one, is kept for a recalibration of the guards.
        Raises `InvalidQuestion`, `InvalidArgument` for an answer of another tenant, and `CacheUnavailable`.
        """
        asked = checked_question(answer.standalone_question or answer.question)
        checked_tenant(tenant)
        tag, _, key = (answer.entry or "").partition(":")
        known = _ENTRY.fullmatch(answer.entry or "") is not None
        entry = await self._cache.store.get(tag, key) if known else None
        if entry is not None and entry.tenant != tenant:
            raise InvalidArgument("the answer belongs to another tenant")
        await self._cache.store.note(
            Note(
                kind="feedback",
                tenant=tenant,
                asked=asked,
                # By what is stored, not by what the caller says: a recalibration trusts these pairs.
                cached=entry.question if entry is not None and entry.key != question_key(asked) else None,
                similarity=answer.similarity,
                cached_evidence=entry.evidence if entry is not None else (),
                same=correct,
                at=self._clock(),
            )
        )
        self._answerer.counts["feedback_correct" if correct else "feedback_wrong"] += 1
        return entry is not None and not correct and await self._cache.store.drop(tag, key)

    async def notes(self) -> list[Note]:
        """Pairs of questions that were refused narrowly, served in the shadow, or judged by people; newest first."""
        return await self._cache.store.notes()

    async def health(self) -> Health:
        """Whether questions can be answered; raises `LakeError` where the lake cannot be read."""
        snapshot = await self._snapshot()
        return Health(
            shards=len(snapshot.entries),
            cache=await self._cache.store.state(),
            model=None if self._model is None else self._model.name,
        )

    def stats(self) -> dict[str, int]:
        """What happened since this client began: answers by state of the cache, refusals by guard, model calls."""
        return dict(self._answerer.counts)

    async def shards(self, *, within: Sequence[str] | None = None) -> list[CatalogEntry]:
        """What is published now, sorted by shard; `within` is as for `search`."""
        return [entry for _, entry in sorted((await self._snapshot()).within(within).entries.items())]

    async def close(self) -> None:
        """Let go of the cache's connections and of the tables."""
        await self._flights.close()
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
        within: Sequence[str] | None = None,
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
                within=within,
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
        history: Sequence[Turn | dict[str, Any]] = (),
        tenant: str = "default",
        within: Sequence[str] | None = None,
    ) -> Answer:
        """See `AsyncRagClient.ask`."""
        return self._run(
            self._core.ask(
                question, regions=regions, departments=departments, k=k, history=history, tenant=tenant, within=within
            )
        )

    def feedback(self, answer: Answer, *, correct: bool, tenant: str = "default") -> bool:
        """See `AsyncRagClient.feedback`."""
        return self._run(self._core.feedback(answer, correct=correct, tenant=tenant))

    def notes(self) -> list[Note]:
        """See `AsyncRagClient.notes`."""
        return self._run(self._core.notes())

    def stats(self) -> dict[str, int]:
        """See `AsyncRagClient.stats`."""
        return self._core.stats()

    def shards(self, *, within: Sequence[str] | None = None) -> list[CatalogEntry]:
        """See `AsyncRagClient.shards`."""
        return self._run(self._core.shards(within=within))

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


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """A question as it is answered, and what it cost to find that out."""

    question: str
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    cost: float | None = 0.0
    marks: tuple[str, ...] = ()

    def told(self, answer: Answer, asked: str) -> Answer:
        """The answer as that of the question that was asked."""
        if self.question == asked:
            return answer
        cost = None if answer.cost is None or self.cost is None else answer.cost + self.cost
        tokens = {
            name: answer.tokens.get(name, 0) + self.tokens.get(name, 0)
            for name in sorted({*answer.tokens, *self.tokens})
        }
        update = {"question": asked, "standalone_question": self.question, "tokens": tokens, "cost": cost}
        return answer.model_copy(update=update)


def _open_store(settings: ServingSettings) -> CacheStore:
    if settings.redis_url is None:
        return MemoryStore(settings.cache_memory_entries)
    url = settings.redis_url.get_secret_value()
    return open_redis(
        url, timeout=settings.cache_timeout, prefix=settings.cache_prefix, most_entries=settings.cache_entries
    )


def _configured_model(settings: ServingSettings) -> LanguageModel | None:
    if settings.llm_model is None:
        return None
    named = (settings.llm_fallbacks or "").split(",")
    return LanguageModel(
        settings.llm_model,
        settings.llm_timeout,
        settings.llm_retries,
        settings.llm_max_tokens,
        fallbacks=tuple(name.strip() for name in named if name.strip()),
        context_tokens=settings.llm_context_tokens,
    )


def _configured_judge(settings: ServingSettings) -> Judge:
    error, sure = settings.cache_max_error, settings.cache_similarity
    if settings.cache_calibration is None:
        return Judge.shipped(max_error=error, sure=sure)
    return Judge.from_file(Path(settings.cache_calibration), max_error=error, sure=sure)


def _is_weak(floor: float | None, question: str, hits: Sequence[Hit], fingerprint: str) -> bool:
    least = EVIDENCE_FLOORS.get(fingerprint, -1.0) if floor is None else floor
    return is_weak(question, hits, least)


async def _until(deadline: float, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    """The events, until that time of the loop; raises `DeadlineExceeded`."""
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise DeadlineExceeded("no answer within the time that one question may take") from error
            yield event
    finally:
        await events.aclose()
