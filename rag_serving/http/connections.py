"""Bounds on what a connection may cost before its request is known: bytes and seconds of a head, idle connections.

uvicorn's parser of HTTP bounds none of them. h11 bounds the bytes, but parses at a fifth of the speed.
"""

import asyncio
import logging
import resource
from asyncio.events import TimerHandle
from collections import Counter, OrderedDict
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rag_serving.http.settings import HttpSettings

CONNECTIONS = "connections"
"""Key of the `Connections` in the application's state, where the protocol finds them."""

_log = logging.getLogger(__name__)


class Connections:
    """The open connections of one process, and the limits that they share."""

    def __init__(self, settings: HttpSettings) -> None:
        self.head_bytes = settings.head_bytes
        self.head_seconds = settings.head_seconds
        self.most = min(settings.connections, _connections_within_files())
        self.closed: Counter[str] = Counter()
        """Connections that a limit closed, by reason."""
        self._open: set[BoundedHttpProtocol] = set()
        self._idle: OrderedDict[BoundedHttpProtocol, None] = OrderedDict()
        self._is_full = False

    @property
    def open(self) -> int:
        """Number of open connections."""
        return len(self._open)

    def opened(self, connection: "BoundedHttpProtocol") -> bool:
        """Count a connection; returns False if it must be refused, because all others are busy."""
        if len(self._open) >= self.most and not self._closed_an_idle_one():
            self.closed["no_free_connection"] += 1
            self._log_change(full=True)
            return False
        self._open.add(connection)
        self.idle(connection)
        return True

    def idle(self, connection: "BoundedHttpProtocol") -> None:
        """Note that a connection waits for a request."""
        self._idle[connection] = None

    def busy(self, connection: "BoundedHttpProtocol") -> None:
        """Note that a connection has a request."""
        self._idle.pop(connection, None)

    def gone(self, connection: "BoundedHttpProtocol") -> None:
        """Forget a connection that was closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
        if len(self._open) < self.most * 0.9:
            self._log_change(full=False)

    def _closed_an_idle_one(self) -> bool:
        if not self._idle:
            return False
        longest_idle, _ = self._idle.popitem(last=False)
        self.closed["idle_when_full"] += 1
        self._open.discard(longest_idle)
        longest_idle.transport.close()
        return True

    def _log_change(self, *, full: bool) -> None:
        if full and not self._is_full:
            _log.warning(
                "refusing connections: %d are open and busy; raise RAG_HTTP_CONNECTIONS or add workers", self.most
            )
        elif self._is_full and not full:
            _log.info("accepting connections again")
        self._is_full = full


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, within the bounds of the `Connections` in the application's state."""

    _limits: Connections
    _in_head = False
    _heads = 0
    """Number of heads that began."""
    _head_received = 0
    """Bytes of the unfinished head in reads that belong to it alone."""
    _head_parsed = 0
    _refused = False
    _deadline: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and give it a time to send a head."""
        super().connection_made(transport)
        self._limits = self.app_state[CONNECTIONS]
        if self._limits.opened(self):
            self._expect_head()
        else:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; retry shortly")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._limits.gone(self)
        self._end_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what was received, unless it belongs to a head that is too large."""
        if self._refused:
            return
        unfinished = self._heads if self._in_head else None
        super().data_received(data)
        if self._in_head and self._heads == unfinished:
            self._head_received += len(data)
            if self._head_received > self._limits.head_bytes:
                self._refuse_head()
        waiting = not self.cycle or self.cycle.response_complete
        if waiting and self._deadline is None and not self.transport.is_closing():
            self._expect_head()

    def on_message_begin(self) -> None:
        """Begin to count the bytes of a head."""
        super().on_message_begin()
        self._in_head, self._head_received, self._head_parsed = True, 0, 0
        self._heads += 1

    def on_url(self, url: bytes) -> None:
        """Count a part of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request."""
        self._in_head = False
        self._end_wait()
        self._limits.busy(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self._limits.idle(self)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that could not be parsed; nothing more is read from its connection."""
        if not self._refused:
            _log.warning("invalid HTTP request from %s", self.client[0] if self.client else "unknown")
            self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Serve a request that offers an upgrade, as HTTP asks for, without a warning for each."""

    def _count(self, length: int) -> None:
        self._head_parsed += length
        if self._head_parsed > self._limits.head_bytes:
            self._refuse_head()
            raise ValueError("the head is too large")  # ends the parser

    def _refuse_head(self) -> None:
        self._limits.closed["large_head"] += 1
        allowed = f"the head of the request exceeds {self._limits.head_bytes} bytes"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, allowed)

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self._limits.head_seconds, self._too_slow)

    def _end_wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        self._limits.closed["slow_head"] += 1
        seconds = f"the head of the request did not arrive within {self._limits.head_seconds:g} seconds"
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, seconds)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._refused = True
        self._unset_keepalive_if_required()
        self._end_wait()
        body = f'{{"error":{{"type":"{_NAMES[status]}","message":"{message}"}}}}'
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        retry = "retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
        self.transport.write(f"{head}{retry}content-length: {len(body)}\r\n\r\n{body}".encode())
        self.transport.close()


_NAMES = {
    HTTPStatus.BAD_REQUEST: "InvalidRequest",
    HTTPStatus.REQUEST_TIMEOUT: "TooSlow",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "TooLarge",
    HTTPStatus.SERVICE_UNAVAILABLE: "Overloaded",
}

_OTHER_FILES = 512
"""Open files that a process needs for everything but its callers: tables, models, Redis."""


def _connections_within_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - _OTHER_FILES, soft // 2)
