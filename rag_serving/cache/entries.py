"""Entries of the answer cache, their keys and scope tags."""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rag_serving.cache.evidence_record import Evidence, Guard
from rag_serving.results import Answer


class Entry(BaseModel):
    """A stored answer with the state of the documents that it was made from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(default=2, ge=2, le=2)
    tenant: str
    question: str
    answer: Answer
    digests: dict[str, str] = Field(description="content digest by shard")
    evidence: tuple[Evidence, ...] = Field(description="what was found for the question, best first")
    created_at: float
    expires_at: float

    @property
    def key(self) -> str:
        """What it is stored under, within its tag."""
        return question_key(self.question)


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An entry, and the cosine of its question with the one asked."""

    entry: Entry
    similarity: float


class ReviewItem(BaseModel):
    """A pair of questions worth looking at: refused narrowly, served in the shadow, or judged by a person.

    Written as JSON lines; those with `same` are what a recalibration reads.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["near_miss", "shadow", "feedback"]
    tenant: str
    asked: str
    cached: str | None = Field(description="the stored question; None for an answer that came from none")
    similarity: float | None
    asked_evidence: tuple[Evidence, ...] = ()
    cached_evidence: tuple[Evidence, ...] = ()
    guard: Guard | None = Field(default=None, description="which guard refused")
    risk: float | None = Field(default=None, description="95 % bound of wrong hits there; 1 if a guard refused")
    same: bool | None = Field(default=None, description="whether the answer was right, where a person said so")
    at: float


StoreState = Literal[
    "exact and semantic", "exact tier only: the server has no search commands", "unavailable", "in this process"
]


def normalise(question: str) -> str:
    """The form under which two questions are the same: compatibility forms, case, space and end marks folded."""
    folded = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(folded.split()).rstrip(" ?!.。？！").lstrip("¿¡ ")


def question_key(question: str) -> str:
    """32 hex digits of the normalised question."""
    return hashlib.sha256(normalise(question).encode()).hexdigest()[:32]


def scope_tag(**parts: object) -> str:
    """32 hex digits over everything that must be equal for an answer to be shared; hex is safe in every query."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def digest_of(digests: Mapping[str, str]) -> str:
    """32 hex digits over the contents of a scope."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]
