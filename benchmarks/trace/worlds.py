"""One cache under one trace: its client, and the comparison of every answer with the right one.

An answer served from the cache is one of these:

- *right*, if the model would now give the same answer to this very question;
- *stale*, if the model would now answer the stored question differently, or if the answer cites a passage that is no
  longer in scope;
- *wrong*, if it was stored for another base question;
- *otherwise*, if it was stored for another wording of the same base question, which retrieves other passages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.trace.model import plain
from benchmarks.trace.questions import Base, Questions
from benchmarks.trace.traffic import Asking
from rag_serving.answering.prompts import NOT_FOUND
from rag_serving.cache.guards.judge import Judge, Pair, Verdict
from rag_serving.cache.memory_store import MemoryStore
from rag_serving.cache.normalization import normalise
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.results import Answer

HITS = ("exact", "semantic", "revalidated")

Scope = dict[str, list[str]]
Passages = Mapping[str, set[tuple[str, str]]]
"""Chunk id and text of every published passage, by shard."""


class Threshold(Judge):
    """Serves every pair at or above a cosine: a semantic cache without guards."""

    def __init__(self, least: float) -> None:
        self._least = least

    @property
    def least_similarity(self) -> float:
        """The cosine below which no pair is served."""
        return self._least

    def judge(self, pair: Pair) -> Verdict:
        """Judge by the cosine alone."""
        near = pair.similarity >= self._least
        return Verdict(near, None if near else "similarity", f"similarity {pair.similarity:.3f}", 0.0)


def scope_of(base: Base) -> Scope:
    """Return the scope of a base question: its region for three in ten, its shard for the others."""
    region, _, department = base.shard.partition("/")
    number = base.number if base.near is None else base.near
    return {"regions": [region]} if number % 10 < 3 else {"regions": [region], "departments": [department]}


@dataclass(frozen=True, slots=True)
class Right:
    """The model's answer without a cache, and whether the model was called at all."""

    text: str
    called: bool


Truth = Callable[[str, Scope], Awaitable[Right]]
"""Returns the right answer to a question in a scope, for the current documents."""


@dataclass(frozen=True, slots=True)
class Known:
    """An entry of a cache with its last answer, and the number of publishes before it."""

    entry: str
    scope: Scope
    question: str
    text: str
    part: int


@dataclass
class World:
    """A client with its own cache, and the trace that it is asked."""

    name: str
    exponent: float
    trace: Sequence[Asking]
    client: AsyncRagClient
    store: MemoryStore
    questions: Questions
    truth: Truth
    counts: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    part: int = 0
    """Number of publishes so far."""
    known: dict[str, Known] = field(default_factory=dict[str, Known])
    """Entries by normalised question, without refusals, which expire soon."""
    waiting: dict[str, Known] = field(default_factory=dict[str, Known])
    """Known entries that were not asked again since the last publish."""
    perfect: set[tuple[int, str]] = field(default_factory=set[tuple[int, str]])
    """Contents of a perfect cache: base questions with a right answer."""

    async def ask(self, asking: Asking, passages: Passages) -> None:
        """Ask a question and count the outcome."""
        scope = scope_of(asking.base)
        right = await self.truth(asking.text, scope)
        answer = await self.client.ask(asking.text, **scope)
        text, hit = plain(answer.text), answer.cache in HITS
        counts = self.counts
        counts["asked"] += 1
        counts[answer.cache] += 1
        counts["calls without"] += right.called
        if right.called and (asking.base.number, right.text) in self.perfect:
            counts["perfect"] += 1
        self.perfect.add((asking.base.number, right.text))
        if hit:
            kind = await self._kind(asking, answer, right.text, passages)
            counts[f"hit {kind}"] += 1
            counts[f"saved {kind}"] += right.called
            counts["near misses served"] += kind == "wrong" and asking.wording == "near miss"
            if kind != "right":
                told = f"{asking.text!r} ({answer.cache}, {answer.cached_question!r}): {text!r}, not {right.text!r}"
                self.examples.setdefault(kind, []).append(told)
        elif text != right.text:  # an error of the benchmark
            counts["unsteady"] += 1
        self._kept(asking.text.strip(), scope, answer, text, right.text)

    def published(self) -> None:
        """Note that documents were published."""
        self.part += 1
        self.waiting = dict(self.known)

    def _kept(self, question: str, scope: Scope, answer: Answer, text: str, right: str) -> None:
        key = normalise(question)
        before = self.waiting.pop(key, None)
        if before is not None:
            same = "same" if before.text == right else "other"
            form = "as stored" if before.question == question else "in another form"
            self.counts[f"asked again, {same} answer"] += 1
            self.counts[f"kept, {same} answer"] += answer.cache in HITS
            self.counts[f"asked again {form}, {same} answer: {answer.cache}"] += 1
        if answer.entry is None or text == NOT_FOUND:
            self.known.pop(key, None)
        elif answer.cache == "miss":
            self.known[key] = Known(answer.entry, scope, question, text, self.part)
        elif answer.cache != "semantic" and key in self.known:
            self.known[key] = replace(self.known[key], part=self.part)

    async def _kind(self, asking: Asking, answer: Answer, right: str, passages: Passages) -> str:
        scope, text = scope_of(asking.base), plain(answer.text)
        there = set[tuple[str, str]]().union(*(passages[key] for key in passages if _within(key, scope)))
        if any((citation.chunk_id, citation.text) not in there for citation in answer.citations):
            return "stale"
        if text == right:
            return "right"
        tag, _, key = (answer.entry or "").partition(":")
        entry = await self.store.get(tag, key)
        if entry is None or (await self.truth(entry.question, scope)).text != text:
            return "stale"
        return "otherwise" if self.questions.of(entry.question).number == asking.base.number else "wrong"

    def row(self) -> dict[str, object]:
        """Return a row of the table."""
        counts = self.counts
        without, perfect = counts["calls without"], counts["perfect"]
        hits = sum(counts[state] for state in HITS)
        saved = sum(counts[f"saved {kind}"] for kind in ("right", "otherwise", "wrong", "stale"))
        again, kept = counts["asked again, same answer"], counts["kept, same answer"]
        return {
            "exponent": self.exponent,
            "cache": self.name,
            "hits": f"{hits / counts['asked']:.1%}",
            "calls saved": f"{saved / without:.1%}",
            "saved correctly": f"{counts['saved right'] / without:.1%}",
            "share of perfect cache": f"{counts['saved right'] / perfect:.1%}" if perfect else "",
            "perfect cache": f"{perfect / without:.1%}",
            "wrong hits": counts["hit wrong"],
            "near misses served": counts["near misses served"],
            "wrong share of hits": f"{counts['hit wrong'] / hits:.2%}" if hits else "",
            "other wording": counts["hit otherwise"],
            "stale": counts["hit stale"],
            "kept after publish": f"{kept / again:.1%} of {again}" if again else "",
        }


def _within(key: str, scope: Scope) -> bool:
    region, _, department = key.partition("/")
    return region in scope["regions"] and department in scope.get("departments", [department])


Judging = Callable[[], Judge]
GUARDS = "guards"
RULES: dict[str, tuple[Judging, float]] = {
    GUARDS: (Judge.shipped, 0.98),
    "cosine 0.98": (lambda: Threshold(0.98), 0.98),
    "cosine 0.95": (lambda: Threshold(0.95), 0.95),
    "cosine 0.90": (lambda: Threshold(0.90), 0.90),
}
"""The judge of semantic hits, and the cosine at or above which evidence is not compared, by name."""
