"""Measure the real client on a real lake and Redis. Run it in its own process, whose memory is the client's."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
from redis import Redis

from benchmarks.cache.timing import Figures, cycled, measured, one_by_one, percentile
from benchmarks.guards.rewordings import rewordings
from benchmarks.trace.questions import near_misses
from rag_serving.answering.generation import LanguageModel
from rag_serving.cache.memory_store import MemoryStore
from rag_serving.cache.normalization import normalise
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.results import Answer
from rag_serving.settings import ServingSettings

QUESTIONS = Path(__file__).parents[2] / "examples" / "questions.jsonl"
SURE = 0.98
_PLACES = ("Bergen", "Porto", "Osaka")
_MIXED = {"exact": 88, "sure": 6, "guarded": 3, "miss": 3}
"""Percentages of the memory test."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its scope and tenant."""

    text: str
    scope: dict[str, list[str]] = field(hash=False)
    tenant: str = "default"


@dataclass
class Found:
    """Questions by kind of hit."""

    exact: list[Question] = field(default_factory=list[Question])
    sure: list[Question] = field(default_factory=list[Question])
    guarded: list[Question] = field(default_factory=list[Question])
    near: list[Question] = field(default_factory=list[Question])
    """Near misses, which no cache should serve."""
    near_served: int = 0
    reworded: int = 0
    """Number of paraphrases that were tried; those served are in `sure` and `guarded`."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to measure, and on what."""

    lake: str
    redis: str
    spare: str
    """URL of the Redis that is stopped."""
    asks: int
    callers: int
    long_run: int


def read_questions(shards: Collection[str]) -> list[Question]:
    """Return the distinct sample questions that these shards answer."""
    found: dict[str, Question] = {}
    for line in QUESTIONS.read_text("utf-8").splitlines():
        row = json.loads(line)
        scope = {name: row[name] for name in ("regions", "departments") if row.get(name)}
        if "/".join(row["document"].split("/")[:2]) in shards:
            found.setdefault(normalise(row["question"]), Question(row["question"], scope))
    return list(found.values())


def others(question: str) -> list[str]:
    """Return paraphrases of a question, made by rules, from nearly identical to only the same in meaning."""
    bare = question.rstrip("?")
    lowered = bare[:1].lower() + bare[1:]
    light = [f"{bare} ;", f"{bare}, please?", f"Please: {question}", f"{bare} exactly?", f"So, {lowered}?"]
    return [text for text in (*light, *rewordings(question, 6)) if normalise(text) != normalise(question)]


async def _instant(**_arguments: Any) -> AsyncIterator[Any]:
    async def said() -> AsyncIterator[Any]:
        yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content="It is as the source says [1]."))])

    return said()


def client_of(lake: str, **settings: Any) -> AsyncRagClient:
    """Return a client with an instant language model, and an in-memory cache unless `redis_url` is given."""
    store = None if settings.get("redis_url") else MemoryStore(10_000)
    return AsyncRagClient(
        ServingSettings.model_validate({"lake_uri": lake, **settings}),
        cache_store=store,
        model=LanguageModel("instant", timeout=30, retries=0, max_tokens=100, completion=_instant),
    )


async def ask(client: AsyncRagClient, question: Question) -> Answer:
    """Ask the question with its scope and tenant."""
    return await client.ask(question.text, tenant=question.tenant, **question.scope)


async def sort_out(client: AsyncRagClient, samples: Sequence[Question], callers: int) -> Found:
    """Store the sample questions, and sort paraphrases by how they are served."""
    found = Found()
    draw = random.Random(1)
    for question in samples:
        await ask(client, question)
        found.exact.append(question)
    for base in list(found.exact):
        for text in others(base.text):
            question = Question(text, base.scope)
            answer = await ask(client, question)
            found.reworded += 1
            if answer.cache == "semantic":
                (found.sure if (answer.similarity or 0) >= SURE else found.guarded).append(question)
            else:
                await client.feedback(answer, correct=False)  # evict it: only the samples may be stored
        for text in near_misses(base.text, (), _PLACES, draw)[:2]:
            question = Question(text, base.scope)
            answer = await ask(client, question)
            found.near.append(question)
            found.near_served += answer.cache == "semantic"
            if answer.cache == "miss":
                await client.feedback(answer, correct=False)
    # Concurrent callers of one question share its answer, so every caller gets its own question, by tenant.
    for number in itertools.count(1):
        if min(len(found.exact), len(found.sure), len(found.guarded)) >= callers or number > 10:
            return found
        exact, sure, guarded = (
            [Question(one.text, one.scope, f"tenant-{number}") for one in some if one.tenant == "default"]
            for some in (found.exact, found.sure, found.guarded)
        )
        for question in exact:
            await ask(client, question)
        found.exact += exact
        found.sure += sure
        found.guarded += guarded
    raise AssertionError


class Misses:
    """Generates questions that were never asked before."""

    def __init__(self, samples: Sequence[Question]) -> None:
        self._samples = itertools.cycle(samples)
        self._numbers = itertools.count(1000)

    def __call__(self, count: int) -> list[Question]:
        """Return `count` new questions."""
        made: list[Question] = []
        for number, sample in itertools.islice(zip(self._numbers, self._samples, strict=False), count):
            made.append(Question(f"{sample.text.rstrip('?')} under order {number}?", sample.scope))
        return made


def kinds_of(found: Found, misses: Misses) -> dict[str, Callable[[int], list[Question]]]:
    """Return, by kind, a function from a number to that many questions."""
    kinds: dict[str, Callable[[int], list[Question]]] = {}
    for kind in ("exact", "sure", "guarded"):
        if getattr(found, kind):
            kinds[kind] = lambda count, kind=kind: cycled(getattr(found, kind), count)
    kinds["miss"] = misses
    return kinds


async def without_redis(task: Task, samples: Sequence[Question]) -> dict[str, Any]:
    """Time a miss while Redis is stopped, compared with no cache and with a cache in memory."""
    stopped = client_of(task.lake, redis_url=task.spare, cache_prefix="spare")
    clients = {
        "breaker open": stopped,
        "cache off": client_of(task.lake, cache_mode="off"),
        "cache in memory": client_of(task.lake),
    }
    for client in clients.values():
        await client.warm()
        for question in samples[:5]:
            await ask(client, question)
    with Redis.from_url(task.spare) as direct:
        direct.shutdown(nosave=True)
    misses = Misses(samples)
    started = time.perf_counter()
    first = await ask(stopped, misses(1)[0])
    figures: dict[str, Any] = {
        "first question, ms": (time.perf_counter() - started) * 1000,
        "marked": "cache_unavailable" in first.degraded,
    }
    took: dict[str, list[float]] = {name: [] for name in clients}
    for number, question in enumerate(misses(max(task.asks, 40))):
        names = list(clients)
        for name in names[number % 3 :] + names[: number % 3]:  # rotate the order
            (one,), *_ = await one_by_one([question], lambda asked, name=name: _answered(clients[name], asked))
            took[name].append(one)
    figures |= {name: {"p50": percentile(ms, 0.5), "p95": percentile(ms, 0.95)} for name, ms in took.items()}
    # Compare per question, because times vary more between questions than between clients.
    for other in ("cache off", "cache in memory"):
        added = sorted(a - b for a, b in zip(took["breaker open"], took[other], strict=True))
        figures[f"added to {other}, median ms"] = percentile(added, 0.5)
        figures[f"added to {other}, mean ms"] = sum(added) / len(added)
    for client in clients.values():
        await client.close()
    return figures


async def _answered(client: AsyncRagClient, question: Question) -> bool:
    return (await ask(client, question)).cache in ("exact", "semantic", "revalidated")


async def long_run(client: AsyncRagClient, found: Found, misses: Misses, count: int) -> list[dict[str, float]]:
    """Return the memory of this process after the first 1,000 questions and at ten later points."""
    draw = random.Random(2)
    kinds = kinds_of(found, misses)
    names = [name for name in _MIXED if name in kinds]
    cycles = {name: itertools.cycle(kinds[name](10_000)) for name in names if name != "miss"}
    marks = sorted({1_000, *(round(1_000 + (count - 1_000) * part / 10) for part in range(1, 11))})
    done, seen = 0, list[dict[str, float]]()
    for mark in marks:
        waiting = iter(range(mark - done))

        async def caller(waiting: Any = waiting) -> None:
            for _ in waiting:
                kind = draw.choices(names, [_MIXED[name] for name in names])[0]
                await ask(client, misses(1)[0] if kind == "miss" else next(cycles[kind]))

        await asyncio.gather(*(caller() for _ in range(16)))
        done = mark
        gc.collect()
        seen.append({"questions": mark, "MiB": psutil.Process().memory_info().rss / 2**20})
    return seen


async def _measure(task: Task) -> dict[str, Any]:
    # A long timeout: on a busy machine one late reply would open the circuit breaker and turn hits into misses.
    settings = {"cache_prefix": "bench", "cache_entries": 20_000, "cache_timeout": 5}
    client = client_of(task.lake, redis_url=task.redis, **settings)
    await client.warm()
    samples = read_questions({one.shard for one in await client.shards()})
    found = await sort_out(client, samples, task.callers)
    misses = Misses(samples)
    kinds = kinds_of(found, misses)
    for questions in kinds.values():
        await one_by_one(questions(20), lambda question: _answered(client, question))
    figures: dict[str, Figures] = await measured(
        kinds, lambda question: _answered(client, question), task.asks, task.callers
    )
    memory = await long_run(client, found, misses, task.long_run) if task.long_run else []
    shared = client.stats().get("shared", 0)
    await client.close()
    return {
        "figures": {kind: asdict(one) for kind, one in figures.items()},
        "questions": {
            "stored": [one.text for one in found.exact if one.tenant == "default"],
            "sure": [one.text for one in found.sure if one.tenant == "default"],
            "guarded": [one.text for one in found.guarded if one.tenant == "default"],
            "near": [one.text for one in found.near],
            "miss": [one.text for one in misses(2_000)],
        },
        "near_served": found.near_served,
        "reworded": found.reworded,
        "memory": memory,
        "shared": shared,
        "without redis": await without_redis(task, samples),
    }


def measure(task: Task) -> dict[str, Any]:
    """Run all measurements."""
    logging.getLogger("rag_serving").setLevel(logging.ERROR)  # it warns about every question without a cache
    return asyncio.run(_measure(task))
