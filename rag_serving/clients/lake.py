"""The asynchronous client of a lake; `RagClient` is its synchronous counterpart.

`from_env()` reads the settings from `RAG_*` variables. Everything that does I/O can be injected for tests.
"""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

from rag_serving.answering.answerer import Answerer, AnswerRequest
from rag_serving.answering.evidence_floor import RELEVANCE_FLOORS, is_below_relevance_floor, is_readable
from rag_serving.answering.follow_up import standalone
from rag_serving.answering.generation import EndedCall, Generated, LanguageModel, Messages
from rag_serving.answering.prompts import PROMPT_VERSION
from rag_serving.answering.single_flight import SharedFlights, SingleFlight
from rag_serving.answering.timing import Clock
from rag_serving.cache.answer_cache import AnswerCache
from rag_serving.cache.entries import ReviewItem, question_key, scope_tag
from rag_serving.cache.guards.judge import Judge
from rag_serving.cache.local_copies import LocalCopies
from rag_serving.cache.memory_store import MemoryStore
from rag_serving.cache.redis_store import open_redis
from rag_serving.cache.store import CacheStore
from rag_serving.clients.base import BaseRagClient, Health, Scope
from rag_serving.clients.factory import configured_model
from rag_serving.concurrency.limiter import ConcurrencyLimiter
from rag_serving.errors import (
    InvalidArgument,
    LakeUnavailable,
    ModelUnavailable,
    RagError,
    UnknownDocument,
    error_named,
)
from rag_serving.events import Done, Event, Failed, failed, finished, until
from rag_serving.lake.catalog import Catalog, Snapshot
from rag_serving.lake.catalog_entry import CatalogEntry, Publication
from rag_serving.lake.embedders.base import Embedder
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.object_store import ObjectStore, open_object_store
from rag_serving.lake.search.plan import not_searched
from rag_serving.lake.search.query import Query
from rag_serving.lake.shards import Shard, same_name
from rag_serving.requirements import require_module, require_posix
from rag_serving.results import HISTORY_NOT_READ, Answer, Document, Hit, Hits, ShardInfo, Turn
from rag_serving.retrieval.originals import Original, Originals
from rag_serving.retrieval.query_embedder import QueryEmbedders, QuestionVectors
from rag_serving.retrieval.rerankers import HostedReranker, Reranker
from rag_serving.retrieval.searcher import SearchBackend, Searcher
from rag_serving.settings import ServingSettings
from rag_serving.validation import validate_question

_MOST_REWRITTEN = 1_000
_ENTRY = re.compile(r"[0-9a-f]{32}:[0-9a-f]{32}")
_DOC_ID = re.compile(r"[0-9a-f]{32}")

_log = logging.getLogger(__name__)


class AsyncRagClient(BaseRagClient):
    """Searches and answers from the published shards of a lake. Use and `close` it within one event loop."""

    def __init__(
        self,
        settings: ServingSettings,
        *,
        objects: ObjectStore | None = None,
        cache_store: CacheStore | None = None,
        model: LanguageModel | None = None,
        reranker: Reranker | None = None,
        judge: Judge | None = None,
        searcher: SearchBackend | None = None,
        clock: Callable[[], float] = time.time,
        load: Callable[..., Embedder] | None = None,
    ) -> None:
        """Open the lake without connecting yet; raises `SettingsError`, or `MissingExtra` for a hosted model.

        `load` replaces `load_embedder`; it gets the lake, a fingerprint, and the names of `hosted` models allowed.
        """
        require_posix()
        self._settings = settings
        self._clock = clock
        self._objects = objects or open_object_store(settings.lake_uri, must_exist=True)
        self._catalog = Catalog(self._objects, refresh_seconds=settings.catalog_refresh, lake=settings.lake_uri)
        if reranker is None and settings.rerank_model is not None:
            require_module("litellm", "llm", "RAG_RERANK_MODEL")
            reranker = HostedReranker(settings.rerank_model)
        self._searcher: SearchBackend = searcher or Searcher(
            settings.lake_uri,
            concurrency=settings.searches_at_once,
            wide=settings.wide_shards,
            cache_bytes=settings.search_cache_bytes,
            reranker=reranker,
            link=settings.source_link,
        )
        self._originals = Originals(settings.source_uri)
        store = cache_store or _open_store(settings)
        board = store if isinstance(store, SharedFlights) else None
        if board is not None:  # other processes use the store, too, so it is reached over the network
            store = LocalCopies(store, seconds=settings.cache_copy_seconds, clock=clock)
        self._cache = AnswerCache(
            store, ttl_seconds=settings.cache_ttl, refusal_ttl_seconds=settings.cache_refusal_ttl, clock=clock
        )
        self._model = model or configured_model(settings)
        load = load or partial(load_embedder, cores=settings.usable_cores)
        self._embedders = QueryEmbedders(self._objects, partial(load, hosted=settings.allowed_embedders))
        self._flights = SingleFlight(board, finish_abandoned=settings.finish_abandoned)
        self._searches = ConcurrencyLimiter("searches", running=settings.searches_at_once, waiting=settings.queue_limit)
        self._calls = ConcurrencyLimiter("model calls", running=settings.llm_concurrency, waiting=settings.queue_limit)
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
            weak=partial(_is_weak, settings.min_evidence, self._model is not None),
            searches=self._searches,
            calls=self._calls,
            deadline=settings.ask_deadline,
            clock=clock,
        )

    @classmethod
    def from_env(cls) -> Self:
        """Create a client of the lake at `RAG_LAKE_URI`, ignoring `RAG_SERVICE_URL`; raises `SettingsError`."""
        return cls(ServingSettings.from_env())

    async def health(self) -> Health:
        """Check that questions can be answered, and load the embedders for it.

        Raises `LakeUnavailable` if the lake cannot be read, or `EmbedderUnavailable` if no embedder can be loaded.
        """
        snapshot = await self._snapshot()
        await self._embedders.check({entry.current.fingerprint for entry in snapshot.entries.values()})
        return Health(
            shards=len(snapshot.entries),
            cache=await self._cache.store.state(),
            model=None if self._model is None else self._model.name,
        )

    @property
    def is_starting(self) -> bool:
        """Whether the library of the language model is still being loaded."""
        return self._model is not None and not self._model.is_warm

    async def complete(self, messages: Messages) -> Generated | None:
        """Return the language model's reply to a prompt that is no question about the documents; None without a model.

        Nothing is searched or cached, and links are removed. The call counts against the limit of concurrent calls.
        Raises `ModelUnavailable` and `Overloaded`.
        """
        if self._model is None:
            return None
        until = asyncio.get_running_loop().time() + self._settings.ask_deadline
        try:
            async with asyncio.timeout_at(until), self._calls.slot():
                self._answerer.counts["model_calls"] += 1
                return await self._model.complete(messages, until)
        except TimeoutError as error:
            raise ModelUnavailable("the model did not reply before the deadline") from error

    async def notes(self) -> list[ReviewItem]:
        """Return pairs of questions to review, newest first; raises `CacheUnavailable`."""
        return await self._cache.store.notes()

    def stats(self) -> dict[str, int]:
        """Return counters since the client was created: answers by cache state, refusals by guard, model calls."""
        failures: Mapping[str, int] = {} if self._model is None else self._model.failures
        dropped = self._searcher.dropped_rows
        return {
            **self._answerer.counts,
            **{f"model_failure:{kind}": count for kind, count in failures.items()},
            **({"dropped_rows": dropped} if dropped else {}),
        }

    def states(self) -> dict[str, float]:
        """Return the lengths of the queues, what is bypassed, the shards, and the age of the catalog in seconds."""
        return {
            "searches_running": self._searches.running,
            "searches_queued": self._searches.queued,
            "model_calls_running": self._calls.running,
            "model_calls_queued": self._calls.queued,
            "cache_breaker_open": self._cache.store.breaker_open,
            "models_bypassed": 0 if self._model is None else len(self._model.unresponsive),
            "snapshot_age_seconds": self._catalog.age,
            **self._shard_counts(),
        }

    def ended_model_calls(self) -> list[EndedCall]:
        """Return the calls of language models that ended since the last time, up to some thousands."""
        if self._model is None:
            return []
        ended = self._model.ended
        return [ended.popleft() for _ in range(len(ended))]

    def _shard_counts(self) -> dict[str, float]:
        """Count the published shards, and those that are left out because something of them cannot be read."""
        snapshot = self._catalog.latest
        if snapshot is None:
            return {}
        unsearchable = not_searched(list(snapshot.entries.values()), frozenset(self._embedders.failed))
        return {
            "shards": len(snapshot.entries),
            "shards_left_out": len(snapshot.broken_in(None, None)) + len(unsearchable),
        }

    async def open_original(self, document: Document) -> Original:
        """Open the object that a document was made from, below `RAG_SOURCE_URI`.

        Its etag differs from the document's if it changed since. Raises `SourceNotOffered`, `SourceGone` or
        `SourceUnavailable`.
        """
        return await self._originals.open(document.source, document.shard)

    async def close(self) -> None:
        """Close the cache's connections, the tables and the model's process."""
        await self._flights.close()
        if self._model is not None:
            await self._model.close()
        await self._searcher.close()
        await self._cache.close()

    async def _search(self, query: Query, scope: Scope) -> Hits:
        clock = Clock()
        snapshot = await self._snapshot_within(scope)
        entries = snapshot.route(scope.regions, scope.departments)
        broken = snapshot.broken_in(scope.regions, scope.departments)
        vectors = QuestionVectors({})
        if query.mode != "text":
            fingerprints = {entry.current.fingerprint for entry in entries}
            vectors = await self._embedders.vectors(query.question, fingerprints)
        lost = not_searched(entries, vectors.failed)
        entries = [entry for entry in entries if entry.current.fingerprint not in vectors.failed]
        clock.lap("embed")
        async with self._searches.slot():
            hits, failed = await self._searcher.search(query, vectors.found, entries, snapshot)
        clock.lap("search")
        return Hits(hits, clock.timings(), broken + vectors.marks + lost + failed)

    async def _warm(self, scope: Scope) -> list[ShardInfo]:
        snapshot = await self._snapshot()
        entries = snapshot.route(scope.regions, scope.departments)
        await self._embedders.check({entry.current.fingerprint for entry in entries})
        await self._searcher.warm(entries, snapshot)
        if self._model is not None:
            await self._model.warm()
        return [entry.info for entry in entries]

    async def _ask(self, query: Query, scope: Scope, turns: tuple[Turn, ...]) -> Answer:
        last = await finished(self._stream(query, scope, turns))
        if isinstance(last, Failed):
            raise error_named(last.error)(last.message)
        return last.answer

    async def _stream(self, query: Query, scope: Scope, turns: tuple[Turn, ...]) -> AsyncGenerator[Event]:
        clock = Clock()
        deadline = asyncio.get_running_loop().time() + self._settings.ask_deadline
        rewritten = _Rewritten(query.question)
        if turns:
            rewritten = await self._standalone(query.question, turns, deadline)
            clock.lap("rewrite")
        snapshot = await self._snapshot_within(scope)
        entries = snapshot.route(scope.regions, scope.departments)
        marks = snapshot.broken_in(scope.regions, scope.departments)
        asked = self._asked(rewritten, query.k, scope.tenant, snapshot, entries, marks, deadline)
        try:
            async with aclosing(until(deadline, self._answerer.answer(asked, clock))) as events:
                async for event in events:
                    done = isinstance(event, Done)
                    yield Done(answer=rewritten.restored(event.answer, query.question)) if done else event
        except RagError as error:
            yield failed(error)

    async def _feedback(self, answer: Answer, correct: bool, tenant: str) -> bool:
        asked = validate_question(answer.standalone_question or answer.question)
        tag, _, key = (answer.entry or "").partition(":")
        known = _ENTRY.fullmatch(answer.entry or "") is not None
        entry = await self._cache.store.get(tag, key) if known else None
        if entry is not None and entry.tenant != tenant:
            raise InvalidArgument("the answer belongs to another tenant")
        await self._cache.store.note(
            ReviewItem(
                kind="feedback",
                tenant=tenant,
                asked=asked,
                # Taken from the store, not from the caller, because a recalibration trusts these pairs.
                cached=entry.question if entry is not None and entry.key != question_key(asked) else None,
                similarity=answer.similarity,
                cached_evidence=entry.evidence if entry is not None else (),
                same=correct,
                at=self._clock(),
            )
        )
        self._answerer.counts["feedback_correct" if correct else "feedback_wrong"] += 1
        return entry is not None and not correct and await self._cache.store.drop(tag, key)

    async def _document(
        self, region: str, department: str, doc_id: str, first: int, count: int, scope: Scope
    ) -> Document:
        entries = (await self._snapshot_within(scope)).entries
        entry = next((one for shard, one in entries.items() if _is_named(shard, region, department)), None)
        found = None
        if entry is not None and _DOC_ID.fullmatch(doc_id) is not None:
            async with self._searches.slot():
                found = await self._searcher.document(entry, doc_id, first, count)
        if found is None:
            raise UnknownDocument("no such document is published, or the key may not see it; search for it")
        return found

    async def _shards(self, scope: Scope) -> list[ShardInfo]:
        published = (await self._snapshot_within(scope)).entries
        return [entry.info for _, entry in sorted(published.items())]

    def _asked(
        self,
        rewritten: "_Rewritten",
        k: int,
        tenant: str,
        snapshot: Snapshot,
        entries: Sequence[CatalogEntry],
        marks: tuple[str, ...],
        deadline: float,
    ) -> AnswerRequest:
        tag = scope_tag(
            tenant=tenant,
            shards=[entry.shard.key for entry in entries],
            fingerprints=sorted({entry.current.fingerprint for entry in entries}),
            model=None if self._model is None else self._model.identity,
            prompt=PROMPT_VERSION,
            k=k,
            floor=self._settings.min_evidence,
            reranker=self._settings.rerank_model,
            link=self._settings.source_link,
        )
        query = Query(rewritten.question, k)
        return AnswerRequest(query, tenant, tag, entries, snapshot, marks + rewritten.marks, deadline=deadline)

    async def _standalone(self, question: str, turns: Sequence[Turn], until: float) -> "_Rewritten":
        if self._model is None:
            return _Rewritten(question, marks=(HISTORY_NOT_READ,))
        key = hashlib.sha256(json.dumps([question, [turn.model_dump() for turn in turns]]).encode()).hexdigest()
        known = self._rewritten.get(key)
        if known is not None:
            self._rewritten.move_to_end(key)
            return replace(known, tokens={}, cost=0.0)
        try:
            async with self._calls.slot():
                text, generated = await standalone(self._model, question, turns, until)
        except ModelUnavailable as error:
            _log.warning("cannot rewrite the follow-up question; answering it as asked: %s", error)
            return _Rewritten(question, marks=(HISTORY_NOT_READ,))
        if text is None:
            _log.warning("the model did not rewrite the follow-up question; answering it as asked")
            return _Rewritten(question, generated.tokens, generated.price, marks=(HISTORY_NOT_READ,))
        made = _Rewritten(validate_question(text), generated.tokens, generated.price)
        self._rewritten[key] = made
        while len(self._rewritten) > _MOST_REWRITTEN:
            self._rewritten.popitem(last=False)
        return made

    async def _snapshot_within(self, scope: Scope) -> Snapshot:
        """Return what the caller may see; the error of a caller with limited access does not locate the lake."""
        try:
            return (await self._snapshot()).within(scope.within)
        except LakeUnavailable as error:
            if scope.within is None:
                raise
            _log.error("%s", error)
            raise LakeUnavailable("the lake cannot be read; retry later") from error

    async def _snapshot(self) -> Snapshot:
        snapshot = self._catalog.cached() or await asyncio.to_thread(self._catalog.snapshot)
        self._searcher.follow(snapshot)
        return snapshot


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """A question as it is answered, and what rewriting it cost."""

    question: str
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    cost: float | None = 0.0
    marks: tuple[str, ...] = ()

    def restored(self, answer: Answer, asked: str) -> Answer:
        """Return the answer under the question as asked, with the cost of rewriting it added."""
        if self.question == asked:
            return answer
        cost = None if answer.cost is None or self.cost is None else answer.cost + self.cost
        tokens = {
            name: answer.tokens.get(name, 0) + self.tokens.get(name, 0)
            for name in sorted({*answer.tokens, *self.tokens})
        }
        update = {"question": asked, "standalone_question": self.question, "tokens": tokens, "cost": cost}
        return answer.model_copy(update=update)


def _is_named(shard: Shard, region: str, department: str) -> bool:
    return same_name(shard.region, region) and same_name(shard.department, department)


def _open_store(settings: ServingSettings) -> CacheStore:
    if settings.redis_url is None:
        return MemoryStore(settings.cache_memory_entries)
    url = settings.redis_url.get_secret_value()
    return open_redis(
        url, timeout=settings.cache_timeout, prefix=settings.cache_prefix, most_entries=settings.cache_entries
    )


def _configured_judge(settings: ServingSettings) -> Judge:
    error, sure = settings.cache_max_error, settings.cache_similarity
    if settings.cache_calibration is None:
        return Judge.shipped(max_error=error, sure=sure)
    return Judge.from_file(Path(settings.cache_calibration), max_error=error, sure=sure)


def _is_weak(floor: float | None, has_model: bool, question: str, hits: Sequence[Hit], published: Publication) -> bool:
    """Return whether the question is refused without asking the model, or quoting a passage."""
    if floor is not None:
        return is_below_relevance_floor(question, hits, floor)
    if not has_model:
        return not hits  # extracts have a floor of their own
    if not is_readable(question, published.embedder_reads, keywords=False):
        return not hits  # its cosines say nothing
    return is_below_relevance_floor(question, hits, RELEVANCE_FLOORS.get(published.fingerprint, -1.0))
