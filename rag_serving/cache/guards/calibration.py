"""Fitting the model of the wording and choosing its thresholds, on labelled pairs of questions.

The model is a logistic regression in which no signal may speak for a hit the more doubtful it is (weights below nought
are set to nought and the rest fitted anew). The threshold for a bound is the highest risk at which the 95 % upper bound
of wrong hits among those served is within it, counted on pairs that the weights behind their risks have not seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rag_serving.cache.guards import signals
from rag_serving.cache.guards.judge import Calibration, Pair, Threshold
from rag_serving.cache.guards.particulars import disagreement, read
from rag_serving.errors import InvalidArgument

CONFIDENCE = 0.95
LEAST_SIMILARITY = 0.8
"""Cosine below which no pair is looked at: the packaged model puts unlike questions there."""
FOLDS = 5
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
"""Bounds on wrong hits that a threshold is chosen for."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A pair of questions, and whether the answer to the cached one answers the one asked."""

    pair: Pair
    same: bool


def clusters(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Every question to one of its cluster: all that a chain of pairs joins."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for one, other in pairs:
        parent[root(one)] = root(other)
    return {text: root(text) for text in list(parent)}


def folded(labelled: Sequence[Labelled], count: int = FOLDS) -> list[list[Labelled]]:
    """The pairs in folds that share no question, by a hash of their clusters."""
    cluster = clusters((one.pair.asked, one.pair.cached) for one in labelled)
    folds: list[list[Labelled]] = [[] for _ in range(count)]
    for one in labelled:
        digest = hashlib.sha256(cluster[one.pair.asked].encode()).digest()
        folds[int.from_bytes(digest[:4], "big") % count].append(one)
    return folds


def upper_bound(wrong: int, served: int, confidence: float = CONFIDENCE) -> float:
    """The one-sided upper limit of a proportion by Clopper and Pearson (Biometrika 1934): 1 where nothing was served.

    The proportion at which so few wrong ones or fewer have the probability 1 - confidence, by bisection of the
    binomial distribution.
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


def _at_most(wrong: int, served: int, p: float) -> float:
    """The probability of `wrong` or fewer of `served` at a rate `p`, in logarithms so that nothing underflows."""
    logs = [
        math.lgamma(served + 1)
        - math.lgamma(i + 1)
        - math.lgamma(served - i + 1)
        + i * math.log(p)
        + (served - i) * math.log1p(-p)
        for i in range(wrong + 1)
    ]
    top = max(logs)
    return math.exp(top) * sum(math.exp(value - top) for value in logs)


def fit_logistic(
    values: Sequence[Sequence[float]],
    wrong: Sequence[bool],
    mass: Sequence[float],
    *,
    penalty: float = 1.0,
) -> tuple[float, list[float]]:
    """Intercept and weights, none below nought, of a logistic regression by Newton's method (IRLS) with an L2 penalty.

    `values` holds a row of signals for each pair, `mass` what each counts. The penalty is on the weights of signals
    scaled to a deviation of 1.
    """
    numeric: Any = np  # its own types lose the element type in half of these operations
    matrix = numeric.asarray(values, dtype=numeric.float64)
    target = numeric.asarray(wrong, dtype=numeric.float64)
    counts = numeric.asarray(mass, dtype=numeric.float64)
    scale = matrix.std(0)
    scale[scale == 0] = 1.0
    active = list(range(len(scale)))
    while True:
        columns = numeric.column_stack([numeric.ones(len(target)), (matrix / scale)[:, active]])
        ridge = numeric.diag([1e-6, *[penalty] * len(active)])
        beta = numeric.zeros(columns.shape[1])
        for _ in range(50):
            p = 1 / (1 + numeric.exp(-numeric.clip(columns @ beta, -30, 30)))
            gradient = columns.T @ (counts * (target - p)) - ridge @ beta
            curvature = columns.T @ (columns * (counts * numeric.maximum(p * (1 - p), 1e-9))[:, None]) + ridge
            step = numeric.linalg.solve(curvature, gradient)
            beta += numeric.clip(step, -5, 5)
            if float(numeric.abs(step).max()) < 1e-8:
                break
        fitted: dict[int, float] = dict(zip(active, beta[1:].tolist(), strict=True))
        if all(weight >= 0 for weight in fitted.values()):
            return float(beta[0]), [fitted.get(column, 0.0) / float(scale[column]) for column in range(len(scale))]
        active = [column for column, weight in fitted.items() if weight > 0]


def highest_risk(risks: Sequence[float], wrong: Sequence[bool], max_error: float) -> float | None:
    """The highest risk, to five digits, up to which the bound of the wrong share of hits is within `max_error`.

    None where there is none. It is the greatest of many that are tried, which the bound does not make up for.
    """
    order = sorted(range(len(risks)), key=lambda row: risks[row])
    best: float | None = None
    count = 0
    for place, row in enumerate(order):
        count += wrong[row]
        following = order[place + 1] if place + 1 < len(order) else None
        if following is not None and risks[following] == risks[row]:
            continue
        if count / (place + 1) <= max_error and upper_bound(count, place + 1) <= max_error:
            best = risks[row]
    return None if best is None else math.floor(best * 1e5) / 1e5


def calibrate(
    folds: Sequence[Sequence[Labelled]],
    *,
    least_similarity: float = LEAST_SIMILARITY,
    sure: float = 0.98,
    bounds: Sequence[float] = BOUNDS,
    margin: float = 1.0,
    fingerprint: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Calibration:
    """A calibration by cross-fitting: each fold's risks come from weights that the other folds were fitted on.

    The folds, two at least, must share no question. The thresholds are chosen on all these risks together, the weights
    that are kept are fitted on all pairs. Only pairs that pass the guards before the model are looked at; those from
    `sure` on are served whatever their risk, and count against every bound. A `margin` of 2 lets these pairs have half
    of each bound only: for pairs that rules or word lists were written with an eye on, which cross-fitting cannot undo.
    Raises `InvalidArgument` where the pairs are too few or nearly all of one label.
    """
    if len(folds) < 2:
        raise InvalidArgument("a calibration wants two folds of pairs at least")
    reached = [_reaching(fold, least_similarity) for fold in folds]
    risks: list[float] = []
    errors: list[bool] = []
    for number, fold in enumerate(reached):
        others = [one for place, other in enumerate(reached) if place != number for one in other]
        draft = _fitted(others, least_similarity)
        for one in fold:
            risk = _risk(draft, one.pair, sure)
            if risk is not None:
                risks.append(risk)
                errors.append(not one.same)
    thresholds: list[Threshold] = []
    for bound in sorted(bounds):
        highest = highest_risk(risks, errors, bound / margin)
        served = [error for risk, error in zip(risks, errors, strict=True) if highest is not None and risk <= highest]
        thresholds.append(
            Threshold(
                max_error=bound,
                risk=highest,
                served=len(served),
                wrong=sum(served),
                bound=round(upper_bound(sum(served), len(served)), 5),
            )
        )
    everything = [one for fold in reached for one in fold]
    counts: dict[str, float] = {
        "folds": len(folds),
        "same": sum(one.same for fold in folds for one in fold),
        "different": sum(not one.same for fold in folds for one in fold),
        "margin": margin,
        "past the guards": len(everything),
        "of them different": sum(not one.same for one in everything),
    }
    return _fitted(everything, least_similarity).model_copy(
        update={
            "fingerprint": fingerprint,
            "thresholds": tuple(thresholds),
            "provenance": {**(provenance or {}), "pairs": counts},
        }
    )


def _fitted(labelled: Sequence[Labelled], least: float) -> Calibration:
    """The model of these pairs, without thresholds."""
    different = sum(not one.same for one in labelled)
    if len(labelled) < 50 or not 10 <= different <= len(labelled) - 10:
        raise InvalidArgument(
            f"{len(labelled)} pairs to fit pass the guards, {different} of them different questions: a model wants 50, "
            "and 10 of either kind at least; add pairs, near misses above all"
        )
    # Two questions that differ do so both ways round, while one may answer the other and not be answered by it.
    turned = [_turned(one) for one in labelled if not one.same]
    examples = [*labelled, *turned]
    intercept, weights = fit_logistic(
        [_signals(one.pair) for one in examples],
        [not one.same for one in examples],
        [1.0 if one.same else 0.5 for one in examples],
    )
    return Calibration(
        format=1,
        fingerprint=None,
        least_similarity=least,
        intercept=round(intercept, 4),
        weights={name: round(float(w), 4) for name, w in zip(signals.NAMES, weights, strict=True) if w > 0},
        thresholds=(Threshold(max_error=0.5, risk=None, served=0, wrong=0, bound=1.0),),
    )


def _reaching(labelled: Sequence[Labelled], least: float) -> list[Labelled]:
    """The pairs that pass the guards before the model."""
    return [
        one
        for one in labelled
        if one.pair.similarity >= least
        and disagreement(read(one.pair.asked), read(one.pair.cached), one.pair.scope_words) is None
    ]


def _risk(calibration: Calibration, pair: Pair, sure: float) -> float | None:
    """The model's risk, -1 for what is served without it, None for what is not served whatever the risk."""
    values = dict[str, float](zip(signals.NAMES, _signals(pair), strict=True))
    if pair.similarity >= sure:
        return None if values["swapped_words"] >= 1 else -1.0
    found, of = pair.asked_evidence, pair.cached_evidence
    if found is not None and of is not None and not signals.supported(found, of):
        return None
    return calibration.risk(values)


def _signals(pair: Pair) -> tuple[float, ...]:
    return signals.wording(read(pair.asked), read(pair.cached), pair.similarity)


def _turned(one: Labelled) -> Labelled:
    pair = one.pair
    return Labelled(Pair(pair.cached, pair.asked, pair.similarity, scope_words=pair.scope_words), one.same)
