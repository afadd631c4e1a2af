"""Chooses thresholds of the score from labelled pairs of questions.

The threshold of a bound is the least score at or above which the pairs that pass the guards have a share of wrong hits
whose 95 % upper limit is within the bound. Judging a pair belongs to `judge`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag_serving.cache.guards.judge import Calibration, Pair, Threshold, refusal, score
from rag_serving.errors import InvalidArgument

CONFIDENCE = 0.95
LEAST_SIMILARITY = 0.75
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
    fingerprint: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Calibration:
    """Return a calibration with one threshold per bound.

    Only pairs that pass the guards count, and evidence only below the cosine `sure`. The bounds are not corrected for
    multiple comparisons. Raises `InvalidArgument` if the pairs are too few or nearly all of one kind.
    """
    near = [one for one in labelled if one.pair.similarity >= least_similarity]
    different = sum(not one.same for one in near)
    if len(near) < LEAST_PAIRS or not LEAST_OF_EITHER <= different <= len(near) - LEAST_OF_EITHER:
        raise InvalidArgument(
            f"{len(near)} pairs have a similarity of {least_similarity} or more, {different} of them are different "
            f"questions; a calibration needs at least {LEAST_PAIRS} pairs, {LEAST_OF_EITHER} of each kind"
        )
    passed = [(score(one.pair, sure), one.same) for one in near if refusal(one.pair, sure) is None]
    steps = _steps(passed)
    counts: dict[str, float] = {
        "same": len(near) - different,
        "different": different,
        "past the guards": len(passed),
        "of them different": sum(not same for _, same in passed),
    }
    return Calibration(
        format=3,
        fingerprint=fingerprint,
        least_similarity=least_similarity,
        thresholds=tuple(_threshold(steps, bound) for bound in sorted(bounds)),
        provenance={**(provenance or {}), "pairs": counts},
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """The hits when every pair at or above a score is served."""

    score: float
    served: int
    wrong: int


def _steps(scores: Iterable[tuple[float, bool]]) -> list[_Step]:
    """Return one step per score (rounded down to five digits), lowest first."""
    hits = sorted((math.floor(reached * 1e5) / 1e5, same) for reached, same in scores)
    hits.reverse()
    steps: list[_Step] = []
    wrong = 0
    for place, (reached, same) in enumerate(hits):
        wrong += not same
        if place + 1 == len(hits) or hits[place + 1][0] != reached:
            steps.append(_Step(reached, place + 1, wrong))
    return steps[::-1]


def _threshold(steps: Iterable[_Step], max_error: float) -> Threshold:
    """Return the lowest step within a bound; without one, a threshold whose score is None."""
    for step in steps:
        # Comparing the upper bound with a rate takes one sum; computing the bound takes sixty.
        if step.wrong / step.served <= max_error and _at_most(step.wrong, step.served, max_error) <= 1 - CONFIDENCE:
            return Threshold(
                max_error=max_error,
                score=step.score,
                served=step.served,
                wrong=step.wrong,
                bound=round(upper_bound(step.wrong, step.served), 5),
            )
    return Threshold(max_error=max_error, score=None)
