"""Request and response bodies of the HTTP service. A body can only narrow the shards that the API key allows."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints

from rag_serving.results import Answer, FoundDocument, Hit, KnownFieldsOnly, Turn
from rag_serving.validation import MAX_K, MAX_PREFIX_CHARACTERS, MAX_QUESTION_CHARACTERS, MAX_TURNS

MOST_NAMES = 200
_QUESTION = "How many weeks of parental leave are on full pay?"


class _FirstFault(FailFast):
    """Refuses a list at its first invalid item; an error for each of many blocks a worker for seconds."""

    def __hash__(self) -> int:  # unions need it
        return id(self)


FIRST_FAULT = _FirstFault()

Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Names = Annotated[list[Name], FIRST_FAULT, Field(min_length=1, max_length=MOST_NAMES)]
Question = Annotated[
    str, Field(min_length=1, max_length=MAX_QUESTION_CHARACTERS, description="question in plain language")
]


class ScopeFilter(KnownFieldsOnly):
    """The shards to search. A missing list means all that the key allows."""

    regions: Names | None = Field(None, description="regions to search; missing: all that the key allows")
    departments: Names | None = Field(None, description="departments to search; missing: all that the key allows")


class AskRequest(ScopeFilter):
    """A question to answer."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"question": _QUESTION}, {"question": _QUESTION, "k": 4, "stream": True}]}
    )

    question: Question
    k: int = Field(default=8, ge=1, le=MAX_K, description="number of passages to answer from")
    history: Annotated[list[Turn], FIRST_FAULT] = Field(
        default_factory=list[Turn], max_length=MAX_TURNS, description="previous turns, oldest first"
    )
    stream: bool = Field(default=False, strict=True, description="stream the answer as server-sent events")


class _SearchBody(ScopeFilter):
    question: Question
    mode: Literal["hybrid", "vector", "text"] = Field(
        "hybrid", description="vector, text (full-text search), or hybrid: both"
    )
    path_prefix: str | None = Field(
        None, max_length=MAX_PREFIX_CHARACTERS, description="prefix of the path below region/department/"
    )
    modified_from: datetime | None = Field(None, description="earliest modification, inclusive; without a zone: UTC")
    modified_before: datetime | None = Field(None, description="latest modification, exclusive; without a zone: UTC")


class SearchRequest(_SearchBody):
    """A question to find passages for."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"question": _QUESTION, "mode": "text"}, {"question": _QUESTION, "k": 4}]}
    )

    k: int = Field(8, ge=1, le=MAX_K, description="number of passages to return")
    join_neighbours: bool = Field(
        default=False, strict=True, description="merge adjacent passages of the same document"
    )
    per_document: int | None = Field(None, ge=1, le=MAX_K, description="most passages of a document; null: any number")


class DocumentSearchRequest(_SearchBody):
    """A question to find documents for."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"question": _QUESTION, "k": 4, "passages": 1}]})

    k: int = Field(8, ge=1, le=MAX_K, description="number of documents to return")
    passages: int = Field(3, ge=1, le=MAX_K, description="most passages of a document")


class SearchResponse(BaseModel):
    """Passages found, best first."""

    hits: list[Hit]
    timings: dict[str, float]
    degraded: list[str]


class DocumentSearchResponse(BaseModel):
    """Documents found, best first."""

    documents: list[FoundDocument]
    timings: dict[str, float]
    degraded: list[str]


class RatedAnswer(BaseModel):
    """What feedback needs of an answer; its other fields are not read, however many there are."""

    model_config = ConfigDict(extra="ignore")

    question: Question
    standalone_question: Question | None = None
    entry: str | None = Field(None, max_length=200, description="cache entry of the answer")
    similarity: float | None = None

    @property
    def as_answer(self) -> Answer:
        """The answer without text and citations."""
        return Answer(text="", citations=(), kind="none", model=None, **self.model_dump())


class FeedbackRequest(KnownFieldsOnly):
    """Feedback on an answer."""

    answer: RatedAnswer = Field(description="the answer as the service returned it")
    correct: bool = Field(strict=True, description="whether it was correct; wrong answers leave the cache")


class FeedbackResponse(BaseModel):
    """The effect of feedback."""

    dropped: bool = Field(description="whether the answer was removed from the cache")


class ErrorDetail(BaseModel):
    """An error, with the fields of OpenAI's errors."""

    type: str
    message: str
    code: str | None = Field(None, description="name of the error in OpenAI's protocol, such as model_not_found")
    param: str | None = Field(None, description="the field of the request that is wrong")


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail

    @classmethod
    def of(cls, kind: str, message: str, code: str | None = None, param: str | None = None) -> Self:
        """Build the body of an error."""
        return cls(error=ErrorDetail(type=kind, message=message, code=code, param=param))


class NotReady(BaseModel):
    """The response of the readiness probe while no question can be answered."""

    ready: Literal[False] = False
    problem: str = Field(description="name of the error, or Starting")
