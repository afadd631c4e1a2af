"""Time questions, sequential and concurrent. Imports nothing of this project, because the peers use it as well."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one kind of question."""

    p50: float
    """Milliseconds."""
    p95: float
    cpu: float
    """Milliseconds of CPU per question in the asking process."""
    per_second: float
    """Questions per second with many concurrent callers."""
    served: float
    """Share of questions answered by the cache."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures for JSON, which a peer prints."""
        return asdict(self)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the first value, in ascending order, that has at least this share of the values before it."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def one_by_one(questions: Sequence[_T], ask: Callable[[_T], Awaitable[bool]]) -> tuple[list[float], float, float]:
    """Return the milliseconds of each question, the mean CPU milliseconds, and the share for which `ask` is true."""
    took: list[float] = []
    served = 0
    cpu = time.process_time()
    for question in questions:
        started = time.perf_counter()
        served += await ask(question)
        took.append((time.perf_counter() - started) * 1000)
    return took, (time.process_time() - cpu) * 1000 / len(questions), served / len(questions)


async def at_once(questions: Sequence[_T], ask: Callable[[_T], Awaitable[bool]], callers: int) -> float:
    """Return the questions per second of concurrent callers, each of which asks again as soon as it has an answer."""
    waiting = iter(questions)

    async def caller() -> None:
        for question in waiting:
            await ask(question)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(questions) / (time.perf_counter() - started)


def cycled(questions: Sequence[_T], count: int) -> list[_T]:
    """Return `count` questions, starting over after the last one."""
    return list(itertools.islice(itertools.cycle(questions), count)) if questions else []


async def measured(
    kinds: dict[str, Callable[[int], list[_T]]], ask: Callable[[_T], Awaitable[bool]], count: int, callers: int
) -> dict[str, Figures]:
    """Return figures by kind. Each kind maps a number to that many questions. Kinds take turns."""
    rounds = 4  # interleaved, so that other work affects all kinds alike
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu = dict.fromkeys(kinds, 0.0)
    served = dict.fromkeys(kinds, 0.0)
    for _ in range(rounds):
        for kind, questions in kinds.items():
            asked = questions(max(count // rounds, 1))
            milliseconds, spent, share = await one_by_one(asked, ask)
            took[kind] += milliseconds
            cpu[kind] += spent / rounds
            served[kind] += share / rounds
    found: dict[str, Figures] = {}
    for kind, questions in kinds.items():
        await at_once(questions(callers), ask, callers)  # open the connections
        rate = await at_once(questions(max(count, 2 * callers)), ask, callers)
        found[kind] = Figures(percentile(took[kind], 0.5), percentile(took[kind], 0.95), cpu[kind], rate, served[kind])
    return found
