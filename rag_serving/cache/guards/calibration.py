"""Chooses cosine thresholds from labelled pairs of questions.

The threshold of a bound is the least cosine at or above which the pairs that pass the guards have a share of wrong hits
whose 95 % upper limit is within the bound. Judging a pair belongs to `judge`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag_serving.cache.guards.judge import Calibration, Pair, Threshold, refusal
from rag_serving.errors import InvalidArgument

CONFIDENCE = 0.95
LEAST_SIMILARITY = 0.8
"""Cosine below which no pair is judged; with the packaged model such questions are unrelated."""
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
"""Bounds on the share of wrong hits for which thresholds are chosen."""
LEAST_PAIRS = 50
LEAST_OF_EITHER = 10


@dataclass(frozen=True, slots=True)
class Labelled:
    """A pair of questions; `same` if the answer to the cached one answers the one asked."""

    pair: Pair
    same: bool


def upper_bound(wrong: int, served: int, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided upper limit of a proportion by Clopper and Pearson (Biometrika 1934); 1 if none is served.

    It is the rate at which `wrong` or fewer have the probability 1 - `confidence`, found by bisection.
    """
    if served <= 0 or wrong >= served:
        return 1.0
    low, high = wrong / served, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(wrong, served, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(wrong: int, served: int, rate: float) -> float:
    """Return the probability of `wrong` or fewer of `served` at a rate, computed with logarithms against underflow."""
    logs: list[float] = []
    for count in range(wrong + 1):
        ways = math.lgamma(served + 1) - math.lgamma(count + 1) - math.lgamma(served - count + 1)
        logs.append(ways + count * math.log(rate) + (served - count) * math.log1p(-rate))
    top = max(logs)
    return math.exp(top) * sum(math.exp(value - top) for value in logs)


def calibrate(
    labelled: Iterable[Labelled],
    *,
    least_similarity: float = LEAST_SIMILARITY,
    sure: float = 0.98,
    bounds: Sequence[float] = BOUNDS,
    margin: float = 1.0,
    fingerprint: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Calibration:
    """Return a calibration with one threshold per bound.

    Only pairs that pass the guards count. All pairs at or above `sure` are treated as one step. A `margin` of 2 halves
    every bound; use it for pairs that influenced the rules or word lists. The bounds are not corrected for multiple
    comparisons. Raises `InvalidArgument` if the pairs are too few or nearly all of one kind.
    """
    near = [one for one in labelled if one.pair.similarity >= least_similarity]
    different = sum(not one.same for one in near)
    if len(near) < LEAST_PAIRS or not LEAST_OF_EITHER <= different <= len(near) - LEAST_OF_EITHER:
        raise InvalidArgument(
            f"{len(near)} pairs have a similarity of {least_similarity} or more, {different} of them are different "
            f"questions; a calibration needs at least {LEAST_PAIRS} pairs, {LEAST_OF_EITHER} of each kind"
        )
    passed = [one for one in near if refusal(one.pair, sure) is None]
    steps = _steps(passed, sure)
    counts: dict[str, float] = {
        "same": len(near) - different,
        "different": different,
        "past the guards": len(passed),
        "of them different": sum(not one.same for one in passed),
        "margin": margin,
    }
    return Calibration(
        format=2,
        fingerprint=fingerprint,
        least_similarity=least_similarity,
        thresholds=tuple(_threshold(steps, bound, margin) for bound in sorted(bounds)),
        provenance={**(provenance or {}), "pairs": counts},
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """The hits when every pair at or above a cosine is served."""

    similarity: float
    served: int
    wrong: int


def _steps(labelled: Iterable[Labelled], sure: float) -> list[_Step]:
    """Return one step per cosine (rounded down to five digits), lowest first; cosines from `sure` on are one step."""
    hits = sorted((min(math.floor(one.pair.similarity * 1e5) / 1e5, sure), one.same) for one in labelled)
    hits.reverse()
    steps: list[_Step] = []
    wrong = 0
    for place, (similarity, same) in enumerate(hits):
        wrong += not same
        if place + 1 == len(hits) or hits[place + 1][0] != similarity:
            steps.append(_Step(similarity, place + 1, wrong))
    return steps[::-1]


def _threshold(steps: Iterable[_Step], max_error: float, margin: float) -> Threshold:
    """Return the lowest step within a bound; without one, a threshold whose cosine is None."""
    allowed = max_error / margin
    for step in steps:
        # Comparing the upper bound with a rate takes one sum; computing the bound takes sixty.
        if step.wrong / step.served <= allowed and _at_most(step.wrong, step.served, allowed) <= 1 - CONFIDENCE:
            return Threshold(
                max_error=max_error,
                similarity=step.similarity,
                served=step.served,
                wrong=step.wrong,
                bound=round(upper_bound(step.wrong, step.served), 5),
            )
    return Threshold(max_error=max_error, similarity=None)
