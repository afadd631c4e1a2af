"""Percentiles, recall, timing and exact search. Imports only numpy, because the peers use it as well."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of each question in milliseconds, questions per second, and CPU milliseconds per question.

    CPU time counts all threads of this process; other work on the machine disturbs it less than latency.
    """

    milliseconds: tuple[float, ...]
    per_second: float
    cpu: float

    @property
    def p50(self) -> float:
        return percentile(self.milliseconds, 50)

    @property
    def p95(self) -> float:
        return percentile(self.milliseconds, 95)


class Stopwatch:
    """Measures wall-clock and CPU time from its creation."""

    def __init__(self) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def timing(self, milliseconds: Sequence[float]) -> Timing:
        """Return the timing of questions with these latencies."""
        seconds, cpu = time.perf_counter() - self._started, time.process_time() - self._cpu
        return Timing(tuple(milliseconds), len(milliseconds) / seconds, cpu * 1000 / len(milliseconds))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least value that at least `percent` percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over several runs: milliseconds, questions per second, CPU milliseconds per question."""

    p50: float
    p95: float
    per_second: float
    cpu: float


def median_of(timings: Sequence[Timing]) -> Figures:
    """Return the medians of several runs."""
    return Figures(
        p50=statistics.median(timing.p50 for timing in timings),
        p95=statistics.median(timing.p95 for timing in timings),
        per_second=statistics.median(timing.per_second for timing in timings),
        cpu=statistics.median(timing.cpu for timing in timings),
    )


def recall(found: Sequence[object], exact: Sequence[object]) -> float:
    """Return the share of the exact results that was found."""
    return len(set(found) & set(exact)) / len(exact) if exact else 1.0


def nearest(vectors: Vectors, questions: Vectors, count: int) -> npt.NDArray[np.int64]:
    """Return the row numbers of the `count` vectors with the greatest inner product with each question, best first.

    The shape is ``(len(questions), count)``. The search is exhaustive.
    """
    best = np.full((len(questions), 0), -np.inf, np.float32)
    rows = np.zeros((len(questions), 0), np.int64)
    for at in range(0, len(vectors), _ROWS_AT_ONCE):
        scores = questions @ np.asarray(vectors[at : at + _ROWS_AT_ONCE]).T
        top = np.argpartition(-scores, min(count, scores.shape[1]) - 1, axis=1)[:, :count]
        best = np.concatenate([best, np.take_along_axis(scores, top, axis=1)], axis=1)
        rows = np.concatenate([rows, top + at], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return rows


def in_threads(ask: Callable[[int], None], questions: Sequence[int], at_once: int) -> Timing:
    """Ask all questions from `at_once` concurrent threads."""

    def timed(question: int) -> float:
        started = time.perf_counter()
        ask(question)
        return (time.perf_counter() - started) * 1000

    with ThreadPoolExecutor(at_once) as pool:
        watch = Stopwatch()
        milliseconds = tuple(pool.map(timed, questions))
        return watch.timing(milliseconds)
