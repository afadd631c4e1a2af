"""The public interface of the asynchronous clients, including validation of arguments.

It has two implementations: `AsyncRagClient` answers from a lake, `RemoteRagClient` queries a service.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import date
from types import TracebackType
from typing import Any, Self

from rag_serving.cache.entries import ReviewItem, StoreState
from rag_serving.events import Event
from rag_serving.lake.search.query import Mode, Query
from rag_serving.lake.shards import check_names
from rag_serving.results import Answer, Document, FoundDocuments, Hits, ShardInfo, Turn
from rag_serving.validation import (
    MAX_K,
    validate_history,
    validate_k,
    validate_mode,
    validate_moment,
    validate_part,
    validate_passages,
    validate_per_document,
    validate_prefix,
    validate_question,
    validate_tenant,
)

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Health:
    """Current state of a client: published shards, cache, and name of the language model."""

    shards: int
    cache: StoreState
    model: str | None


@dataclass(frozen=True, slots=True)
class Scope:
    """Validated scope of a question: the shards to search (None: all) and the tenant who asks."""

    regions: tuple[str, ...] | None = None
    departments: tuple[str, ...] | None = None
    within: tuple[str, ...] | None = None
    tenant: str = DEFAULT_TENANT

    @classmethod
    def checked(
        cls,
        regions: Sequence[str] | None,
        departments: Sequence[str] | None,
        within: Sequence[str] | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Self:
        """Validate and build; raises `InvalidShardName` or `InvalidArgument`.

        The patterns in `within` are checked where they are applied.
        """
        return cls(
            check_names("region", regions),
            check_names("department", departments),
            None if within is None else tuple(within),
            validate_tenant(tenant),
        )


class BaseRagClient(ABC):
    """Searches and answers. Use and `close` it within one event loop."""

    async def search(
        self,
        question: str,
        *,
        regions: Sequence[str] | None = None,
        departments: Sequence[str] | None = None,
        k: int = 8,
        mode: Mode = "hybrid",
        path_prefix: str | None = None,
        modified_from: date | None = None,
        modified_before: date | None = None,
        join_neighbours: bool = False,
        per_document: int | None = None,
        within: Sequence[str] | None = None,
    ) -> Hits:
        """Return the `k` (1 to 100) best passages for a question.

        `regions` and `departments` restrict the search; None means all. `mode` is ``vector``, ``text`` (full-text
        search, needs no embedding model) or ``hybrid`` (both, fused). `path_prefix`
        filters on the object's key below ``region/department/``. `modified_from` (inclusive) and `modified_before`
        (exclusive) filter on the document's last modification; dates and times without a zone are taken as UTC.

        Duplicates of a better passage are dropped and listed in its `also_in`. `join_neighbours` merges adjacent
        passages of a document, and `per_document` limits the passages of each. `within` limits the search to shards
        that match a pattern such as ``oslo/*``; use it for access control.

        Raises `InvalidQuestion`, `InvalidArgument`, `InvalidShardName`, `UnknownScope`, `LakeError` or
        `EmbedderUnavailable`. A service also raises `Overloaded`, `NotAllowed`, `TooManyRequests`, `DeadlineExceeded`
        and `ServiceError`.
        """
        query = Query(
            validate_question(question),
            validate_k(k),
            mode=validate_mode(mode),
            path_prefix=validate_prefix(path_prefix),
            modified_from=validate_moment("modified_from", modified_from),
            modified_before=validate_moment("modified_before", modified_before),
            join_neighbours=join_neighbours,
            per_document=validate_per_document(per_document),
        )
        return await self._search(query, Scope.checked(regions, departments, within))

    async def search_documents(
        self,
        question: str,
        *,
        regions: Sequence[str] | None = None,
        departments: Sequence[str] | None = None,
        k: int = 8,
        passages: int = 3,
        mode: Mode = "hybrid",
        path_prefix: str | None = None,
        modified_from: date | None = None,
        modified_before: date | None = None,
        within: Sequence[str] | None = None,
    ) -> FoundDocuments:
        """Return the `k` best documents for a question, each with up to `passages` of its best passages.

        A document ranks where its best passage does. At most 100 passages are returned, so that many documents have
        fewer. The other arguments and the errors are those of `search`.
        """
        hits = await self.search(
            question,
            regions=regions,
            departments=departments,
            k=min(validate_k(k) * validate_passages(passages), MAX_K),
            mode=mode,
            path_prefix=path_prefix,
            modified_from=modified_from,
            modified_before=modified_before,
            per_document=passages,
            within=within,
        )
        return FoundDocuments(hits, k)

    async def ask(
        self,
        question: str,
        *,
        regions: Sequence[str] | None = None,
        departments: Sequence[str] | None = None,
        k: int = 8,
        history: Sequence[Turn | dict[str, Any]] = (),
        tenant: str = DEFAULT_TENANT,
        within: Sequence[str] | None = None,
    ) -> Answer:
        """Answer a question, from the cache if an equivalent question was answered before.

        The answer is based on up to `k` passages. `history` holds the previous turns of a conversation, oldest first;
        the question is then rewritten to stand alone before it is answered and cached. Only questions of the same
        `tenant` share cached answers. The other arguments are those of `search`.

        Raises the errors of `search`, `Overloaded` and `DeadlineExceeded`. A failing cache or language model raises
        nothing; it is reported in `Answer.degraded`.
        """
        query = Query(validate_question(question), validate_k(k))
        scope = Scope.checked(regions, departments, within, tenant)
        return await self._ask(query, scope, validate_history(history))

    async def stream(
        self,
        question: str,
        *,
        regions: Sequence[str] | None = None,
        departments: Sequence[str] | None = None,
        k: int = 8,
        history: Sequence[Turn | dict[str, Any]] = (),
        tenant: str = DEFAULT_TENANT,
        within: Sequence[str] | None = None,
    ) -> AsyncGenerator[Event]:
        """Stream an answer as `rag_serving.events`; the arguments are those of `ask`.

        Invalid arguments raise on the first event. Later errors end the stream with a `Failed` event.
        """
        query = Query(validate_question(question), validate_k(k))
        scope = Scope.checked(regions, departments, within, tenant)
        async with aclosing(self._stream(query, scope, validate_history(history))) as events:
            async for event in events:
                yield event

    async def feedback(self, answer: Answer, *, correct: bool, tenant: str = DEFAULT_TENANT) -> bool:
        """Report whether an answer was correct. Drops a wrong answer from the cache; returns whether it was there.

        If the cache served it for another question, the pair is recorded to recalibrate the guards. Raises
        `InvalidQuestion`, `CacheUnavailable`, and `InvalidArgument` if the answer belongs to another tenant.
        """
        validate_question(answer.standalone_question or answer.question)
        return await self._feedback(answer, correct, validate_tenant(tenant))

    async def document(
        self,
        region: str,
        department: str,
        doc_id: str,
        *,
        first: int = 0,
        count: int = 200,
        within: Sequence[str] | None = None,
    ) -> Document:
        """Return a published document with `count` (1 to 500) of its passages from number `first` on.

        `within` is that of `search`. Raises `UnknownDocument`, `InvalidArgument` or `LakeError`, and the errors of a
        service.
        """
        validate_part(first, count)
        scope = Scope.checked(None, None, within)
        return await self._document(region, department, doc_id, first, count, scope)

    async def shards(self, *, within: Sequence[str] | None = None) -> list[ShardInfo]:
        """List the published shards, sorted; `within` is that of `search`."""
        return await self._shards(Scope.checked(None, None, within))

    async def warm(
        self, *, regions: Sequence[str] | None = None, departments: Sequence[str] | None = None
    ) -> list[ShardInfo]:
        """Open the tables and load the indexes and models of a scope, so that its first question is fast.

        Versions published later are warmed automatically. Raises the errors of `search`; a service raises `NotOffered`.
        """
        return await self._warm(Scope.checked(regions, departments))

    @abstractmethod
    async def health(self) -> Health:
        """Check that questions can be answered; raises `LakeError` if the lake cannot be read."""

    @abstractmethod
    async def notes(self) -> list[ReviewItem]:
        """Return pairs of questions to review, newest first: near misses, shadow hits, and pairs with feedback.

        Raises `CacheUnavailable`; a service raises `NotOffered`.
        """

    @abstractmethod
    def stats(self) -> dict[str, int]:
        """Return counters since the client was created: answers by cache state, refusals by guard, model calls.

        A service raises `NotOffered`.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close connections and tables."""

    @abstractmethod
    async def _search(self, query: Query, scope: Scope) -> Hits: ...

    @abstractmethod
    async def _ask(self, query: Query, scope: Scope, turns: tuple[Turn, ...]) -> Answer: ...

    @abstractmethod
    def _stream(self, query: Query, scope: Scope, turns: tuple[Turn, ...]) -> AsyncGenerator[Event]: ...

    @abstractmethod
    async def _feedback(self, answer: Answer, correct: bool, tenant: str) -> bool: ...

    @abstractmethod
    async def _document(
        self, region: str, department: str, doc_id: str, first: int, count: int, scope: Scope
    ) -> Document: ...

    @abstractmethod
    async def _shards(self, scope: Scope) -> list[ShardInfo]: ...

    @abstractmethod
    async def _warm(self, scope: Scope) -> list[ShardInfo]: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
