"""What holds for every request before and after its route: an id, limits, one line of log, and metrics."""

import asyncio
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_serving.http.metrics import Metrics
from rag_serving.tracing import describe_request

_log = logging.getLogger("rag_serving.access")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
UNLIMITED = ("/healthz", "/readyz", "/metrics")
"""Paths that machines ask all the time: never refused for want of a place, neither logged nor traced."""


class RequestLimits:
    """ASGI middleware. Refuses bodies larger than `max_body`, and more than `concurrency` requests at once.

    Nobody keeps a place by being slow: a body must be there after `body_seconds`, and a reader must take what is sent
    within `send_seconds`. The log has no question, no key and no text of a document.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        max_body: int,
        concurrency: int,
        body_seconds: float,
        send_seconds: float,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body = max_body
        self._concurrency = concurrency
        self._body_seconds = body_seconds
        self._send_seconds = send_seconds
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started, status, begun = time.perf_counter(), 500, False

        deadline = asyncio.get_running_loop().time() + self._body_seconds

        async def limited() -> Message:
            nonlocal received, whole, refusal
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refusal = refusal or _Refusal(408, "TooSlow", f"a request is sent in {self._body_seconds:g} seconds")
                return {"type": "http.disconnect"}
            whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._max_body and not begun:
                refusal = too_large
                return {"type": "http.disconnect"}
            return message

        def describe() -> tuple[str, str]:
            state = scope.get("state", {})
            key, cache = state.get("key", ""), state.get("cache", "")
            describe_request(key=key, cache=cache, has_query=bool(scope.get("query_string")))
            return key, cache

        async def noted(message: Message) -> None:
            if refusal is None:  # what the route makes of half a body is of no interest
                await told(message)

        async def told(message: Message) -> None:
            nonlocal status, begun, stalled
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                describe()  # now, as the span of the request ends with its last byte
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            try:
                async with asyncio.timeout(self._send_seconds):
                    await send(message)
            except TimeoutError:
                stalled = True
                raise

        received, whole, stalled = 0, False, False
        refusal: _Refusal | None = None
        too_large = _Refusal(413, "TooLarge", f"a request has at most {self._max_body} bytes")
        self._inside += 1
        self._metrics.in_flight.inc()
        try:
            length = headers.get(b"content-length", "0")
            if not length.isdecimal() or int(length) > self._max_body:
                await too_large.send(told)
            elif self._inside > self._concurrency and scope["path"] not in UNLIMITED:
                crowded = _Refusal(503, "Overloaded", "too many requests at once; ask again in a moment", retry=1)
                await crowded.send(told)
            else:
                try:
                    await self._app(scope, limited, noted)
                finally:
                    if refusal is not None and not begun:
                        await refusal.send(told)
        except Exception:
            if not stalled:
                raise  # else the connection is closed, and there is nobody to tell
        finally:
            self._inside -= 1
            self._metrics.in_flight.dec()
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.observe(route, scope["method"], status, seconds)
            if scope["path"] not in UNLIMITED:
                key, cache = describe()
                line: dict[str, Any] = {
                    "request_id": request_id,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 1),
                    "key": key,
                    "cache": cache,
                }
                _log.info("%s", json.dumps(line))


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An error reply that this middleware sends itself."""

    status: int
    kind: str
    message: str
    retry: int | None = None

    async def send(self, send: Send) -> None:
        body = json.dumps({"error": {"type": self.kind, "message": self.message}}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if self.retry is not None:
            headers.append((b"retry-after", str(self.retry).encode()))
        if self.status == HTTPStatus.REQUEST_TIMEOUT:
            headers.append((b"connection", b"close"))  # nobody waits for the rest of the body
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
