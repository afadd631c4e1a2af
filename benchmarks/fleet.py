"""Simulate a fleet of workers: how long a backfill takes, and how much of the time the workers are idle.

Shards have sizes from a log-normal distribution, as offices have. A run costs a fixed time, and a time for each
document; Dagster's daemon hands out about one run a second. The default costs were measured on two cores, see
docs/development/results.md. Nothing is executed.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

from benchmarks.reporting import arguments, show


@dataclass(frozen=True)
class Fleet:
    """Workers that index one shard at a time, and the cost of a run."""

    workers: int
    documents_per_second: float
    """Of one worker."""
    run_seconds: float
    """Of a run, whatever its size."""
    runs_per_second: float
    """Handed out by the daemon."""


@dataclass(frozen=True)
class Outcome:
    """How a backfill went."""

    seconds: float
    idle: float
    """Share of the workers' time until the end in which they had nothing to do."""
    longest_run: float


def sizes(shards: int, documents: int, spread: float, seed: int) -> list[int]:
    """Return the documents of each shard, in the order in which a backfill names them."""
    chance = random.Random(seed)
    weights = [chance.lognormvariate(0, spread) for _ in range(shards)]
    return [max(1, round(documents * weight / sum(weights))) for weight in weights]


def simulate(fleet: Fleet, documents: list[int]) -> Outcome:
    """Return the outcome of a backfill of these shards, in this order."""
    free = [0.0] * fleet.workers
    busy = longest = end = 0.0
    for number, count in enumerate(documents):
        duration = fleet.run_seconds + count / fleet.documents_per_second
        start = max(number / fleet.runs_per_second, heapq.heappop(free))
        heapq.heappush(free, start + duration)
        busy, longest, end = busy + duration, max(longest, duration), max(end, start + duration)
    return Outcome(end, 1 - busy / (end * fleet.workers), longest)


def main() -> None:
    """Print a table of outcomes."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=26.0, help="documents/s of a worker with two cores (AMX: 49.7)")
    parser.add_argument("--run-seconds", type=float, default=1.0, help="of a run, whatever its size")
    parser.add_argument("--runs-per-second", type=float, default=1.0, help="that the daemon hands out")
    parser.add_argument("--spread", type=float, default=1.2, help="sigma of the sizes of shards; 0: all equal")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    named = sizes(options.shards, options.documents, options.spread, options.seed)
    rows: list[dict[str, object]] = []
    for workers in (1, 5, 20, 40, 100):
        for order, documents in (("as named", named), ("largest first", sorted(named, reverse=True))):
            fleet = Fleet(workers, options.rate, options.run_seconds, options.runs_per_second)
            found = simulate(fleet, documents)
            rows.append(
                {
                    "order": order,
                    "workers": workers,
                    "minutes": round(found.seconds / 60, 1),
                    "idle": f"{found.idle:.0%}",
                    "documents/s": round(options.documents / found.seconds, 1),
                    "longest run, minutes": round(found.longest_run / 60, 1),
                }
            )
    show(f"{options.documents} documents in {options.shards} shards, simulated", rows, options.json)


if __name__ == "__main__":
    main()
