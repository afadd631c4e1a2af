"""The FastAPI application: routes over an `AsyncRagClient`."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi.sse import format_sse_event
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Route

from rag_serving import errors
from rag_serving.api_schemas import (
    AskRequest,
    DocumentSearchRequest,
    DocumentSearchResponse,
    ErrorBody,
    FeedbackRequest,
    FeedbackResponse,
    SearchRequest,
    SearchResponse,
)
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.errors import RagError, in_plain_words
from rag_serving.http.api_keys import ApiKeys
from rag_serving.http.auth import Authenticator, Principal
from rag_serving.http.connections import CONNECTIONS, Connections
from rag_serving.http.documents.presentation import Presentation
from rag_serving.http.documents.routes import documents
from rag_serving.http.metrics import Metrics
from rag_serving.http.middleware import MCP, UNLIMITED, RequestLimits
from rag_serving.http.openai.routes import openai_routes
from rag_serving.http.operations import operations
from rag_serving.http.rate_limits import RateLimits
from rag_serving.http.service import (
    Allowed,
    Service,
    load_models,
    notice_before_stopping,
    report_regularly,
    service_of,
    told_to_caller,
)
from rag_serving.http.settings import HttpSettings
from rag_serving.http.streams import (
    EVENT_STREAM,
    CallerLeft,
    answer_events,
    answer_of,
    begun,
    chained,
    recorded,
    stream_schema,
    streamed,
    while_connected,
)
from rag_serving.http.watching import RequestsInProgress
from rag_serving.results import Answer, ShardInfo

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

_STATUS: Mapping[type[RagError], int] = {
    errors.InvalidQuestion: 400,
    errors.InvalidArgument: 400,
    errors.InvalidShardName: 400,
    errors.UnknownScope: 404,
    errors.UnknownDocument: 404,
    errors.SourceGone: 404,
    errors.SourceNotOffered: 404,
    errors.SourceUnavailable: 503,
    errors.NotAllowed: 401,
    errors.TooManyRequests: 429,
    errors.Overloaded: 503,
    errors.DeadlineExceeded: 504,
    errors.LakeUnavailable: 503,
    errors.EmbedderUnavailable: 503,
    errors.CacheUnavailable: 503,
}
_RETRY = {
    errors.Overloaded: 1,
    errors.LakeUnavailable: 5,
    errors.SourceUnavailable: 5,
    errors.CacheUnavailable: 5,
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)
}
_CALLER_LEFT = 499
"""Status in the log of a request whose caller closed the connection, as nginx has it."""

# Spans are exported to OTEL_EXPORTER_OTLP_ENDPOINT. Logs are not: they contain error messages, and thus questions.
_TELEMETRY: TelemetryConfig = {
    "auto_configure": True,
    "logs": False,
    "metrics": False,
    "operation_spans": False,
    "exclude": lambda scope: scope["path"] in UNLIMITED,
}


def create_app(
    make_client: Callable[[], AsyncRagClient],
    settings: HttpSettings,
    *,
    make_rates: Callable[[], RateLimits] = RateLimits,
    version: str = "0",
    open_to_all: bool = False,
    shared: Path | None = None,
) -> FastAPI:
    """Create the application. `make_client` and `make_rates` are called on its event loop.

    Its requests in progress are recorded in the folder `shared`, for the parent of several processes. Raises
    `SettingsError` if there is no key file and the service is not `open_to_all`.
    """
    if settings.keys is None and not open_to_all:
        raise errors.SettingsError(
            "RAG_HTTP_KEYS is not set; set it and create keys with `rag-serving keys create`, or pass --open"
        )
    keys = None if open_to_all else ApiKeys(Path(settings.keys or ""))
    if keys is not None:
        keys.check()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        rates = make_rates()
        authenticator = Authenticator(keys, rates, failed_per_minute=settings.failed_keys_per_minute)
        try:
            async with make_client() as client, nullcontext() if agents is None else agents.run():
                service = Service(client, authenticator, metrics, rates, settings, Connections(settings))
                app.state.service = service
                notice_before_stopping(service)
                background = [asyncio.create_task(report_regularly(service)), asyncio.create_task(load_models(service))]
                yield {CONNECTIONS: service.connections}
                for task in background:
                    task.cancel()
                service.watch.close()
        finally:
            await rates.close()

    app = FastAPI(
        title="rag-shards",
        version=version,
        description="Answers from the published shards of a lake.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=_TELEMETRY,
    )

    async def authenticate(connection: HTTPConnection) -> Principal:
        service: Service = app.state.service
        return await service.authenticator.authenticate(connection)

    agents = _agents(lambda: app.state.service)
    routes = [*_api.routes, *openai_routes.routes, *documents.routes, *operations.routes]
    paths = ["/openapi.json", MCP, *(route.path for route in routes if isinstance(route, APIRoute))]
    app.add_middleware(
        RequestLimits,
        metrics=metrics,
        settings=settings,
        authenticate=authenticate,
        paths=paths,
        in_progress=None if shared is None else RequestsInProgress(shared),
    )
    _add_error_handlers(app)
    app.include_router(_api)
    app.include_router(openai_routes, responses=_ERRORS, dependencies=_NEEDS_KEY)
    app.include_router(documents, prefix="/v1", responses=_ERRORS, dependencies=_NEEDS_KEY)
    app.include_router(operations)
    if agents is not None:
        app.router.routes.append(Route(MCP, agents.asgi_app, methods=["GET", "POST", "DELETE"]))
    return app


def _agents(service: Callable[[], Service]) -> "StreamableHTTPSessionManager | None":
    """Return what serves agents by MCP; None if the package is not installed."""
    if find_spec("mcp") is None:
        return None
    from rag_serving.clients.mcp_server import Access, http_sessions, mcp_server

    def access(request: Request) -> Access:
        caller: Principal = request.state.caller
        presentation = Presentation.of(request)
        return Access(caller.within, caller.tenant, presentation.place, presentation.document)

    def told(error: RagError) -> str:
        return told_to_caller(type(error).__name__, str(error))

    return http_sessions(mcp_server(lambda: service().client, access, told))


async def _client_of(request: Request) -> AsyncRagClient:  # async, because FastAPI runs other dependencies in a thread
    return service_of(request).client


Client = Annotated[AsyncRagClient, Depends(_client_of)]

# For the OpenAPI description only; `auth.Authenticator` does the authentication.
_NEEDS_KEY = [Security(HTTPBearer(auto_error=False, description="an API key, created by rag-serving keys create"))]

_api = APIRouter(prefix="/v1", responses=_ERRORS, dependencies=_NEEDS_KEY)


@_api.post(
    "/ask",
    response_model=Answer,
    responses=stream_schema("sources", "delta", "restart", "citations", "done", "error"),
    summary="Answer a question with its sources",
)
async def ask(body: AskRequest, request: Request, caller: Allowed) -> Response:
    """Return the answer as JSON, or as server-sent events with `stream` or `Accept: text/event-stream`.

    The events are `sources`, `delta`, `citations` and `done`, or `error`; `restart` voids the deltas before it.
    """
    events = recorded(request, answer_events(request, body, caller))
    first, rest = await while_connected(request, begun(events))
    if body.stream or EVENT_STREAM in request.headers.get("accept", ""):

        async def sent() -> AsyncGenerator[bytes]:
            async for event in chained(first, rest):
                yield format_sse_event(event=event.type, data_str=event.model_dump_json(exclude={"type"}))

        return streamed(request, first, sent())
    answer = await while_connected(request, answer_of(first, rest))
    return Response(answer.model_dump_json(), media_type="application/json", headers={"x-cache": answer.cache})


@_api.post("/search", summary="Find passages")
async def search(body: SearchRequest, request: Request, client: Client, caller: Allowed) -> SearchResponse:
    """Return passages of published documents, best first."""
    hits = await client.search(**body.model_dump(), within=caller.within)
    shown = map(Presentation.of(request).place, hits)
    return SearchResponse(hits=list(shown), timings=hits.timings, degraded=list(hits.degraded))


@_api.post("/search/documents", summary="Find documents")
async def search_documents(
    body: DocumentSearchRequest, request: Request, client: Client, caller: Allowed
) -> DocumentSearchResponse:
    """Return published documents with their best passages, best first."""
    found = await client.search_documents(**body.model_dump(), within=caller.within)
    shown = map(Presentation.of(request).found, found)
    return DocumentSearchResponse(documents=list(shown), timings=found.timings, degraded=list(found.degraded))


@_api.post("/feedback", summary="Report whether an answer was correct")
async def feedback(body: FeedbackRequest, client: Client, caller: Allowed) -> FeedbackResponse:
    """Drop a wrong answer from the cache, and record the pair of questions to recalibrate it."""
    return FeedbackResponse(
        dropped=await client.feedback(body.answer.as_answer, correct=body.correct, tenant=caller.tenant)
    )


@_api.get("/shards", summary="List the shards that the key can see")
async def shards(client: Client, caller: Allowed) -> list[ShardInfo]:
    """Return the published shards, sorted."""
    return await client.shards(within=caller.within)


def _add_error_handlers(app: FastAPI) -> None:
    def reply(
        status: int,
        kind: str,
        message: str,
        retry: int | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
    ) -> Response:
        headers = {} if retry is None else {"retry-after": str(retry)}
        if status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        body = ErrorBody.of(kind, message, code, param).model_dump_json()
        return Response(body, status, headers, media_type="application/json")

    async def deliberate(_request: Request, error: Exception) -> Response:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        usual = next((seconds for kind, seconds in _RETRY.items() if isinstance(error, kind)), None)
        kind = type(error).__name__
        told = told_to_caller(kind, str(error))
        if not isinstance(error, RagError):
            return reply(status, kind, told, usual)
        retry = usual if error.retry_after is None else error.retry_after
        return reply(status, kind, told, retry, code=error.code, param=error.param)

    async def malformed(request: Request, error: Exception) -> Response:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and media_type != "application/json" and not media_type.endswith("+json"):
            return reply(415, "InvalidRequest", "send the body as JSON with the header Content-Type: application/json")
        found: list[dict[str, Any]] = list(error.errors()) if isinstance(error, RequestValidationError) else []
        if found and found[0]["type"] == "json_invalid":
            return reply(422, "InvalidRequest", f"the body is not valid JSON (character {found[0]['loc'][-1]})")
        problems = "; ".join(f"{_path(one['loc'])}: {in_plain_words(one)}" for one in found[:5])
        param = _path(found[0]["loc"][1:]) if found else ""
        return reply(422, "InvalidRequest", problems[:1_000], param=param or None)

    async def nobody(_request: Request, _error: Exception) -> Response:
        return Response(status_code=_CALLER_LEFT)

    async def plain(request: Request, error: Exception) -> Response:
        status = HTTPStatus(error.status_code if isinstance(error, HTTPException) else 500)
        if status == HTTPStatus.BAD_REQUEST:  # FastAPI's, for a body that is no UTF-8 or nested too deeply
            return reply(422, "InvalidRequest", "the body cannot be read as JSON; send UTF-8, without compression")
        headers = (error.headers or {}) if isinstance(error, HTTPException) else {}
        message = {
            HTTPStatus.NOT_FOUND: "this path does not exist; GET /docs lists the routes",
            HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method} is not allowed here; use {headers.get('Allow')}",
        }.get(status, status.description or status.phrase)
        response = reply(status, status.phrase.title().replace(" ", ""), message)
        response.headers.update(headers)
        return response

    app.add_exception_handler(RagError, deliberate)
    app.add_exception_handler(CallerLeft, nobody)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, plain)


def _path(location: Iterable[Any]) -> str:
    """Return the path of a field, without pydantic's names of the types that were tried."""
    return ".".join(str(part) for part in location if not re.search(r"\[|^constrained-|^str$", str(part)))
