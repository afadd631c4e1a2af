"""Timing of questions, one after the other and many at once. Imports nothing of this project: peers time by it too."""

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
    """Of one kind of question."""

    p50: float
    """Milliseconds."""
    p95: float
    cpu: float
    """Milliseconds of CPU in the asking process, a question."""
    per_second: float
    """With many callers at once."""
    served: float
    """Share answered by the cache."""

    def as_json(self) -> dict[str, Any]:
        """For a peer to print."""
        return asdict(self)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def one_by_one(questions: Sequence[_T], ask: Callable[[_T], Awaitable[bool]]) -> tuple[list[float], float, float]:
    """Milliseconds of each, milliseconds of CPU a question, and the share for which `ask` is true."""
    took: list[float] = []
    served = 0
    cpu = time.process_time()
    for question in questions:
        started = time.perf_counter()
        served += await ask(question)
        took.append((time.perf_counter() - started) * 1000)
    return took, (time.process_time() - cpu) * 1000 / len(questions), served / len(questions)


async def at_once(questions: Sequence[_T], ask: Callable[[_T], Awaitable[bool]], callers: int) -> float:
    """Questions a second, with so many callers that each ask the next one as soon as theirs is answered."""
    waiting = iter(questions)

    async def caller() -> None:
        for question in waiting:
            await ask(question)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(questions) / (time.perf_counter() - started)


def cycled(questions: Sequence[_T], count: int) -> list[_T]:
    """So many of them, from the first again after the last."""
    return list(itertools.islice(itertools.cycle(questions), count)) if questions else []


async def measured(
    kinds: dict[str, Callable[[int], list[_T]]], ask: Callable[[_T], Awaitable[bool]], count: int, callers: int
) -> dict[str, Figures]:
    """Figures by kind; each kind gives so many questions as it is asked for. Other work meets all kinds alike."""
    rounds = 4
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
        await at_once(questions(callers), ask, callers)  # opens their connections
        rate = await at_once(questions(max(count, 2 * callers)), ask, callers)
        found[kind] = Figures(percentile(took[kind], 0.5), percentile(took[kind], 0.95), cpu[kind], rate, served[kind])
    return found
