"""The objects a client returns: hits, citations, answers, shards. Immutable, and read and written as JSON."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from rag_serving.requirements import needs_extra

if TYPE_CHECKING:
    import pandas as pd

MODEL_UNAVAILABLE = "model_unavailable"
ANSWER_CUT = "answer_cut_at_most_tokens"
ANSWER_FILTERED = "answer_filtered"
ANSWER_INCOMPLETE = "answer_incomplete"
UNCITED = "uncited_answer"
INVENTED_CITATIONS = "invented_citations"
FEWER_PASSAGES = "fewer_passages"
HISTORY_NOT_READ = "history_not_read"
OUTSIDE_SCOPE = "outside_scope"
QUESTION_CUT = "question_cut"
CACHE_UNAVAILABLE = "cache_unavailable"

MARKS = {
    MODEL_UNAVAILABLE: "the language model did not answer",
    ANSWER_CUT: "the answer was cut at its maximum length (RAG_LLM_MAX_TOKENS)",
    ANSWER_FILTERED: "the content filter of the model's provider ended the answer",
    ANSWER_INCOMPLETE: "the model broke off before the answer was complete",
    UNCITED: "the answer names no source, so check it against the passages",
    INVENTED_CITATIONS: "citations of sources that do not exist were removed",
    FEWER_PASSAGES: "the model's context had room for fewer passages",
    HISTORY_NOT_READ: "the conversation before the question was not taken into account",
    OUTSIDE_SCOPE: "the question names a region or department outside the scope that was searched",
    QUESTION_CUT: "only the beginning and the end of the question were used, because it is too long",
    CACHE_UNAVAILABLE: "the cache could not be reached",
    "question_cut_at_window": "only the beginning of the question was compared by meaning, because it is too long",
    "shard_unavailable": "a shard could not be searched",
    "company_index_unavailable": "the company index could not be searched",
    "catalog_broken": "the published state of a shard could not be read",
    "reranker_unavailable": "the reranker did not answer, so the passages are in their own order",
}
"""The marks in `degraded`, in words. Some are followed by ``:`` and a number, a name or a reason."""


def in_words(mark: str) -> str:
    """Return a mark of `degraded` as a phrase."""
    name, _, detail = mark.partition(":")
    return f"{MARKS.get(name, name)}{f': {detail}' if detail else ''}"


CacheState = Literal["exact", "semantic", "revalidated", "miss", "bypass"]


_SOURCE = "URI of the source object; a service names it region/department/path instead"
_LINK = "URL to open: RAG_SOURCE_LINK filled in; else a service's page of the document, and None without a service"
_PATH = "the object's key below region/department/, followed by #name for an attachment"


class Place(BaseModel):
    """A passage of a document and its location."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str = Field(description=_SOURCE)
    link: str | None = Field(None, description=_LINK)
    title: str
    heading_path: tuple[str, ...] = Field(description="headings above the passage, outermost first")
    page: int | None = Field(description="page number from 1; None if the format has no pages")
    start: int = Field(description="offset of the passage's first character in the document's extracted text")
    end: int = Field(description="offset one past its last character")
    shard: str = Field(description="region/department")
    path: str = Field("", description=_PATH)
    doc_id: str
    score: float | None = Field(description="cosine of question and passage, -1 to 1; None for a full-text search")
    chunk_id: str
    text: str
    table_header: str = Field("", description="first row of the table if the passage is a later piece of one")
    stale: bool = Field(False, description="whether the document has a newer version that could not be read")


class Hit(Place):
    """A passage that a search returned."""

    rank: int = Field(description="1 for the best")
    fused: float = Field(description="weighted sum of the scaled scores by words and vector, 0 to 1; orders the hits")
    reranked: float | None = Field(default=None, description="the reranker's score; orders the hits if present")
    also_in: tuple[str, ...] = Field((), description="sources of duplicate passages that were dropped")
    type: str
    modified_at: datetime


class Citation(Place):
    """A passage that supports the answer; the text cites it as ``[number]``."""

    number: int


class Hits(Sequence[Hit]):
    """Passages found, best first. `degraded` lists the parts of the search that failed."""

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

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per hit, best first; the columns are the fields of `Hit`. Raises `MissingExtra`."""
        with needs_extra("pandas", "Hits.to_pandas"):
            import pandas as pd
        return pd.DataFrame([hit.model_dump() for hit in self._hits], columns=list(Hit.model_fields))


class _DocumentFacts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str = Field(description=_SOURCE)
    link: str | None = Field(None, description=_LINK)
    title: str
    shard: str = Field(description="region/department")
    path: str = Field(description=_PATH)
    doc_id: str
    type: str
    modified_at: datetime


class FoundDocument(_DocumentFacts):
    """A document that a search found, with its best passages, best first."""

    rank: int = Field(description="1 for the best")
    passages: tuple[Hit, ...] = Field(min_length=1)


class FoundDocuments(Sequence[FoundDocument]):
    """Documents found, best first. `degraded` lists the parts of the search that failed."""

    def __init__(self, hits: Hits, count: int) -> None:
        """Group the hits of a search by document, and keep the first `count` documents."""
        grouped: dict[tuple[str, str], list[Hit]] = {}
        for hit in hits:
            grouped.setdefault((hit.shard, hit.doc_id), []).append(hit)
        shared = ("source", "link", "title", "shard", "path", "doc_id", "type", "modified_at")
        self._documents = tuple(
            FoundDocument(rank=rank, passages=tuple(found), **{name: getattr(found[0], name) for name in shared})
            for rank, found in enumerate(list(grouped.values())[:count], start=1)
        )
        self.timings = hits.timings
        self.degraded = hits.degraded

    @overload
    def __getitem__(self, index: int) -> FoundDocument: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[FoundDocument, ...]: ...
    def __getitem__(self, index: int | slice) -> FoundDocument | tuple[FoundDocument, ...]:
        return self._documents[index]

    def __len__(self) -> int:
        return len(self._documents)

    def __iter__(self) -> Iterator[FoundDocument]:
        return iter(self._documents)

    def __repr__(self) -> str:
        best = f", best={self._documents[0].source!r}" if self._documents else ""
        return f"FoundDocuments({len(self._documents)}{best})"


class Passage(BaseModel):
    """A passage of a document that is read from its beginning. Passages do not overlap."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    start: int = Field(description="offset of the passage's first character in the document's extracted text")
    end: int = Field(description="offset one past its last character")
    page: int | None = Field(description="page number from 1; None if the format has no pages")
    heading_path: tuple[str, ...] = Field(description="headings above the passage, outermost first")
    text: str
    table_header: str = Field("", description="first row of the table if the passage is a later piece of one")


class Document(_DocumentFacts):
    """A published document and a part of its text."""

    etag: str = Field(description="of the source object when it was indexed")
    stale: bool = Field(description="whether the document has a newer version that could not be read")
    pages: int | None = Field(description="number of the last page with text; None if the format has no pages")
    passages: tuple[Passage, ...] = Field(description="in the order of the document")
    next: int | None = Field(description="number of the first passage that is not included; None at the end")
    total: int = Field(description="number of the document's passages")


class ShardInfo(BaseModel):
    """A published shard."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    region: str
    department: str
    documents: int
    chunks: int
    quarantined: int = Field(description="documents that could not be read")
    version: int = Field(description="published version of the shard's table")
    published_at: datetime

    @property
    def shard(self) -> str:
        """``region/department``."""
        return f"{self.region}/{self.department}"


class KnownFieldsOnly(BaseModel):
    """Refuses an object at its first unknown field; an error for each of many blocks a worker for half a second."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, given: Any) -> Any:
        known = cls.model_fields
        if cls.model_config.get("extra") != "forbid" or not isinstance(given, dict):
            return given
        fields = cast("dict[Any, Any]", given)
        if len(fields) <= len(known):
            return fields
        unknown = next(name for name in fields if name not in known)
        return {name: fields[name] for name in (*known, unknown) if name in fields}


class Turn(KnownFieldsOnly):
    """A question of a conversation and its answer."""

    model_config = ConfigDict(frozen=True)

    question: str
    answer: str


class Quote(BaseModel):
    """A part of a passage that an extract quotes, without markup."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: int = Field(description="number of the citation that it is from")
    heading_path: tuple[str, ...] = Field(description="headings above it, outermost first")
    before: str = Field("", description="what it continues: sentences, the lead-in of a list, other rows of the table")
    match: str = Field(description="the sentence, list item or row that answers; a row as `header: value`")
    after: str = Field("", description="what follows it")

    @property
    def text(self) -> str:
        """The quoted text."""
        return "".join((self.before, self.match, self.after))


class Answer(BaseModel):
    """An answer with its sources."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    question: str
    text: str
    citations: tuple[Citation, ...]
    quotes: tuple[Quote, ...] = Field(
        default=(), description="what an extract quotes, best first; the text is made of them"
    )
    kind: Literal["generated", "extract", "none"] = Field(
        description="generated by the language model, extracted from the documents, or none: no answer was found, and "
        "any quotes are only near"
    )
    model: str | None = Field(description="name of the language model; None unless the answer is generated")
    cache: CacheState = Field(
        default="miss",
        description="exact or semantic hit; revalidated: a hit whose documents changed but whose passages did not; "
        "miss; bypass: the cache is off or unavailable",
    )
    cache_reason: str | None = Field(
        default=None, description="why the cache served the answer, or which guard refused the nearest stored question"
    )
    similarity: float | None = Field(default=None, description="cosine with the cached question, for hits")
    cached_question: str | None = Field(default=None, description="the cached question, for semantic hits")
    entry: str | None = Field(default=None, description="cache entry, used by `feedback`; None if not cached")
    shared: bool = Field(default=False, description="whether a concurrent request for the same question produced it")
    standalone_question: str | None = Field(
        default=None, description="the follow-up question rewritten to stand alone, as answered and cached"
    )
    degraded: tuple[str, ...] = Field((), description="what failed on the way; empty for a complete answer")
    tokens: dict[str, int] = Field(
        default_factory=dict[str, int], description="prompt and completion tokens used; empty for hits"
    )
    cost: float | None = Field(
        default=None, description="US dollars by litellm's price list; 0 for hits, None if the price is unknown"
    )
    timings: dict[str, float] = Field(default_factory=dict[str, float], description="milliseconds per phase, and total")

    @computed_field(description="`degraded` in words")  # type: ignore[prop-decorator]
    @property
    def notes(self) -> tuple[str, ...]:
        """`degraded` in words."""
        return tuple(map(in_words, self.degraded))
