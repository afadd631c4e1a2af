"""What every request passes through: request ids, limits, one line of access log, and metrics."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_serving.api_schemas import ErrorBody
from rag_serving.errors import NotAllowed, TooManyRequests
from rag_serving.http.auth import Principal
from rag_serving.http.logs import FIELDS, request_id
from rag_serving.http.metrics import Metrics
from rag_serving.http.settings import HttpSettings
from rag_serving.http.watching import RequestsInProgress
from rag_serving.tracing import current_trace, describe_request

access_log = logging.getLogger("rag_serving.access")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MCP = "/mcp"
AUTHENTICATED = ("/v1/", MCP)
"""Beginnings of the paths that need a key."""
_ASK_BY_BROWSER = 'Basic realm="an API key as the password"'
"""Lets a browser ask for the key of a page; not under `AUTHENTICATED`, where the page itself asks for it."""
_OPERATIONS = ("/metrics", "/docs", "/openapi.json")
"""Beginnings of the paths that need one with RAG_HTTP_PROTECT_METRICS."""
UNLIMITED = ("/healthz", "/readyz", "/metrics")
"""Paths that probes and scrapers poll: never refused for concurrency, neither logged nor traced."""


class RequestLimits:
    """ASGI middleware that enforces the limits in `settings`: body size, concurrency, slow senders and readers.

    The access log contains no question, no key and no text of a document.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        settings: HttpSettings,
        authenticate: Callable[[HTTPConnection], Awaitable[Principal]],
        paths: Collection[str],
        in_progress: RequestsInProgress | None = None,
    ) -> None:
        """Wrap the application; `paths` are those of its routes, by which refused requests are logged and counted."""
        self._app = app
        self._in_progress = in_progress
        self._authenticated = (*AUTHENTICATED, *(_OPERATIONS if settings.protect_metrics else ()))
        self._authenticate = authenticate
        self._paths = frozenset(paths)
        self._metrics = metrics
        self._settings = settings
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._settings, scope, receive, send)
        request_id.set(exchange.request_id)
        if (task := asyncio.current_task()) is not None:
            task.set_name(exchange.request_id)
        slot = None
        if self._in_progress is not None:
            slot = self._in_progress.begin(f"{exchange.request_id} {scope['method']} {scope['path'][:60]}")
        self._inside += 1
        self._metrics.in_flight.inc()
        try:
            await self._serve(exchange)
        except Exception:
            if not exchange.stalled:
                raise  # otherwise the connection is closed, and no error can be sent
        finally:
            self._inside -= 1
            self._metrics.in_flight.dec()
            self._record(exchange)
            if self._in_progress is not None:
                self._in_progress.end(slot)

    async def _serve(self, exchange: "_Exchange") -> None:
        length = exchange.headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > self._settings.max_body:
            await exchange.refuse(_too_large(self._settings))
        elif self._inside > self._settings.concurrency and exchange.scope["path"] not in UNLIMITED:
            await exchange.refuse(_Refusal(503, "Overloaded", "too many concurrent requests; retry shortly", 1))
        elif (refusal := await self._identified(exchange)) is not None:
            await exchange.refuse(refusal)
        else:
            try:
                await self._app(exchange.scope, exchange.receive, exchange.send_unless_refused)
            finally:
                if exchange.refusal is not None and not exchange.begun:
                    await exchange.refuse(exchange.refusal)

    async def _identified(self, exchange: "_Exchange") -> "_Refusal | None":
        """Authenticate the caller by the head of the request, before a byte of the body is read."""
        if not exchange.scope["path"].startswith(self._authenticated):
            return None
        try:
            caller = await self._authenticate(HTTPConnection(exchange.scope))
        except (NotAllowed, TooManyRequests) as error:
            scheme, hint = _ASK_BY_BROWSER, ", or as the password of Basic authentication"
            if exchange.scope["path"].startswith(AUTHENTICATED):
                scheme, hint = "Bearer", ""
            hint = hint if isinstance(error, NotAllowed) else ""
            kind = type(error)
            return _Refusal(_REFUSED[kind], kind.__name__, f"{error}{hint}", error.retry_after, scheme)
        exchange.scope.setdefault("state", {}).update(caller=caller, key=caller.key)
        return None

    def _record(self, exchange: "_Exchange") -> None:
        """Count the request and write its line of log."""
        scope, seconds = exchange.scope, time.perf_counter() - exchange.started
        # A request that was refused has no route; if the path of its route has parameters, it counts as another.
        path = scope["path"] if scope["path"] in self._paths else "other"
        route = getattr(scope.get("route"), "path", path)
        self._metrics.observe(route, scope["method"], exchange.status, seconds)
        if scope["path"] not in UNLIMITED:
            key, cache = exchange.describe()
            fields = {
                "request_id": exchange.request_id,
                "trace_id": exchange.trace_id,
                "client": scope["client"][0] if scope.get("client") else "",
                "method": scope["method"],
                "route": route,
                "status": exchange.status,
                "ms": round(seconds * 1000, 1),
                "key": key,
                "cache": cache,
            }
            access_log.info("%s %s %d", scope["method"], route, exchange.status, extra={FIELDS: fields})


_REFUSED = {NotAllowed: 401, TooManyRequests: 429}


class _Exchange:
    """One request and its response, with the limits on reading and writing them."""

    def __init__(self, settings: HttpSettings, scope: Scope, receive: Receive, send: Send) -> None:
        self._settings = settings
        self._receive = receive
        self._send = send
        self._deadline = asyncio.get_running_loop().time() + settings.body_seconds
        self._received = 0
        self._body_complete = False
        self.scope = scope
        self.headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = self.headers.get(b"x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.started = time.perf_counter()
        self.status = 500
        self.trace_id = ""
        self.begun = False
        """Whether the response has begun."""
        self.stalled = False
        """Whether the client stopped reading the response, or the connection was closed."""
        self.refusal: _Refusal | None = None

    async def receive(self) -> Message:
        """Return the next part of the body; a body that is too slow or too large looks like a disconnect."""
        if self._body_complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            late = f"the request body did not arrive within {self._settings.body_seconds:g} seconds"
            self.refusal = self.refusal or _Refusal(408, "TooSlow", late)
            return {"type": "http.disconnect"}
        self._body_complete = not message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if self._received > self._settings.max_body and not self.begun:
            self.refusal = _too_large(self._settings)
            return {"type": "http.disconnect"}
        return message

    async def send_unless_refused(self, message: Message) -> None:
        """Send a message of the route; what it makes of half a body is dropped."""
        if self.refusal is None:
            await self._write(message)

    async def refuse(self, refusal: "_Refusal") -> None:
        """Send an error response."""
        for message in refusal.messages(closing=not self._body_complete and self._has_body):
            await self._write(message)

    @property
    def _has_body(self) -> bool:
        return self.headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in self.headers

    def describe(self) -> tuple[str, str]:
        """Describe the request on its span; returns the id of its key and the state of the cache."""
        state = self.scope.get("state", {})
        key, cache = state.get("key", ""), state.get("cache", "")
        describe_request(key=key, cache=cache, has_query=bool(self.scope.get("query_string")))
        return key, cache

    async def _write(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.describe()  # before the last byte, which ends the request's span
        if message["type"] == "http.response.start":
            self.begun, self.status, self.trace_id = True, message["status"], current_trace()
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        try:
            async with asyncio.timeout(self._settings.send_seconds):
                await self._send(message)
        except TimeoutError:
            self.stalled = True
            raise
        except RuntimeError as error:  # of the transport, if the connection was closed in the meantime
            self.stalled = "closed" in str(error)
            raise


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An error response of this middleware."""

    status: int
    kind: str
    message: str
    retry_after: int | None = None
    scheme: str = ""
    """How to present a key, if the request has none that is valid."""

    def messages(self, *, closing: bool) -> tuple[Message, Message]:
        """Return the response. `closing` ends the connection, so that the rest of the body need not be read."""
        body = ErrorBody.of(self.kind, self.message).model_dump_json().encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers.append((b"www-authenticate", self.scheme.encode()))
        if closing:
            headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": self.status, "headers": headers}
        return start, {"type": "http.response.body", "body": body}


def _too_large(settings: HttpSettings) -> _Refusal:
    return _Refusal(413, "TooLarge", f"the request body exceeds {settings.max_body} bytes")
