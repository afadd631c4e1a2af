"""Decide whether a cached answer is served for another question: by rules, wording, evidence, and the cosine.

The cosine thresholds come from a calibration file, either the packaged one or one that `rag-serving calibrate` wrote.
`calibration` chooses thresholds from labelled pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rag_serving.cache.evidence_record import Evidence, Guard
from rag_serving.cache.guards import features, lexicon
from rag_serving.cache.guards.question import Question, read
from rag_serving.cache.guards.rules import Disagreement, disagreement
from rag_serving.errors import SettingsError, first_problem

SHIPPED = "calibration.json"


class Threshold(BaseModel):
    """The lowest cosine at which a cached answer is served, for one bound on the share of wrong hits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_error: float = Field(gt=0, lt=1)
    similarity: float | None = Field(ge=0, le=1, description="null if no cosine is within the bound")
    served: int = Field(default=0, ge=0, description="calibration pairs that it serves")
    wrong: int = Field(default=0, ge=0, description="wrong hits among them")
    bound: float = Field(default=1.0, ge=0, le=1, description="95 % upper bound of the wrong share")


class Calibration(BaseModel):
    """The contents of a calibration file. `provenance` and `report` are for people.

    Format 1 had the weights of a wording model, which is no longer used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[2]
    fingerprint: str | None = Field(None, description="embedder of the cosines; null if unknown")
    least_similarity: float = Field(ge=0, le=1, description="cosine below which no pair is judged")
    thresholds: tuple[Threshold, ...] = Field(min_length=1, description="by ascending bound")
    provenance: dict[str, Any] = Field(default_factory=dict[str, Any])
    report: dict[str, Any] = Field(default_factory=dict[str, Any])

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for lower, higher in pairwise(self.thresholds):
            if lower.max_error >= higher.max_error:
                raise ValueError("the bounds of the thresholds do not ascend")
            if lower.similarity is not None and (higher.similarity is None or higher.similarity > lower.similarity):
                raise ValueError("a wider bound has a higher threshold")
        return self

    def threshold(self, max_error: float) -> float | None:
        """Return the lowest cosine to serve, or None if nothing is served.

        It belongs to the widest bound that is at most `max_error`.
        """
        within = [one.similarity for one in self.thresholds if one.max_error <= max_error * (1 + 1e-9)]
        return within[-1] if within else None

    def risk(self, similarity: float) -> float:
        """Return the estimated share of wrong hits among pairs at least this similar; 1 below every threshold.

        It is the 95 % upper bound of the nearest threshold at or below this cosine.
        """
        for one in self.thresholds:
            if one.similarity is not None and similarity >= one.similarity:
                return one.bound
        return 1.0


@dataclass(frozen=True, slots=True)
class Pair:
    """The question asked and a cached one.

    `similarity` is the cosine of their vectors. The evidence of a question is the passages that it retrieves, best
    first; None if there was no search. Both are from the same version of the documents. `scope_words` are names such as
    regions and departments, which restrict a question in any capitalization.
    """

    asked: str
    cached: str
    similarity: float
    asked_evidence: Sequence[Evidence] | None = None
    cached_evidence: Sequence[Evidence] | None = None
    scope_words: frozenset[str] = field(default_factory=frozenset[str])


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to serve the cached answer, the guard that refused it, and the reason (without text of documents).

    `risk` is the estimated share of wrong hits among pairs of this similarity; 1 if the pair was refused before its
    cosine was compared with the thresholds.
    """

    serve: bool
    guard: Guard | None
    reason: str
    risk: float


class Judge:
    """Judges pairs with one calibration and one bound. Immutable and thread-safe.

    `max_error` bounds the share of wrong hits. At or above the cosine `sure`, evidence is not compared. Raises
    `SettingsError` if either is out of range.
    """

    def __init__(self, calibration: Calibration, *, max_error: float = 0.01, sure: float = 0.98) -> None:
        if not 0 < max_error < 1:
            raise SettingsError("RAG_CACHE_MAX_ERROR must be between 0 and 1, such as 0.01 for one wrong hit in 100")
        if not 0 < sure <= 1:
            raise SettingsError("RAG_CACHE_SIMILARITY must be above 0 and at most 1")
        self._calibration = calibration
        self._max_error = max_error
        self._threshold = calibration.threshold(max_error)
        self._sure = sure
        # Load the word lists and compile the patterns before the first question.
        lexicon.preload()
        read("")

    @classmethod
    def shipped(cls, *, max_error: float = 0.01, sure: float = 0.98) -> Self:
        """Create a judge with the packaged calibration."""
        data = files("rag_serving.cache.guards").joinpath(SHIPPED).read_bytes()
        return cls(_parsed(data, "the shipped calibration"), max_error=max_error, sure=sure)

    @classmethod
    def from_file(cls, path: Path | str, *, max_error: float = 0.01, sure: float = 0.98) -> Self:
        """Create a judge with the calibration in a file; raises `SettingsError` if it is missing or malformed."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise SettingsError(
                f"the calibration {path} cannot be read ({error.strerror}); check RAG_CACHE_CALIBRATION"
            ) from error
        return cls(_parsed(data, f"the calibration {path}"), max_error=max_error, sure=sure)

    @property
    def fingerprint(self) -> str | None:
        """Embedder that the calibration is for; None if unknown. Cosines of other embedders are not comparable."""
        return self._calibration.fingerprint

    @property
    def threshold(self) -> float | None:
        """The lowest cosine to serve; None if the bound allows no hit."""
        return None if self._threshold is None else min(self._threshold, self._sure)

    @property
    def least_similarity(self) -> float:
        """The cosine below which no pair is judged; refusals at or above it are useful for a calibration."""
        return min(self._calibration.least_similarity, self._sure)

    def judge(self, pair: Pair) -> Verdict:
        """Return the verdict on a pair, in well under a millisecond.

        Particulars such as numbers and names must agree, and no content word may be replaced. Below `sure`, evidence
        must agree, too. A pair that passes is served if its cosine reaches the calibrated threshold.
        """
        shown = f"similarity {pair.similarity:.3f}"
        if self.threshold is None:
            return Verdict(False, "wording", "no threshold of the calibration is within RAG_CACHE_MAX_ERROR", 1.0)
        if not pair.similarity >= self.least_similarity:
            return Verdict(False, "similarity", f"{shown} is below {self.least_similarity:.2f}", 1.0)
        refused = refusal(pair, self._sure)
        if refused is not None:
            return Verdict(False, refused.guard, f"{shown}, but {refused.reason}", 1.0)
        risk = self._calibration.risk(pair.similarity)
        agreed = f"{shown}, {_agreed(read(pair.asked))}{_shared(pair, self._sure)}"
        if pair.similarity < self.threshold:
            reason = f"{agreed}; below {self.threshold:.3f}, the threshold for {self._max_error:.1%} wrong hits"
            return Verdict(False, "similarity", reason, risk)
        return Verdict(True, None, f"{agreed}; estimated risk {risk:.1%}", risk)


def refusal(pair: Pair, sure: float) -> Disagreement | None:
    """Return why a guard refuses the pair, or None. Evidence is compared only below the cosine `sure`."""
    asked, cached = read(pair.asked), read(pair.cached)
    refused = disagreement(asked, cached, pair.scope_words)
    if refused is not None:
        return refused
    if features.has_swapped_words(asked, cached):
        return Disagreement("wording", "a content word was replaced")
    evidence = _evidence(pair, sure)
    if evidence is not None and not features.supported(*evidence):
        found, of = features.common(*evidence)
        return Disagreement("evidence", f"it retrieves other passages ({found} of {of} in common)")
    return None


def _evidence(pair: Pair, sure: float) -> tuple[Sequence[Evidence], Sequence[Evidence]] | None:
    """Return the evidence of both questions, or None if it is not compared."""
    if pair.similarity >= sure or pair.asked_evidence is None or pair.cached_evidence is None:
        return None
    return pair.asked_evidence, pair.cached_evidence


def _shared(pair: Pair, sure: float) -> str:
    """Format how many passages are shared."""
    evidence = _evidence(pair, sure)
    if evidence is None:
        return ""
    found, of = features.common(*evidence)
    return f", {found} of {of} passages in common"


def _agreed(question: Question) -> str:
    """Format which particulars agree."""
    named = [name for name in ("numbers", "dates", "codes", "names") if getattr(question, name)]
    return f"same {' and '.join(named)}" if named else "no particulars differ"


def _parsed(data: bytes, what: str) -> Calibration:
    try:
        return Calibration.model_validate_json(data)
    except ValidationError as error:
        raise SettingsError(
            f"{what} is malformed ({first_problem(error)}); create a new one with `rag-serving calibrate`"
        ) from None
