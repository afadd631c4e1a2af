"""Entries of the answer cache, their keys and scope tags."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rag_serving.cache.evidence_record import Evidence, Guard
from rag_serving.cache.normalization import normalise
from rag_serving.results import Answer


class Entry(BaseModel):
    """A cached answer with the state of the documents that it was made from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(default=3, ge=3, le=3)
    tenant: str
    question: str
    answer: Answer
    digests: dict[str, str] = Field(description="content digest per shard")
    evidence: tuple[Evidence, ...] = Field(description="passages found for the question, best first")
    created_at: float
    expires_at: float

    @property
    def key(self) -> str:
        """The entry's key within its tag."""
        return question_key(self.question)


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An entry and the cosine of its question with the one asked."""

    entry: Entry
    similarity: float


class ReviewItem(BaseModel):
    """A pair of questions to review: a near miss, a shadow hit, or one with feedback.

    Written as JSON lines; lines with `same` are the input of a recalibration.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["near_miss", "shadow", "feedback"]
    tenant: str
    asked: str
    cached: str | None = Field(description="the cached question; None if the answer was not from the cache")
    similarity: float | None
    asked_evidence: tuple[Evidence, ...] = ()
    cached_evidence: tuple[Evidence, ...] = ()
    guard: Guard | None = Field(default=None, description="guard that refused")
    risk: float | None = Field(default=None, description="95 % upper bound of wrong hits; 1 if a guard refused")
    same: bool | None = Field(default=None, description="whether the answer was correct; None without feedback")
    at: float


StoreState = Literal[
    "exact and semantic", "exact tier only: the server has no search commands", "unavailable", "in this process"
]


def question_key(question: str) -> str:
    """Return 32 hex digits that identify the normalized question."""
    return hashlib.sha256(normalise(question).encode()).hexdigest()[:32]


def scope_tag(**parts: object) -> str:
    """Return 32 hex digits over everything that must be equal to share an answer; hex needs no escaping in queries."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def digest_of(digests: Mapping[str, str]) -> str:
    """Return 32 hex digits over the content digests of a scope."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]
