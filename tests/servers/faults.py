"""A loopback proxy between S3 clients and a real S3 server that injects wrong, late or missing responses.

Requests pass through byte for byte, including the signed Host header, so a request that matches no rule gets the real
server's own response.
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

HOST = "127.0.0.1"
_UPSTREAM_SECONDS = 60
_REPORTED_BY_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Fault(enum.Enum):
    """What can go wrong with a request."""

    SLOW_DOWN = "503 SlowDown; the server never sees the request"
    INTERNAL_ERROR = "500 InternalError; the server never sees the request"
    REFUSED = "403 InvalidAccessKeyId, as after a change of the keys"
    RESET = "the connection is reset; the server never sees the request"
    LOST_RESPONSE = "the server executes the request, then the connection is reset"
    LOST_RESPONSE_500 = "the server executes the request, and the response is 500 InternalError"
    SHORT_BODY = "the original headers and half of the body, then the connection ends"
    CUT_LISTING = "half of the listing's XML, with a Content-Length to match"
    NO_TOKEN = "a truncated page of a listing without a continuation token"
    STALE_LISTING = "the first response to the same listing since `inject`"
    EMPTY_LISTING = "a listing without keys"
    SLOW = "the correct response, late"


@dataclass(frozen=True, slots=True)
class Rule:
    """Which requests get a fault. An omitted field matches every request."""

    fault: Fault
    method: str = ""
    path: str = ""
    """A regular expression, searched in the decoded path (``/bucket/key``), or in a listing's ``/bucket/prefix``."""
    kind: Literal["listing", "object", ""] = ""
    nth: tuple[int, ...] = ()
    """Which of the matching requests, counted from 1; all if empty."""
    share: float = 1.0
    """The share of those requests that get the fault, at random."""
    seconds: float = 0.5
    """The delay of a `SLOW` response."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as rules match it and as the server receives it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    chunked: bool

    @property
    def is_listing(self) -> bool:
        return self.method == "GET" and "list-type" in parse_qs(urlsplit(self.target).query)

    @property
    def path(self) -> str:
        parts = urlsplit(self.target)
        path = unquote(parts.path)
        if self.is_listing:
            return f"{path.rstrip('/')}/{parse_qs(parts.query).get('prefix', [''])[0]}"
        return path


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's response."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class FaultyS3:
    """The running proxy. Thread-safe; without rules it only forwards."""

    def __init__(self, endpoint_url: str, upstream: str) -> None:
        self.endpoint_url = endpoint_url
        self.injected: Counter[Fault] = Counter()
        """The number of requests that got each fault since the rules were set."""
        self.requests = 0
        """The number of requests since the rules were set."""
        self._upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self._rules: tuple[Rule, ...] = ()
        self._matched: Counter[int] = Counter()
        self._random = random.Random(0)
        self._first_listings: dict[str, Answer] = {}

    def inject(self, *rules: Rule, seed: int = 0) -> None:
        """Replace the rules (none: no faults) and reset all counters. The first matching rule applies."""
        with self._lock:
            self._rules = rules
            self._matched.clear()
            self.injected.clear()
            self.requests = 0
            self._random = random.Random(seed)
            self._first_listings.clear()

    def replay(self, *rules: Rule, seed: int = 0) -> None:
        """Like `inject`, but keep the recorded listings that stale listings repeat."""
        with self._lock:
            noted = dict(self._first_listings)
        self.inject(*rules, seed=seed)
        with self._lock:
            self._first_listings.update(noted)

    def fault_for(self, request: Request) -> Rule | None:
        """Count the request and return the rule that applies to it, if any."""
        with self._lock:
            self.requests += 1
            for index, rule in enumerate(self._rules):
                if rule.method not in ("", request.method) or not re.search(rule.path, request.path):
                    continue
                if rule.kind and (rule.kind == "listing") != request.is_listing:
                    continue
                if rule.fault is Fault.STALE_LISTING and request.target not in self._first_listings:
                    continue
                self._matched[index] += 1
                if rule.nth and self._matched[index] not in rule.nth:
                    continue
                if rule.share < 1 and self._random.random() >= rule.share:
                    continue
                self.injected[rule.fault] += 1
                return rule
        return None

    def forward(self, request: Request) -> Answer:
        """Return the real server's response."""
        connection = http.client.HTTPConnection(self._upstream, timeout=_UPSTREAM_SECONDS)
        with contextlib.closing(connection):
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                # The proxy has answered the 100-continue itself.
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders()
            if request.chunked:
                connection.send(b"%x\r\n%s\r\n" % (len(request.body), request.body) if request.body else b"")
                connection.send(b"0\r\n\r\n")
            elif request.body:
                connection.send(request.body)
            answered = connection.getresponse()
            answer = Answer(answered.status, tuple(answered.getheaders()), answered.read())
        if request.is_listing and answer.status == 200:
            with self._lock:
                self._first_listings.setdefault(request.target, answer)
        return answer

    def first_listing(self, request: Request) -> Answer:
        with self._lock:
            return self._first_listings[request.target]


@contextlib.contextmanager
def faulty_s3(upstream: str) -> Generator[FaultyS3]:
    """Run a proxy in front of the endpoint, on a free loopback port."""

    class Handler(_Handler):
        faulty: FaultyS3

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore clients that hang up."""

    server = Server((HOST, 0), Handler)
    Handler.faulty = faulty = FaultyS3(f"http://{HOST}:{server.server_address[1]}", upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="faulty-s3")
    thread.start()
    try:
        yield faulty
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()  # not server_close(), which would wait for kept connections


class _Handler(BaseHTTPRequestHandler):
    """One client connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write per answer
    disable_nagle_algorithm = True
    faulty: FaultyS3

    def log_message(self, *_: object) -> None:
        """Log nothing: the tests report errors."""

    def _serve(self) -> None:
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        body = self._chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, tuple(self.headers.items()), body, chunked)
        rule = self.faulty.fault_for(request)
        match None if rule is None else rule.fault:
            case None:
                self._give(self.faulty.forward(request))
            case Fault.SLOW_DOWN:
                self._give(_error(503, "SlowDown", "Please reduce your request rate."))
            case Fault.INTERNAL_ERROR:
                self._give(_error(500, "InternalError", "We encountered an internal error. Please try again."))
            case Fault.REFUSED:
                self._give(_error(403, "InvalidAccessKeyId", "The AWS Access Key Id does not exist in our records."))
            case Fault.RESET:
                self._reset()
            case Fault.LOST_RESPONSE:
                self.faulty.forward(request)
                self._reset()
            case Fault.LOST_RESPONSE_500:
                self.faulty.forward(request)
                self._give(_error(500, "InternalError", "We encountered an internal error. Please try again."))
            case Fault.SHORT_BODY:
                self._give(self.faulty.forward(request), share=0.5)
            case Fault.CUT_LISTING:
                answer = self.faulty.forward(request)
                self._give(Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2]))
            case Fault.NO_TOKEN:
                self._give(
                    _altered(self.faulty.forward(request), rb"<NextContinuationToken>.*?</NextContinuationToken>")
                )
            case Fault.EMPTY_LISTING:
                answer = _altered(self.faulty.forward(request), rb"<(Contents|CommonPrefixes)>.*?</\1>")
                answer = _altered(answer, rb"<NextContinuationToken>.*?</NextContinuationToken>")
                body = re.sub(rb"<KeyCount>\d+<", b"<KeyCount>0<", answer.body)
                body = body.replace(b"<IsTruncated>true<", b"<IsTruncated>false<")
                self._give(Answer(answer.status, answer.headers, body))
            case Fault.STALE_LISTING:
                self._give(self.faulty.first_listing(request))
            case Fault.SLOW:
                assert rule is not None
                time.sleep(rule.seconds)
                self._give(self.faulty.forward(request))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return body

    def _give(self, answer: Answer, share: float = 1.0) -> None:
        length = str(len(answer.body))
        if self.command == "HEAD":  # its length is that of a body that is not sent
            length = dict(answer.headers).get("Content-Length", length)
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in _REPORTED_BY_CONNECTION:
                self.send_header(name, value)
        if answer.status not in (204, 304):
            self.send_header("Content-Length", length)
        if share < 1:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: int(len(answer.body) * share)])
        self.wfile.flush()

    def _reset(self) -> None:
        # Closing a socket with a linger time of 0 sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _error(status: int, code: str, message: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer(status, (("Content-Type", "application/xml"),), body.encode())


def _altered(answer: Answer, without: bytes) -> Answer:
    return Answer(answer.status, answer.headers, re.sub(without, b"", answer.body, flags=re.DOTALL))
