"""The answering pipeline: exact tier, semantic tier, single flight, search, guards, language model, store.

Each request checks the fast cache tiers itself. Everything that needs a search runs in a flight that concurrent
requests for the same question share. One answer works against one snapshot of the catalog.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from rag_serving.answering.citations import source_citations
from rag_serving.answering.extractive import extract, not_found
from rag_serving.answering.generation import LanguageModel, generate
from rag_serving.answering.named_scope import outside_scope
from rag_serving.answering.prompts import within_budget
from rag_serving.answering.single_flight import Emit, SingleFlight
from rag_serving.answering.timing import Clock
from rag_serving.cache.answer_cache import AnswerCache
from rag_serving.cache.entries import CachedAnswer, Entry, ReviewItem, digest_of, question_key
from rag_serving.cache.evidence import evidence_of, same_evidence
from rag_serving.cache.evidence_record import Evidence
from rag_serving.cache.guards.judge import Judge, Pair
from rag_serving.concurrency.limiter import ConcurrencyLimiter
from rag_serving.errors import CacheUnavailable, DeadlineExceeded, ModelUnavailable, RagError
from rag_serving.events import Delta, Done, Event, Sources, failed, replayed
from rag_serving.lake.catalog import Snapshot
from rag_serving.lake.catalog_entry import CatalogEntry, Publication
from rag_serving.lake.search.plan import not_searched
from rag_serving.lake.search.query import Query
from rag_serving.results import (
    ANSWER_CUT,
    CACHE_UNAVAILABLE,
    FEWER_PASSAGES,
    INVENTED_CITATIONS,
    MODEL_UNAVAILABLE,
    UNCITED,
    Answer,
    CacheState,
    Hit,
    in_words,
)
from rag_serving.retrieval.query_embedder import QueryEmbedders
from rag_serving.retrieval.searcher import SearchBackend

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_GRACE = 0.05
"""Seconds that `generate` has to end by itself."""

CacheMode = Literal["on", "shadow", "off"]
_FAULTLESS = (INVENTED_CITATIONS, FEWER_PASSAGES)
"""Marks that do not keep an answer out of the cache, because the model would do the same again."""
_SHORT_LIVED = (ANSWER_CUT, UNCITED)
"""Marks of answers that are cached for the same question only, and as briefly as those that found nothing."""
_TIME_TO_STORE = 2.0
"""Seconds before the deadline at which the model has to be done, or a fifth of the time if that is less."""


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """A validated question with the pinned state of the shards in its scope."""

    query: Query
    tenant: str
    tag: str
    entries: Sequence[CatalogEntry]
    snapshot: Snapshot
    marks: tuple[str, ...] = ()
    failed: frozenset[str] = frozenset()
    """Fingerprints of embedders that do not work; their shards are not searched."""
    deadline: float = math.inf
    """By the event loop's clock."""
    digests: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        digests = {entry.shard.key: entry.current.content_digest for entry in self.entries}
        object.__setattr__(self, "digests", digests)

    @property
    def question(self) -> str:
        """The question's text."""
        return self.query.question

    @property
    def fingerprints(self) -> set[str]:
        """Fingerprints of the embedders in the scope."""
        return {entry.current.fingerprint for entry in self.entries}

    @property
    def searched(self) -> Sequence[CatalogEntry]:
        """The entries of shards whose embedders work."""
        return [entry for entry in self.entries if entry.current.fingerprint not in self.failed]

    @property
    def lost(self) -> tuple[str, ...]:
        """Marks of the other shards."""
        return not_searched(self.entries, self.failed)

    @property
    def scope_words(self) -> frozenset[str]:
        """Names of all regions and departments, including those outside the scope, which a question may mention."""
        shards = self.snapshot.entries
        return frozenset({shard.region for shard in shards} | {shard.department for shard in shards})


@dataclass(slots=True)
class _Work:
    """A question that missed the fast tiers."""

    asked: AnswerRequest
    vectors: Mapping[str, npt.NDArray[np.float32]]
    stale: Entry | None
    near: Sequence[CachedAnswer]
    refused: str | None = None
    shadow: tuple[CachedAnswer | None, str] | None = None


class Answerer:
    """Answers questions. Belongs to one client and its event loop."""

    def __init__(
        self,
        cache: AnswerCache,
        searcher: SearchBackend,
        embedders: QueryEmbedders,
        flights: SingleFlight,
        judge: Judge,
        *,
        model: LanguageModel | None,
        mode: CacheMode,
        sure: float,
        weak: Callable[[str, Sequence[Hit], Publication], bool],
        searches: ConcurrencyLimiter,
        calls: ConcurrencyLimiter,
        deadline: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._searcher = searcher
        self._embedders = embedders
        self._flights = flights
        self._judge = judge
        self._model = model
        self._mode: CacheMode = mode
        self._sure = sure
        self._weak = weak
        self._searches = searches
        self._calls = calls
        self._deadline = deadline
        self._clock = clock
        self.counts: Counter[str] = Counter()

    async def answer(self, asked: AnswerRequest, clock: Clock) -> AsyncGenerator[Event]:
        """Yield the events of the answer; errors while it is made end it with `Failed`."""
        problems: list[str] = []
        stale: Entry | None = None
        if self._mode != "off":
            exact = await self._tolerant(self._cache.exact(asked.tag, asked.question), problems)
            clock.lap("cache")
            if exact is not None and exact.digests == asked.digests and self._mode == "on":
                for event in self._replay(asked, exact, "exact", clock, similarity=1.0, reason="the same question"):
                    yield event
                return
            stale = exact
        embedded = await self._embedders.vectors(asked.question, asked.fingerprints)
        vectors = embedded.found
        asked = replace(asked, marks=asked.marks + embedded.marks, failed=embedded.failed)
        clock.lap("embed")
        near: list[CachedAnswer] = []
        vector = _cache_vector(vectors)
        # A question that was cut must not match by its beginning alone. Without all of the scope's embedders, it may
        # have no vector of the one that indexes the cache.
        complete = not embedded.marks and not embedded.failed
        if self._mode != "off" and vector is not None and complete and not problems:
            nearest = self._cache.nearest(asked.tag, vector, self._floor(vectors))
            near = await self._tolerant(nearest, problems) or []
            near = [one for one in near if one.entry.key != question_key(asked.question)]
            clock.lap("cache")
            sure = self._sure_hit(asked, near)
            if sure is not None and self._mode == "on":
                found, reason = sure
                await self._tolerant(self._cache.store.used(asked.tag, found.entry.key), problems)
                for event in self._replay_near(asked, found, reason, clock):
                    yield event
                return
        work = _Work(asked, vectors, stale, near)
        # Callers who see other shards, or whose conversation was not read, get other marks.
        marks = (
            *asked.marks,
            *asked.lost,
            *outside_scope(asked.question, asked.entries, asked.snapshot.entries, "none"),
        )
        state = digest_of({**asked.digests, "": ",".join(marks)})
        flight = f"{asked.tag}:{question_key(asked.question)}:{state}"

        async def produce(emit: Emit) -> None:
            await self._work(work, problems, emit, clock)

        async for event, began in self._flights.join(flight, produce):
            if isinstance(event, Done) and not began:
                self.counts["shared"] += 1
                yield Done(answer=_shared(event.answer, asked.question, clock))
            else:
                yield event

    def _floor(self, vectors: Mapping[str, Any]) -> float:
        """Return the least cosine of cached questions to consider.

        If the judge was calibrated on another embedder, whose cosines are not comparable, only sure hits qualify.
        """
        fits = self._judge.fingerprint in (None, min(vectors))
        return self._judge.least_similarity if fits else self._sure

    def _sure_hit(self, asked: AnswerRequest, near: Sequence[CachedAnswer]) -> tuple[CachedAnswer, str] | None:
        """Return a cached question so similar that only its particulars must agree, with the reason."""
        for found in near:
            holds = found.entry.digests == asked.digests and _is_good(found.entry.answer)
            if found.similarity >= self._sure and holds:
                verdict = self._judge.judge(_pair(asked, found, None))
                if verdict.serve:
                    return found, verdict.reason
        return None

    async def _work(self, work: _Work, problems: list[str], emit: Emit, clock: Clock) -> None:
        try:
            async with asyncio.timeout(self._deadline) as over:
                until = min(over.when() or math.inf, work.asked.deadline)
                left = until - asyncio.get_running_loop().time()
                until -= min(_TIME_TO_STORE, left / 5)
                await self._search_and_answer(work, problems, emit, clock, until)
        except RagError as error:
            emit(failed(error))
        except TimeoutError:
            emit(failed(DeadlineExceeded(f"no answer within {self._deadline:g} seconds; retry, or raise the deadline")))

    async def _search_and_answer(
        self, work: _Work, problems: list[str], emit: Emit, clock: Clock, until: float
    ) -> None:
        asked = work.asked
        if self._mode == "on" and not problems:  # another process may just have stored it
            exact = await self._tolerant(self._cache.exact(asked.tag, asked.question), problems)
            if exact is not None and exact.digests == asked.digests:
                reason = "the same question, answered a moment ago"
                for event in self._replay(asked, exact, "exact", clock, similarity=1.0, reason=reason):
                    emit(event)
                return
        hits, failed = await self._search(asked, work.vectors)
        asked = work.asked = replace(asked, marks=asked.marks + failed)
        clock.lap("search")
        evidence = evidence_of(hits)
        if not failed:
            served = await self._revalidated(work, hits, evidence, clock, problems)
            served = served or await self._guarded(work, evidence, clock, problems)
            if served is not None:
                for event in served:
                    emit(event)
                return
        emit(Sources(sources=source_citations(hits), cache=self._state(problems)))
        answer = await self._generated(asked, hits, emit, until)
        clock.lap("answer")
        answer = await self._store(work, answer, evidence, problems)
        clock.lap("cache")
        state = self._state(problems)
        self.counts[state] += 1
        answer = answer.model_copy(
            update={
                "cache": state,
                "cache_reason": work.refused,
                "degraded": answer.degraded + tuple(problems),
                "timings": clock.timings(),
            }
        )
        if work.shadow is not None:
            await self._note_shadow(work, evidence)
        told = _with_scope(asked, answer)
        if told.text != answer.text:
            emit(Delta(text=told.text.removeprefix(answer.text)))
        for event in replayed(told)[2:]:  # its sources and text were already emitted
            emit(event)

    def _state(self, problems: Sequence[str]) -> CacheState:
        """Return the state of the cache for an answer that is not served from it."""
        return "bypass" if problems or self._mode == "off" else "miss"

    async def _search(
        self, asked: AnswerRequest, vectors: Mapping[str, npt.NDArray[np.float32]]
    ) -> tuple[list[Hit], tuple[str, ...]]:
        async with self._searches.slot():
            hits, failed = await self._searcher.search(asked.query, vectors, asked.searched, asked.snapshot)
        return (within_budget(hits, self._model.context_tokens) if self._model else hits), asked.lost + failed

    async def _revalidated(
        self, work: _Work, hits: Sequence[Hit], evidence: Sequence[Evidence], clock: Clock, problems: list[str]
    ) -> Sequence[Event] | None:
        """Serve a stale entry of the same question if the search finds its passages unchanged."""
        entry, asked = work.stale, work.asked
        if entry is None:
            return None
        if entry.question == asked.question:
            moved = None
            if same_evidence(entry.evidence, evidence):
                moved = entry if self._mode == "shadow" else await self._rebase(asked, entry, hits, problems)
        else:  # another spelling of the question may retrieve other passages
            moved = await self._revalidate_other_version(asked, entry, problems)
        if moved is None:
            work.refused = "the cached answer to this question cites passages that have changed since"
            return None
        if self._mode == "shadow":
            work.shadow = (None, "the same question with unchanged passages")
            return None
        clock.lap("cache")
        state: CacheState = "exact" if entry.digests == asked.digests else "revalidated"
        reason = "the same question; documents changed, but not the passages behind the answer"
        return self._replay(asked, moved, state, clock, similarity=1.0, reason=reason)

    async def _guarded(
        self, work: _Work, evidence: Sequence[Evidence], clock: Clock, problems: list[str]
    ) -> Sequence[Event] | None:
        """Serve the entry of another question if the guards accept it and it is still valid."""
        asked = work.asked
        for found in work.near:
            if _is_marked(found.entry.answer, _SHORT_LIVED):
                continue
            verdict = self._judge.judge(_pair(asked, found, evidence))
            entry = found.entry
            if verdict.serve and entry.answer.kind == "none" and not same_evidence(entry.evidence, evidence):
                continue  # a wording that found nothing says little about one that found other passages
            if verdict.serve and entry.digests != asked.digests:
                revalidated = await self._revalidate_other_version(asked, entry, problems)
                if revalidated is None:
                    work.refused = work.refused or "the documents behind an equivalent cached question have changed"
                    continue
                entry = revalidated
            if verdict.serve and self._mode == "on":
                await self._tolerant(self._cache.store.used(asked.tag, entry.key), problems)
                clock.lap("cache")
                return self._replay_near(asked, replace(found, entry=entry), verdict.reason, clock)
            if verdict.serve:
                work.shadow = work.shadow or (found, verdict.reason)
                continue
            self.counts[f"refused:{verdict.guard}"] += 1
            if work.refused is None:
                work.refused = f"nearest cached question refused by {verdict.guard}: {verdict.reason}"
                note = self._note("near_miss", asked, found, evidence, guard=verdict.guard, risk=verdict.risk)
                await self._tolerant(self._cache.store.note(note), [])  # the answer is stored all the same
        return None

    async def _revalidate_other_version(self, asked: AnswerRequest, entry: Entry, problems: list[str]) -> Entry | None:
        """Move a stale entry to the current documents if its own question still finds the same passages."""
        own = replace(asked, query=replace(asked.query, question=entry.question))
        embedded = await self._embedders.vectors(entry.question, asked.fingerprints)
        hits, failed = await self._search(replace(own, failed=embedded.failed), embedded.found)
        if embedded.marks or failed or not same_evidence(entry.evidence, evidence_of(hits)):
            return None
        return await self._rebase(own, entry, hits, problems)

    async def _rebase(self, asked: AnswerRequest, entry: Entry, hits: Sequence[Hit], problems: list[str]) -> Entry:
        # The passages may have moved within their documents.
        places = {hit.chunk_id: hit for hit in hits}
        citations = tuple(
            citation.model_copy(
                update={
                    name: getattr(places[citation.chunk_id], name)
                    for name in ("source", "link", "path", "doc_id", "page", "start", "end")
                    if citation.chunk_id in places
                }
            )
            for citation in entry.answer.citations
        )
        answer = entry.answer.model_copy(update={"citations": citations})
        moved = await self._tolerant(self._cache.move(asked.tag, entry, answer, asked.digests), problems)
        return moved or entry.model_copy(update={"answer": answer, "digests": dict(asked.digests)})

    async def _generated(self, asked: AnswerRequest, hits: Sequence[Hit], emit: Emit, until: float) -> Answer:
        published = asked.searched[0].current
        degraded = asked.marks
        answer: Answer | None = None
        if self._weak(asked.question, hits, published):
            self.counts["weak_evidence"] += 1
            answer = not_found(asked.question, degraded=degraded)
        elif self._model is not None:
            try:
                answer = await self._asked_in_time(self._model, asked.question, hits, emit, until)
            except ModelUnavailable as error:
                self.counts["model_failures"] += 1
                _log.warning("language model failed, answering with an extract: %s", error)
                reason = str(error).removeprefix("every language model failed: ")
                degraded = (*degraded, f"{MODEL_UNAVAILABLE}:{reason}")
            else:
                return answer.model_copy(update={"degraded": (*answer.degraded, *degraded)})
        if answer is None:
            embedder = await self._embedders.embedder(published.fingerprint)
            read = published.embedder_reads
            answer = await asyncio.to_thread(extract, embedder, asked.question, hits, read=read, degraded=degraded)
        emit(replayed(answer)[1])
        return answer

    async def _asked_in_time(
        self, model: LanguageModel, question: str, hits: Sequence[Hit], emit: Emit, until: float
    ) -> Answer:
        """Wait for a slot and ask the model; raises `ModelUnavailable` if there is none before `until`."""
        try:
            async with asyncio.timeout_at(until + _GRACE), self._calls.slot():
                self.counts["model_calls"] += 1
                return await generate(model, question, hits, emit, until=until)
        except TimeoutError as error:
            raise ModelUnavailable("other questions kept the model busy until the deadline") from error

    async def _store(self, work: _Work, answer: Answer, evidence: Sequence[Evidence], problems: list[str]) -> Answer:
        """Store the answer unless it is degraded: the next request may get a complete one."""
        asked = work.asked
        allowed = (*_FAULTLESS, *_SHORT_LIVED)
        faults = [mark for mark in answer.degraded if mark.partition(":")[0] not in allowed]
        if self._mode == "off" or problems or faults:
            return answer
        cited = {citation.chunk_id for citation in answer.citations}
        marked = [replace(one, cited=one.chunk_id in cited) for one in evidence]
        answer = answer.model_copy(update={"entry": f"{asked.tag}:{question_key(asked.question)}"})
        by_fallback = self._model is not None and answer.model not in (None, self._model.name)
        short = by_fallback or not _is_good(answer)
        vector = _cache_vector(work.vectors)
        kept = self._cache.keep(asked.tag, asked.tenant, vector, answer, asked.digests, marked, short_lived=short)
        return answer if await self._tolerant(kept, problems) else answer.model_copy(update={"entry": None})

    def _replay_near(self, asked: AnswerRequest, found: CachedAnswer, reason: str, clock: Clock) -> Sequence[Event]:
        return self._replay(
            asked,
            found.entry,
            "semantic",
            clock,
            similarity=round(found.similarity, 4),
            reason=reason,
            cached_question=found.entry.question,
        )

    def _replay(
        self, asked: AnswerRequest, entry: Entry, state: CacheState, clock: Clock, *, reason: str, **more: Any
    ) -> Sequence[Event]:
        self.counts[state] += 1
        update = {
            "question": asked.question,
            "cache": state,
            "cache_reason": reason,
            "entry": f"{asked.tag}:{entry.key}",
            "tokens": {},
            "cost": 0.0,
            "timings": clock.timings(),
            **more,
        }
        marks = (mark for mark in asked.marks if mark not in entry.answer.degraded)
        update["degraded"] = (*entry.answer.degraded, *marks)
        return replayed(_with_scope(asked, entry.answer.model_copy(update=update)))

    def _note(
        self,
        kind: Literal["near_miss", "shadow"],
        asked: AnswerRequest,
        found: CachedAnswer,
        evidence: Sequence[Evidence],
        **more: Any,
    ) -> ReviewItem:
        return ReviewItem(
            kind=kind,
            tenant=asked.tenant,
            asked=asked.question,
            cached=found.entry.question,
            similarity=round(found.similarity, 4),
            asked_evidence=tuple(evidence),
            cached_evidence=found.entry.evidence,
            at=self._clock(),
            **more,
        )

    async def _note_shadow(self, work: _Work, evidence: Sequence[Evidence]) -> None:
        if work.shadow is None:
            return
        found, _ = work.shadow
        self.counts["shadow"] += 1
        _log.info("shadow mode: would have served from the cache")
        if found is not None:
            await self._tolerant(self._cache.store.note(self._note("shadow", work.asked, found, evidence)), [])

    async def _tolerant(self, operation: Awaitable[_T], problems: list[str]) -> _T | None:
        try:
            return await operation
        except CacheUnavailable as error:
            if CACHE_UNAVAILABLE not in problems:
                problems.append(CACHE_UNAVAILABLE)
                _log.log(logging.DEBUG if error.known else logging.WARNING, "bypassing the cache: %s", error)
            return None


def _with_scope(asked: AnswerRequest, answer: Answer) -> Answer:
    """Return the answer with what its question names outside the scope, which depends on what the caller may see."""
    marks = outside_scope(asked.question, asked.entries, asked.snapshot.entries, answer.kind)
    remarks = "" if answer.model else "".join(f"\n\n{in_words(mark)}." for mark in marks)
    return answer.model_copy(update={"text": answer.text + remarks, "degraded": (*answer.degraded, *marks)})


def _is_good(answer: Answer) -> bool:
    """Return whether an answer may be served for another question, and for as long as RAG_CACHE_TTL."""
    return answer.kind != "none" and not _is_marked(answer, _SHORT_LIVED)


def _is_marked(answer: Answer, marks: Sequence[str]) -> bool:
    return any(mark.partition(":")[0] in marks for mark in answer.degraded)


def _cache_vector(vectors: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32] | None:
    """Return the vector that indexes the question in the cache: that of the scope's first embedder."""
    return vectors[min(vectors)] if vectors else None


def _pair(asked: AnswerRequest, found: CachedAnswer, evidence: Sequence[Evidence] | None) -> Pair:
    return Pair(
        asked=asked.question,
        cached=found.entry.question,
        similarity=found.similarity,
        asked_evidence=evidence,
        cached_evidence=found.entry.evidence if evidence is not None else None,
        scope_words=asked.scope_words,
    )


def _shared(answer: Answer, question: str, clock: Clock) -> Answer:
    update = {"question": question, "shared": True, "tokens": {}, "cost": 0.0, "timings": clock.timings()}
    return answer.model_copy(update=update)
