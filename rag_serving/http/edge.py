"""What holds for every request before and after its route: an id, limits, one line of log, and metrics."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_serving.http.metrics import Metrics

_log = logging.getLogger("rag_serving.access")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNLIMITED = ("/healthz", "/readyz", "/metrics")


class Edge:
    """ASGI middleware. Refuses bodies larger than `max_body`, and more than `concurrency` requests at once.

    The log has no question, no key and no text of a document.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_body: int, concurrency: int) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body = max_body
        self._concurrency = concurrency
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

        async def limited() -> Message:
            nonlocal received, too_large
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body and not begun:
                too_large = True
                return {"type": "http.disconnect"}
            return message

        async def noted(message: Message) -> None:
            if too_large:  # what the route makes of half a body is of no interest
                return
            await told(message)

        async def told(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        received, too_large = 0, False
        self._inside += 1
        self._metrics.in_flight.inc()
        try:
            length = headers.get(b"content-length", "0")
            if not length.isdecimal() or int(length) > self._max_body:
                await _refuse(told, 413, "TooLarge", f"a request has at most {self._max_body} bytes")
            elif self._inside > self._concurrency and scope["path"] not in _UNLIMITED:
                await _refuse(told, 503, "Overloaded", "too many requests at once; ask again in a moment", retry=1)
            else:
                try:
                    await self._app(scope, limited, noted)
                finally:
                    if too_large and not begun:
                        await _refuse(told, 413, "TooLarge", f"a request has at most {self._max_body} bytes")
        finally:
            self._inside -= 1
            self._metrics.in_flight.dec()
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.observe(route, scope["method"], status, seconds)
            if scope["path"] not in _UNLIMITED:
                line: dict[str, Any] = {
                    "request_id": request_id,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 1),
                    "key": scope.get("state", {}).get("key", ""),
                    "cache": scope.get("state", {}).get("cache", ""),
                }
                _log.info("%s", json.dumps(line))


async def _refuse(send: Send, status: int, kind: str, message: str, retry: int | None = None) -> None:
    body = json.dumps({"error": {"type": kind, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry is not None:
        headers.append((b"retry-after", str(retry).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
