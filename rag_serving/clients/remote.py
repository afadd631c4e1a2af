"""The client of a running service; it has the methods, types and errors of the client of a lake."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, NoReturn, Self
from urllib.parse import quote

from pydantic import SecretStr, TypeAdapter

from rag_serving import api_schemas as bodies
from rag_serving.cache.entries import ReviewItem
from rag_serving.clients import base as interface
from rag_serving.clients.base import BaseRagClient, Health, Scope
from rag_serving.errors import InvalidArgument, NotOffered, RagError, SettingsError
from rag_serving.events import Event, failed, until
from rag_serving.lake.search.query import Query
from rag_serving.requirements import needs_extra
from rag_serving.results import Answer, Document, Hits, ShardInfo, Turn
from rag_serving.settings import SERVICE_DEADLINE, SERVICE_TRIES, ServiceSettings

if TYPE_CHECKING:
    import httpx2

_ANSWER = TypeAdapter(Answer)
_FOUND = TypeAdapter(bodies.SearchResponse)
_HEALTH = TypeAdapter(Health)
_DOCUMENT = TypeAdapter(Document)
_SHARDS = TypeAdapter(list[ShardInfo])
_FEEDBACK = TypeAdapter(bodies.FeedbackResponse)


class RemoteRagClient(BaseRagClient):
    """Queries the service at `base_url` with an API key. Use and `close` it within one event loop.

    A question takes at most `deadline` seconds and `tries` requests. Failed connections and responses with
    ``Retry-After`` (429, 503) are retried, but never once a stream has begun. The key determines the tenant and the
    shards that are visible. `transport` replaces httpx2's connections, for example to use a private certificate
    authority.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        *,
        deadline: float = SERVICE_DEADLINE,
        tries: int = SERVICE_TRIES,
        transport: "httpx2.AsyncBaseTransport | None" = None,
    ) -> None:
        """Connect lazily; raises `InvalidArgument` or `MissingExtra`."""
        with needs_extra("client", "a client of a service"):
            from rag_serving.clients.transport import ServiceTransport
        secret = None if key is None else SecretStr(key)
        self._transport = ServiceTransport(base_url, secret, deadline=deadline, tries=tries, transport=transport)
        self._deadline = deadline

    @classmethod
    def from_env(cls) -> Self:
        """Create a client of the service at `RAG_SERVICE_URL`; raises `SettingsError`."""
        settings = ServiceSettings.from_env()
        if settings.url is None:
            raise SettingsError("RAG_SERVICE_URL is not set; set it to the URL of the service")
        key = None if settings.key is None else settings.key.get_secret_value()
        try:
            return cls(settings.url, key, deadline=settings.deadline, tries=settings.tries)
        except InvalidArgument as error:
            raise SettingsError(str(error)) from None

    def __repr__(self) -> str:
        return f"RemoteRagClient({self._transport.address!r})"

    async def health(self) -> Health:
        """Check once that the service can answer; raises the error that prevents it, or `ServiceError`."""
        return await self._transport.call("GET", "/readyz", _HEALTH, tries=1)

    async def notes(self) -> list[ReviewItem]:
        """Raise `NotOffered`."""
        _not_offered("notes")

    def stats(self) -> dict[str, int]:
        """Raise `NotOffered`; the service exposes its counters at ``/metrics``."""
        _not_offered("stats")

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def _search(self, query: Query, scope: Scope) -> Hits:
        _check_scope(scope)
        body = bodies.SearchRequest(
            question=query.question,
            regions=_listed(scope.regions),
            departments=_listed(scope.departments),
            k=query.k,
            mode=query.mode,
            path_prefix=query.path_prefix,
            modified_from=query.modified_from,
            modified_before=query.modified_before,
            join_neighbours=query.join_neighbours,
            **({} if query.per_document is None else {"per_document": query.per_document}),
        )
        found = await self._transport.call("POST", "/v1/search", _FOUND, body)
        return Hits(found.hits, found.timings, tuple(found.degraded))

    async def _ask(self, query: Query, scope: Scope, turns: tuple[Turn, ...]) -> Answer:
        return await self._transport.call("POST", "/v1/ask", _ANSWER, _question(query, scope, turns))

    async def _stream(self, query: Query, scope: Scope, turns: tuple[Turn, ...]) -> AsyncGenerator[Event]:
        deadline = asyncio.get_running_loop().time() + self._deadline
        body = _question(query, scope, turns).model_copy(update={"stream": True})
        begun = False
        try:
            async with aclosing(until(deadline, self._transport.events("/v1/ask", body))) as events:
                async for event in events:
                    begun = True
                    yield event
        except RagError as error:
            if not begun:
                raise
            yield failed(error)

    async def _feedback(self, answer: Answer, correct: bool, tenant: str) -> bool:
        _check_scope(Scope(tenant=tenant))
        # Not retried once it may have arrived: dropping an entry is idempotent, but recording the pair is not.
        rated = bodies.RatedAnswer.model_validate(answer.model_dump(include={*bodies.RatedAnswer.model_fields}))
        body = bodies.FeedbackRequest(answer=rated, correct=correct)
        return (await self._transport.call("POST", "/v1/feedback", _FEEDBACK, body, idempotent=False)).dropped

    async def _document(
        self, region: str, department: str, doc_id: str, first: int, count: int, scope: Scope
    ) -> Document:
        _check_scope(scope)
        path = "/".join(quote(part, safe="") for part in (region, department, doc_id))
        return await self._transport.call("GET", f"/v1/documents/{path}?first={first}&count={count}", _DOCUMENT)

    async def _shards(self, scope: Scope) -> list[ShardInfo]:
        _check_scope(scope)
        return await self._transport.call("GET", "/v1/shards", _SHARDS)

    async def _warm(self, scope: Scope) -> list[ShardInfo]:  # noqa: ARG002  # the interface's
        _not_offered("warm")


def _question(query: Query, scope: Scope, turns: tuple[Turn, ...]) -> bodies.AskRequest:
    _check_scope(scope)
    return bodies.AskRequest(
        question=query.question,
        regions=_listed(scope.regions),
        departments=_listed(scope.departments),
        k=query.k,
        history=list(turns),
    )


def _listed(names: tuple[str, ...] | None) -> list[str] | None:
    if names is not None and len(names) > bodies.MOST_NAMES:
        raise InvalidArgument(f"a service accepts at most {bodies.MOST_NAMES} regions or departments")
    return None if names is None else list(names)


def _check_scope(scope: Scope) -> None:
    if scope.tenant != interface.DEFAULT_TENANT:
        raise InvalidArgument("the API key of a service determines the tenant; omit the argument")
    if scope.within is not None:
        raise InvalidArgument("the API key of a service determines the visible shards; omit the argument within")


def _not_offered(what: str) -> NoReturn:
    raise NotOffered(f"a service does not offer {what}; use a client of the lake itself (AsyncRagClient)")
