"""Whether a cached answer is served for another question: the guards first, then the model, and why.

The model's weights and thresholds come from a calibration file: the one shipped beside this module, or one made by
`rag-serving calibrate` from labelled pairs of one's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rag_serving.cache.guards import signals
from rag_serving.cache.guards.particulars import Guard, Question, disagreement, read
from rag_serving.cache.guards.signals import Evidence
from rag_serving.errors import SettingsError

SHIPPED = "calibration.json"


class Threshold(BaseModel):
    """The highest risk that is served under a bound on wrong hits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_error: float = Field(gt=0, lt=1)
    risk: float | None = Field(
        ge=-1, le=1, description="-1 where the sure band alone keeps within the bound, null where not even that does"
    )
    served: int = Field(0, ge=0, description="pairs of the calibration part that it serves")
    wrong: int = Field(0, ge=0, description="those of them that are wrong")
    bound: float = Field(1.0, ge=0, le=1, description="95 % upper bound of the wrong share")


class Calibration(BaseModel):
    """What a calibration file holds. `report` is for people."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = Field(1, ge=1, le=1)
    fingerprint: str | None = Field(None, description="embedder whose cosines it was fitted on, where that is known")
    least_similarity: float = Field(ge=0, le=1, description="cosine below which no pair is looked at")
    intercept: float
    weights: dict[str, float] = Field(description="by signal; none may speak for a hit the more doubtful it is")
    thresholds: tuple[Threshold, ...] = Field(min_length=1, description="ascending by bound")
    provenance: dict[str, Any] = Field(default_factory=dict[str, Any])
    report: dict[str, Any] = Field(default_factory=dict[str, Any])

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = sorted(set(self.weights) - set(signals.NAMES))
        if unknown:
            raise ValueError(f"unknown signals: {', '.join(unknown)}")
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("a weight is below nought")
        bounds = [threshold.max_error for threshold in self.thresholds]
        if bounds != sorted(set(bounds)):
            raise ValueError("thresholds do not ascend")
        return self

    def risk(self, values: Mapping[str, float]) -> float:
        """The estimated probability that a hit with these signals is wrong."""
        score = self.intercept + sum(weight * values[name] for name, weight in self.weights.items())
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, score))))

    def highest_risk(self, max_error: float) -> float | None:
        """The highest risk to serve under a bound: that of the greatest calibrated bound within it, None for none."""
        fitting = [threshold.risk for threshold in self.thresholds if threshold.max_error <= max_error * (1 + 1e-9)]
        return fitting[-1] if fitting else None


@dataclass(frozen=True, slots=True)
class Pair:
    """A question that is asked and one that was answered before, with what is known of both.

    `similarity` is the cosine of their vectors. The evidence is what each question retrieves, best first, in the same
    version of the documents; None where nothing was retrieved. `scope_words` are names that limit a question and that
    are typed in any case: regions, departments, products.
    """

    asked: str
    cached: str
    similarity: float
    asked_evidence: Sequence[Evidence] | None = None
    cached_evidence: Sequence[Evidence] | None = None
    scope_words: frozenset[str] = field(default_factory=frozenset[str])


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to serve, which guard refuses, why in a sentence without any document's text, and the risk of error.

    `risk` is the model's estimate of the probability that the hit is wrong: 1 where a guard before the model refuses.
    """

    serve: bool
    guard: Guard | None
    reason: str
    risk: float


class Judge:
    """Judges pairs under one calibration and one bound. Immutable, and safe between threads.

    `max_error` bounds the wrong share of hits, `sure` is the cosine from which on the model is not asked. Raises
    `SettingsError` where either is out of range.
    """

    def __init__(self, calibration: Calibration, *, max_error: float = 0.01, sure: float = 0.98) -> None:
        if not 0 < max_error < 1:
            raise SettingsError(
                "RAG_CACHE_MAX_ERROR must lie between 0 and 1, as in 0.01 for one wrong hit in a hundred"
            )
        if not 0 < sure <= 1:
            raise SettingsError("RAG_CACHE_SIMILARITY must be above 0 and at most 1")
        self._calibration = calibration
        self._highest = calibration.highest_risk(max_error)
        self._sure = sure

    @classmethod
    def shipped(cls, *, max_error: float = 0.01, sure: float = 0.98) -> Self:
        """With the calibration that comes with the package."""
        data = files("rag_serving.cache.guards").joinpath(SHIPPED).read_bytes()
        return cls(_parsed(data, "the shipped calibration"), max_error=max_error, sure=sure)

    @classmethod
    def from_file(cls, path: Path | str, *, max_error: float = 0.01, sure: float = 0.98) -> Self:
        """With a calibration of one's own; raises `SettingsError` where the file is missing or malformed."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise SettingsError(f"the calibration {path} cannot be read ({error.strerror})") from error
        return cls(_parsed(data, f"the calibration {path}"), max_error=max_error, sure=sure)

    @property
    def fingerprint(self) -> str | None:
        """The embedder that the calibration was made with; cosines of another may mean more or less."""
        return self._calibration.fingerprint

    @property
    def highest_risk(self) -> float | None:
        """The risk up to which hits below the sure band are served; None where the bound allows no hit at all."""
        return self._highest

    @property
    def least_similarity(self) -> float:
        """The cosine below which no pair is served."""
        return min(self._calibration.least_similarity, self._sure)

    def judge(self, pair: Pair) -> Verdict:
        """The verdict on a pair; takes well under a millisecond.

        Every hit must agree in its particulars. From `sure` on, it is served unless a content word stands in another's
        place; below, the evidence must agree as well and the model's risk be within the bound.
        """
        shown = f"similarity {pair.similarity:.3f}"
        if self._highest is None:
            return Verdict(False, "wording", "no calibrated threshold keeps to so low a share of wrong hits", 1.0)
        if not pair.similarity >= self.least_similarity:
            return Verdict(False, "similarity", f"{shown} is below {self.least_similarity:.2f}", 1.0)
        asked, cached = read(pair.asked), read(pair.cached)
        refused = disagreement(asked, cached, pair.scope_words)
        if refused is not None:
            return Verdict(False, refused.guard, f"{shown}, but {refused.reason}", 1.0)
        values = dict[str, float](zip(signals.NAMES, signals.wording(asked, cached, pair.similarity), strict=True))
        risk = self._calibration.risk(values)
        agreed = f"{shown}, {_agreed(asked)}"
        if pair.similarity >= self._sure:
            if values["swapped_words"] >= 1:
                return Verdict(False, "wording", f"{shown}, but a word stands in another's place", risk)
            return Verdict(True, None, f"{agreed}; sure from {self._sure:.2f} on", risk)
        if pair.asked_evidence is not None and pair.cached_evidence is not None:
            found, of = signals.common(pair.asked_evidence, pair.cached_evidence)
            if not signals.supported(pair.asked_evidence, pair.cached_evidence):
                return Verdict(
                    False, "evidence", f"{shown}, but other passages answer it ({found} of {of} in common)", risk
                )
            agreed += f", {found} of {of} passages in common"
        if risk > self._highest:
            return Verdict(
                False, "wording", f"{agreed}; estimated risk {risk:.1%} is above {max(self._highest, 0):.1%}", risk
            )
        return Verdict(True, None, f"{agreed}; estimated risk {risk:.1%}", risk)


def _parsed(data: bytes, what: str) -> Calibration:
    try:
        return Calibration.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SettingsError(
            f"{what} is malformed ({where}: {first['msg']}); make it anew with: rag-serving calibrate"
        ) from None


def _agreed(question: Question) -> str:
    """What both questions name, for a reason."""
    kinds: Iterable[tuple[str, object]] = (
        ("numbers", question.numbers),
        ("dates", question.dates),
        ("codes", question.codes),
        ("names", question.names),
    )
    named = [name for name, found in kinds if found]
    return f"same {' and '.join(named)}" if named else "no particulars differ"
