"""What every asynchronous client offers: the public methods with the checks of their arguments, once for all of them.

Two clients stand behind it: `AsyncRagClient` answers from a lake itself, `RemoteRagClient` asks a service that does.
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
from rag_serving.results import Answer, Hits, ShardInfo, Turn
from rag_serving.validation import (
    validate_history,
    validate_k,
    validate_mode,
    validate_moment,
    validate_prefix,
    validate_question,
    validate_tenant,
)

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Health:
    """What a client can do just now."""

    shards: int
    cache: StoreState
    model: str | None


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look, and on whose behalf; checked. None is everything."""

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
        """Raises `InvalidShardName` and `InvalidArgument`. Patterns of `within` are checked where they are applied."""
        return cls(
            check_names("region", regions),
            check_names("department", departments),
            None if within is None else tuple(within),
            validate_tenant(tenant),
        )


class BaseRagClient(ABC):
    """Searches and answers. Use it within one event loop, and `close` it there."""

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
        within: Sequence[str] | None = None,
    ) -> Hits:
        """The `k` (1 to 100) best passages in those regions and departments; None means all of them.

        `mode` says what finds them: the meaning (``vector``), the words (``text``, which needs no embedding model), or
        both, fused by rank (``hybrid``). `path_prefix` is the beginning of the object's key below
        ``region/department/``; `modified_from` (inclusive) and `modified_before` (exclusive) are of the document's last
        change, a date or a time without a zone being taken for UTC. A passage that repeats a better one is left out and
        named in the other's `also_in`. With `join_neighbours`, passages that follow each other in their document come
        as one. `within` holds patterns of the shards that the caller may see, as in ``oslo/*``; no other exists then.

        Raises `InvalidQuestion`, `InvalidArgument`, `InvalidShardName`, `UnknownScope`, `LakeError` or
        `EmbedderUnavailable`; of a service also `Overloaded`, `NotAllowed`, `TooManyRequests`, `DeadlineExceeded` and
        `ServiceError`.
        """
        query = Query(
            validate_question(question),
            validate_k(k),
            mode=validate_mode(mode),
            path_prefix=validate_prefix(path_prefix),
            modified_from=validate_moment("modified_from", modified_from),
            modified_before=validate_moment("modified_before", modified_before),
            join_neighbours=join_neighbours,
        )
        return await self._search(query, Scope.checked(regions, departments, within))

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
        """An answer from those regions and departments, from the cache when an equal question was answered before.

        `k` is how many passages the answer may rest on. `history` holds the turns of a conversation before, oldest
        first: the question is then rewritten into one that stands alone, which is what is answered and cached. Answers
        are shared within a `tenant` only. `within` is as for `search`.

        Raises what `search` raises, `Overloaded` and `DeadlineExceeded`; a failing cache or language model does not
        raise but is named in `Answer.degraded`.
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
        """The answer as it is made, see `rag_serving.events`; the same events whether the cache answers or not.

        Wrong arguments raise at the first event; what fails later is the last event, `Failed`.
        """
        query = Query(validate_question(question), validate_k(k))
        scope = Scope.checked(regions, departments, within, tenant)
        async with aclosing(self._stream(query, scope, validate_history(history))) as events:
            async for event in events:
                yield event

    async def feedback(self, answer: Answer, *, correct: bool, tenant: str = DEFAULT_TENANT) -> bool:
        """Tell whether an answer was right. A wrong one leaves the cache; says whether it was there.

        The pair of questions, where the answer was found by another one, is kept for a recalibration of the guards.
        Raises `InvalidQuestion`, `InvalidArgument` for an answer of another tenant, and `CacheUnavailable`.
        """
        validate_question(answer.standalone_question or answer.question)
        return await self._feedback(answer, correct, validate_tenant(tenant))

    async def shards(self, *, within: Sequence[str] | None = None) -> list[ShardInfo]:
        """What is published now, sorted by shard; `within` is as for `search`."""
        return await self._shards(Scope.checked(None, None, within))

    async def warm(
        self, *, regions: Sequence[str] | None = None, departments: Sequence[str] | None = None
    ) -> list[ShardInfo]:
        """Open the tables and load the indexes and models for a scope, so that its first question is quick.

        Versions published later are warmed by themselves. Raises what `search` raises, and `NotOffered` of a service.
        """
        return await self._warm(Scope.checked(regions, departments))

    @abstractmethod
    async def health(self) -> Health:
        """Whether questions can be answered; raises `LakeError` where the lake cannot be read."""

    @abstractmethod
    async def notes(self) -> list[ReviewItem]:
        """Pairs of questions that were refused narrowly, served in the shadow, or judged by people; newest first.

        Raises `CacheUnavailable`, and `NotOffered` of a service.
        """

    @abstractmethod
    def stats(self) -> dict[str, int]:
        """What happened since this client began: answers by state of the cache, refusals by guard, model calls.

        Raises `NotOffered` of a service.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and tables."""

    @abstractmethod
    async def _search(self, query: Query, scope: Scope) -> Hits: ...

    @abstractmethod
    async def _ask(self, query: Query, scope: Scope, turns: tuple[Turn, ...]) -> Answer: ...

    @abstractmethod
    def _stream(self, query: Query, scope: Scope, turns: tuple[Turn, ...]) -> AsyncGenerator[Event]: ...

    @abstractmethod
    async def _feedback(self, answer: Answer, correct: bool, tenant: str) -> bool: ...

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
