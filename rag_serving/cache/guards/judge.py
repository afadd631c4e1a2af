"""Decide whether a cached answer is served for another question: by rules, evidence, and a score.

The score is the cosine, raised if wording or evidence agree. Its thresholds come from a calibration file, either the
packaged one or one that `rag-serving calibrate` wrote. `calibration` chooses thresholds from labelled pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rag_serving.cache.evidence_record import Evidence, Guard
from rag_serving.cache.guards.question import read
from rag_serving.cache.guards.rules import Disagreement, Wording, disagreement, wording
from rag_serving.errors import SettingsError, first_problem

SHIPPED = "calibration.json"
EVIDENCE_DEPTH: Final = 5
"""Number of passages per question that are compared. The order of lower ranks is mostly noise."""
WORDING_BONUS: Mapping[Wording, float] = {"same": 0.12, "similar": 0.0, "more words": 0.0}
EVIDENCE_BONUS: Final = 0.1
"""Added to the cosine if the evidence agrees, unless one question has more words: near misses of that kind retrieve the
same passages. Both were chosen on the tuning part of `benchmarks.guards`."""


class Threshold(BaseModel):
    """The lowest score at which a cached answer is served, for one bound on the share of wrong hits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_error: float = Field(gt=0, lt=1)
    score: float | None = Field(ge=0, le=2, description="null if no score is within the bound")
    served: int = Field(default=0, ge=0, description="calibration pairs that it serves")
    wrong: int = Field(default=0, ge=0, description="wrong hits among them")
    bound: float = Field(default=1.0, ge=0, le=1, description="95 % upper bound of the wrong share")


class Calibration(BaseModel):
    """The contents of a calibration file. `provenance` and `report` are for people.

    Format 2 had thresholds of the cosine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[3]
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
            if lower.score is not None and (higher.score is None or higher.score > lower.score):
                raise ValueError("a wider bound has a higher threshold")
        return self

    def threshold(self, max_error: float) -> float | None:
        """Return the lowest score to serve, or None if nothing is served.

        It belongs to the widest bound that is at most `max_error`.
        """
        within = [one.score for one in self.thresholds if one.max_error <= max_error * (1 + 1e-9)]
        return within[-1] if within else None

    def risk(self, score: float) -> float:
        """Return the estimated share of wrong hits among pairs with at least this score; 1 below every threshold.

        It is the 95 % upper bound of the nearest threshold at or below this score.
        """
        for one in self.thresholds:
            if one.score is not None and score >= one.score:
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

    `risk` is the estimated share of wrong hits among pairs of this score; 1 if the pair was refused before its score
    was compared with the thresholds.
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
        read("Load the word lists and compile the patterns before the first question.")

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
        """The lowest score to serve; None if the bound allows no hit."""
        return self._threshold

    @property
    def least_similarity(self) -> float:
        """The cosine below which no pair is judged; refusals at or above it are useful for a calibration."""
        return min(self._calibration.least_similarity, self._sure)

    def judge(self, pair: Pair) -> Verdict:
        """Return the verdict on a pair, in well under a millisecond.

        Particulars such as numbers and names must agree, and no content word may be replaced. Below `sure`, evidence
        must agree, too. A pair that passes is served if its score reaches the calibrated threshold.
        """
        shown = f"similarity {pair.similarity:.3f}"
        if self.threshold is None:
            return Verdict(False, "similarity", "no threshold of the calibration is within RAG_CACHE_MAX_ERROR", 1.0)
        if not pair.similarity >= self.least_similarity:
            return Verdict(False, "similarity", f"{shown} is below {self.least_similarity:.2f}", 1.0)
        refused = refusal(pair, self._sure)
        if refused is not None:
            return Verdict(False, refused.guard, f"{shown}, but {refused.reason}", 1.0)
        reached = score(pair, self._sure)
        risk = self._calibration.risk(reached)
        agreed = f"{shown}, {_agreed(pair)}{_shared(pair, self._sure)}"
        if reached < self.threshold:
            reason = (
                f"{agreed}; score {reached:.3f} is below {self.threshold:.3f}, for {self._max_error:.1%} wrong hits"
            )
            return Verdict(False, "similarity", reason, risk)
        return Verdict(True, None, f"{agreed}; estimated risk {risk:.1%}", risk)


def refusal(pair: Pair, sure: float) -> Disagreement | None:
    """Return why a guard refuses the pair, or None. Evidence is compared only below the cosine `sure`."""
    refused = disagreement(read(pair.asked), read(pair.cached), pair.scope_words)
    if refused is not None:
        return refused
    evidence = _evidence(pair, sure)
    if evidence is not None and not supported(*evidence):
        found, of = common(*evidence)
        return Disagreement("evidence", f"it retrieves other passages ({found} of {of} in common)")
    return None


def score(pair: Pair, sure: float) -> float:
    """Return the cosine of a pair that passes the rules, raised for the same wording and for the same evidence."""
    worded = wording(read(pair.asked), read(pair.cached))
    evidence = _evidence(pair, sure)
    agrees = evidence is not None and worded != "more words" and same_best(*evidence)
    return pair.similarity + WORDING_BONUS[worded] + EVIDENCE_BONUS * agrees


# --- evidence ----------------------------------------------------------------------------------------------------


def supported(asked: Sequence[Evidence], cached: Sequence[Evidence]) -> bool:
    """Return whether the new question retrieves a passage that the cached answer cites.

    If it cites none, the best passage of the cached question counts.
    """
    needed = _sources(cached)
    return not needed or bool(needed & {passage.content_hash for passage in asked})


def same_best(asked: Sequence[Evidence], cached: Sequence[Evidence]) -> bool:
    """Return whether the best passage of the new question is a source of the cached answer, or most are in common."""
    found, of = common(asked, cached)
    return any(one.content_hash in _sources(cached) for one in asked[:1]) or (of > 1 and found >= of - 1)


def common(asked: Sequence[Evidence], cached: Sequence[Evidence]) -> tuple[int, int]:
    """Return how many of the cached question's best passages the new question retrieves, too, and their number."""
    found = {passage.content_hash for passage in asked[:EVIDENCE_DEPTH]}
    best = [passage.content_hash for passage in cached[:EVIDENCE_DEPTH]]
    return sum(content in found for content in best), len(best)


def _sources(cached: Sequence[Evidence]) -> frozenset[str]:
    """Return the contents of the cited passages; of the best one if none is cited."""
    cited = frozenset(passage.content_hash for passage in cached if passage.cited)
    return cited or frozenset(passage.content_hash for passage in cached[:1])


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
    found, of = common(*evidence)
    return f", {found} of {of} passages in common"


def _agreed(pair: Pair) -> str:
    """Format which particulars agree, and how far the wording does."""
    asked, cached = read(pair.asked), read(pair.cached)
    named = [name for name in ("numbers", "dates", "codes", "names") if getattr(asked, name)]
    worded = wording(asked, cached)
    same = " and ".join(named + ["wording"] * (worded == "same"))
    return (f"same {same}" if same else "no particulars differ") + ", more words" * (worded == "more words")


def _parsed(data: bytes, what: str) -> Calibration:
    try:
        return Calibration.model_validate_json(data)
    except ValidationError as error:
        raise SettingsError(
            f"{what} is malformed ({first_problem(error)}); create a new one with `rag-serving calibrate`"
        ) from None
