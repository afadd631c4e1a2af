"""Fitting the model of the wording and choosing its thresholds, on labelled pairs of questions.

The model is a logistic regression in which no signal may speak for a hit the more doubtful it is (weights below nought
are set to nought and the rest fitted anew). The threshold for a bound is the highest risk at which the 95 % upper bound
of wrong hits among those served is within it, counted on pairs that the weights have not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_serving.errors import InvalidArgument
from rag_serving.guards import signals
from rag_serving.guards.judge import Calibration, Pair, Threshold
from rag_serving.guards.particulars import disagreement, read

if TYPE_CHECKING:
    import numpy.typing as npt

CONFIDENCE = 0.95
LEAST_SIMILARITY = 0.8
"""Cosine below which no pair is looked at: the packaged model puts unlike questions there."""
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""Bounds on wrong hits that a threshold is chosen for."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A pair of questions, and whether the answer to the cached one answers the one asked."""

    pair: Pair
    same: bool


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
    signals: npt.NDArray[np.float64],
    wrong: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float64] | None = None,
    *,
    penalty: float = 1.0,
) -> tuple[float, npt.NDArray[np.float64]]:
    """Intercept and weights, none below nought, of a logistic regression by Newton's method (IRLS) with an L2 penalty.

    `signals` has the shape (pairs, signals). The penalty is on the weights of signals scaled to a deviation of 1.
    """
    scale = np.where(signals.std(0) > 0, signals.std(0), 1.0)
    scaled = signals / scale
    target = wrong.astype(np.float64)
    mass = np.ones(len(target)) if weights is None else weights
    active = np.ones(signals.shape[1], dtype=bool)
    while True:
        columns = np.column_stack([np.ones(len(target)), scaled[:, active]])
        ridge = np.diag([1e-6] + [penalty] * int(active.sum()))
        beta = np.zeros(columns.shape[1])
        for _ in range(50):
            p = 1 / (1 + np.exp(-np.clip(columns @ beta, -30, 30)))
            curvature = mass * np.maximum(p * (1 - p), 1e-9)
            step = np.linalg.solve(
                columns.T @ (columns * curvature[:, None]) + ridge, columns.T @ (mass * (target - p)) - ridge @ beta
            )
            beta += np.clip(step, -5, 5)
            if np.abs(step).max() < 1e-8:
                break
        fitted = np.zeros(signals.shape[1])
        fitted[active] = beta[1:]
        if (fitted >= 0).all():
            return float(beta[0]), fitted / scale
        active &= fitted > 0


def highest_risk(risks: Sequence[float], wrong: Sequence[bool], max_error: float) -> float:
    """The highest risk up to which the upper bound of the wrong share of hits is within `max_error`; -1 for none."""
    order = np.argsort(np.asarray(risks), kind="stable")
    best, count = -1.0, 0
    for place, row in enumerate(order):
        count += bool(wrong[row])
        following = order[place + 1] if place + 1 < len(order) else None
        if following is not None and risks[following] == risks[row]:
            continue
        if count / (place + 1) <= max_error and upper_bound(count, place + 1) <= max_error:
            best = float(risks[row])
    return best


def calibrate(
    fit: Sequence[Labelled],
    held_back: Sequence[Labelled],
    *,
    least_similarity: float = LEAST_SIMILARITY,
    sure: float = 0.98,
    bounds: Sequence[float] = BOUNDS,
    provenance: Mapping[str, Any] | None = None,
) -> Calibration:
    """A calibration with weights fitted on some pairs, and thresholds chosen on others that share no question.

    Only pairs that pass the guards before the model are looked at; those from `sure` on are served whatever their risk,
    and count against every bound. Raises `InvalidArgument` where the pairs to fit are too few or all of one label.
    """
    matrix, wrong, sources = _examples(fit, least_similarity)
    if len(wrong) < 50 or not 10 <= wrong.sum() <= len(wrong) - 10:
        raise InvalidArgument(
            f"{len(wrong)} pairs to fit pass the guards, {int(wrong.sum())} of them different questions: a model wants "
            "50, and 10 of either kind at least; add pairs, near misses above all"
        )
    # Two questions that differ do so both ways round, while one may answer the other and not be answered by it.
    turned, _, _ = _examples([_turned(one) for one in sources if not one.same], least_similarity)
    mass = np.concatenate([np.where(wrong, 0.5, 1.0), np.full(len(turned), 0.5)])
    intercept, weights = fit_logistic(
        np.vstack([matrix, turned]), np.concatenate([wrong, np.ones(len(turned), dtype=bool)]), mass
    )
    named = {name: round(float(weight), 4) for name, weight in zip(signals.NAMES, weights, strict=True) if weight > 0}
    draft = Calibration(
        least_similarity=least_similarity,
        intercept=round(intercept, 4),
        weights=named,
        thresholds=(Threshold(max_error=0.5, risk=-1.0),),
    )
    values, failed, left = _examples(held_back, least_similarity)
    sure_words = signals.NAMES.index("swapped_words")
    risks: list[float] = []
    errors: list[bool] = []
    for row, error, one in zip(values, failed, left, strict=True):
        if one.pair.similarity >= sure:
            if row[sure_words] >= 1:
                continue
            risks.append(-1.0)
        elif _supported(one.pair):
            risks.append(draft.risk(dict(zip(signals.NAMES, row.tolist(), strict=True))))
        else:
            continue
        errors.append(bool(error))
    thresholds: list[Threshold] = []
    for bound in sorted(bounds):
        highest = highest_risk(risks, errors, bound)
        served = [error for risk, error in zip(risks, errors, strict=True) if risk <= highest]
        thresholds.append(
            Threshold(
                max_error=bound,
                risk=round(highest, 5),
                served=len(served),
                wrong=sum(served),
                bound=round(upper_bound(sum(served), len(served)), 5),
            )
        )
    counts = {"fit": len(wrong), "different": int(wrong.sum()), "held_back": len(errors), "wrong": sum(errors)}
    return draft.model_copy(
        update={"thresholds": tuple(thresholds), "provenance": {**(provenance or {}), "pairs": counts}}
    )


def _examples(
    labelled: Sequence[Labelled], least: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], list[Labelled]]:
    """Signals of the pairs that reach the model, whether each is wrong, and the pairs."""
    rows: list[tuple[float, ...]] = []
    left: list[Labelled] = []
    for one in labelled:
        pair = one.pair
        if pair.similarity < least:
            continue
        asked, cached = read(pair.asked), read(pair.cached)
        if disagreement(asked, cached, pair.scope_words) is None:
            rows.append(signals.wording(asked, cached, pair.similarity))
            left.append(one)
    return np.array(rows).reshape(-1, len(signals.NAMES)), np.array([not one.same for one in left], dtype=bool), left


def _turned(one: Labelled) -> Labelled:
    pair = one.pair
    return Labelled(Pair(pair.cached, pair.asked, pair.similarity, scope_words=pair.scope_words), one.same)


def _supported(pair: Pair) -> bool:
    if pair.asked_evidence is None or pair.cached_evidence is None:
        return True
    return signals.supported(pair.asked_evidence, pair.cached_evidence)
