"""What the client returns: hits, citations, answers, shards. Immutable, and JSON both ways: answers are cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal, overload

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pandas as pd

CacheState = Literal["exact", "semantic", "revalidated", "miss", "bypass"]


class Place(BaseModel):
    """A passage of a document, and where it stands."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str = Field(description="URI of the source object")
    title: str
    heading_path: tuple[str, ...] = Field(description="headings above the passage, outermost first")
    page: int | None = Field(description="page, counting from 1, where the format has pages")
    start: int = Field(description="first character of the passage in the document's extracted text")
    end: int = Field(description="one past its last character")
    shard: str = Field(description="region/department")
    score: float | None = Field(description="cosine of question and passage, -1 to 1; None for a search by words alone")
    chunk_id: str
    text: str
    stale: bool = Field(False, description="whether the document has a newer version, which could not be read")


class Hit(Place):
    """One found passage."""

    rank: int = Field(description="1 for the best")
    fused: float = Field(
        description="reciprocal rank fusion of the rankings; orders the hits where nothing reranked them"
    )
    reranked: float | None = Field(default=None, description="the reranker's score, which then orders the hits")
    also_in: tuple[str, ...] = Field((), description="sources of passages that say the same, left out for this one")
    path: str = Field("", description="the object's key below region/department/")
    doc_id: str
    type: str
    modified_at: datetime


class Citation(Place):
    """A passage that the answer rests on; `number` is how the text refers to it, as in ``[2]``."""

    number: int


class Hits(Sequence[Hit]):
    """Found passages, best first. `degraded` names what was not done as it should have been."""

    def __init__(self, hits: Sequence[Hit], timings: dict[str, float], degraded: tuple[str, ...] = ()) -> None:
        self._hits = tuple(hits)
        self.timings = timings
        self.degraded = degraded

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self._hits[index]

    def __len__(self) -> int:
        return len(self._hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    def __repr__(self) -> str:
        return f"Hits({len(self._hits)}, best={self._hits[0].source!r})" if self._hits else "Hits(0)"

    def to_pandas(self) -> pd.DataFrame:
        """One row a hit, best first; columns are the fields of `Hit`."""
        import pandas as pd

        return pd.DataFrame([hit.model_dump() for hit in self._hits], columns=list(Hit.model_fields))


class ShardInfo(BaseModel):
    """One published shard."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    region: str
    department: str
    documents: int
    chunks: int
    quarantined: int = Field(description="documents that could not be read")
    version: int = Field(description="of its table")
    published_at: datetime

    @property
    def shard(self) -> str:
        """``region/department``."""
        return f"{self.region}/{self.department}"


class Turn(BaseModel):
    """One question of a conversation and what was answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    answer: str


class Answer(BaseModel):
    """An answer and what it rests on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    question: str
    text: str
    citations: tuple[Citation, ...]
    kind: Literal["generated", "extract", "none"] = Field(
        description="written by the language model, quoted from the documents, or nothing was found"
    )
    model: str | None = Field(description="the language model, for generated answers")
    cache: CacheState = Field(
        default="miss",
        description="exact or semantic hit, revalidated (a hit whose documents changed, and its evidence did not), "
        "miss, or bypass when the cache could not be asked",
    )
    cache_reason: str | None = Field(
        default=None, description="why the cache answered, or which guard refused the nearest stored question"
    )
    similarity: float | None = Field(default=None, description="cosine with the question that the hit was stored for")
    cached_question: str | None = Field(default=None, description="that question, for semantic hits")
    entry: str | None = Field(
        default=None, description="names the cache entry to `feedback`; None for what is not kept"
    )
    shared: bool = Field(
        default=False, description="whether it was made for another asker of the same question at that time"
    )
    standalone_question: str | None = Field(
        default=None, description="what a follow-up question was taken to mean; this is what was answered and cached"
    )
    degraded: tuple[str, ...] = Field((), description="what was not done as it should have been; empty when all was")
    tokens: dict[str, int] = Field(
        default_factory=dict[str, int], description="prompt and completion tokens paid for; empty for hits"
    )
    cost: float | None = Field(
        default=None, description="US dollars by litellm's price list; 0 for hits, None where no price is known"
    )
    timings: dict[str, float] = Field(default_factory=dict[str, float], description="milliseconds by phase, and total")
