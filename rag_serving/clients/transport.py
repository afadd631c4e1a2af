"""HTTP requests to a service, with bounded retries. Responses are size-limited and validated.

Needs the extra ``rag-shards[client]``.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Literal, NoReturn, TypeVar, cast

import httpx2
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from rag_serving.api_schemas import ErrorBody, NotReady
from rag_serving.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotAllowed,
    Overloaded,
    RagError,
    ServiceUnavailable,
    UnexpectedReply,
    error_named,
    first_problem,
)
from rag_serving.events import Citations, Delta, Done, Event, Failed, Restart, Sources

MOST_REPLY_BYTES = 32 * 2**20
MOST_EVENT_BYTES = 8 * 2**20
MOST_KEY_CHARACTERS = 512
_MOST_MESSAGE_CHARACTERS = 1_000
_URL = "RAG_SERVICE_URL (or base_url=)"
_KEY = "RAG_SERVICE_KEY (or key=)"
_CONNECT_SECONDS = 10.0
_BUSY = (429, 503)
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
_EVENTS: dict[str, TypeAdapter[Event]] = {
    kind.model_fields["type"].default: TypeAdapter(kind) for kind in (Sources, Delta, Restart, Citations, Done, Failed)
}
_jittered = wait_random_exponential(multiplier=0.5, max=8)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _Retryable(Exception):
    """A failed attempt that may be retried; `error` is raised when it is not."""

    def __init__(self, error: RagError) -> None:
        super().__init__(str(error))
        self.error = error


class ServiceTransport:
    """Connections to one service, opened on the first request. Belongs to one event loop."""

    def __init__(
        self,
        base_url: str,
        key: SecretStr | None,
        *,
        deadline: float,
        tries: int,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Check the arguments; raises `InvalidArgument`, which never shows the key."""
        self.address = _checked_address(base_url)
        self._secret = _checked_key(key)
        if not deadline > 0 or tries < 1:
            raise InvalidArgument("deadline must be more than 0 seconds, and tries at least 1")
        self._deadline = deadline
        self._tries = tries
        # A small compressed response could expand to any size.
        headers = {"accept-encoding": "identity"}
        if self._secret:
            headers["authorization"] = f"Bearer {self._secret}"
        self._http = httpx2.AsyncClient(
            base_url=self.address,
            headers=headers,
            # The deadline bounds reads: a model may take long before its first word.
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            transport=transport,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(
        self,
        method: Literal["GET", "POST"],
        path: str,
        reply: TypeAdapter[_T],
        body: BaseModel | None = None,
        *,
        idempotent: bool = True,
        tries: int | None = None,
    ) -> _T:
        """Return the validated response. Unless `idempotent`, a request that may have been executed is not retried.

        Raises the error that the service reports, `ServiceError` or `DeadlineExceeded`.
        """

        async def attempt() -> _T:
            async with self._reply(method, path, body, accept="application/json", idempotent=idempotent) as response:
                return self._validated(reply, await self._read(response))

        try:
            async with asyncio.timeout(self._deadline):
                return await self._tried(attempt, tries or self._tries)
        except DeadlineExceeded:  # reported by the service; it is a TimeoutError, too
            raise
        except TimeoutError as error:
            raise DeadlineExceeded(f"no response from {self.address} within {self._deadline:g} seconds") from error

    async def events(self, path: str, body: BaseModel) -> AsyncGenerator[Event]:
        """Yield the events of a stream up to the last one. Retries only until the first event arrives.

        Raises the errors of `call` except `DeadlineExceeded`; callers enforce their own deadline.
        """

        async def opened() -> tuple[AsyncExitStack, Event, AsyncGenerator[Event]]:
            async with AsyncExitStack() as stack:
                sent = self._reply("POST", path, body, accept="text/event-stream", idempotent=True)
                response = await stack.enter_async_context(sent)
                events = await stack.enter_async_context(aclosing(self._events(response)))
                first = await anext(events, None)
                if first is None:
                    raise UnexpectedReply(f"{self.address} sent a stream without events")
                return stack.pop_all(), first, events
            raise AssertionError("the stack suppresses no error")

        stack, event, events = await self._tried(opened, self._tries)
        try:
            async with stack:
                while True:
                    yield event
                    if isinstance(event, (Done, Failed)):
                        return
                    following = await anext(events, None)
                    if following is None:
                        raise ServiceUnavailable(f"{self.address} ended the stream before the answer was complete")
                    event = following
        except _Retryable as failure:
            raise failure.error from failure.__cause__

    async def _tried(self, attempt: Callable[[], Awaitable[_T]], tries: int) -> _T:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Retryable),
            stop=stop_after_attempt(tries) | stop_before_delay(self._deadline),
            wait=_pause,
            before_sleep=_log_pause,
            retry_error_callback=_give_up,
        )
        return await retrying(attempt)

    @asynccontextmanager
    async def _reply(
        self, method: str, path: str, body: BaseModel | None, *, accept: str, idempotent: bool
    ) -> AsyncGenerator[httpx2.Response]:
        """Open a response; raise this package's errors for error statuses and for failures while the body is read."""
        headers = {"accept": accept}
        content = None
        if body is not None:
            headers["content-type"] = "application/json"
            content = body.model_dump_json(exclude_unset=True).encode()  # an older service may not know a field
        try:
            async with self._http.stream(method, path, headers=headers, content=content) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise UnexpectedReply(f"{self.address} sent a compressed response, which was not requested")
                if response.status_code != HTTPStatus.OK:
                    raise self._refused(response, await self._read(response), idempotent=idempotent)
                yield response
        except (httpx2.SSEError, httpx2.DecodingError) as error:
            raise UnexpectedReply(f"{self.address} sent malformed events: {self._shown(str(error))}") from error
        except httpx2.HTTPError as error:
            problem = f"{type(error).__name__}: {self._shown(str(error))}".removesuffix(": ")
            if isinstance(error, _NEVER_SENT):
                unreachable = f"{self.address} cannot be reached ({problem}); check {_URL}, and that the service runs"
                raise _Retryable(ServiceUnavailable(unreachable)) from error
            lost = ServiceUnavailable(f"the connection to {self.address} was lost ({problem})")
            raise (_Retryable(lost) if idempotent else lost) from error

    async def _read(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        async with aclosing(response.aiter_raw()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > MOST_REPLY_BYTES:
                    raise UnexpectedReply(f"{self.address} sent more than {MOST_REPLY_BYTES} bytes")
        return bytes(body)

    async def _events(self, response: httpx2.Response) -> AsyncGenerator[Event]:
        source = httpx2.EventSource(response, max_event_size=MOST_EVENT_BYTES)
        async with aclosing(cast("AsyncGenerator[httpx2.ServerSentEvent]", aiter(source))) as received:
            async for one in received:
                if response.num_bytes_downloaded > MOST_REPLY_BYTES:
                    raise UnexpectedReply(f"{self.address} sent more than {MOST_REPLY_BYTES} bytes")
                if one.event in _EVENTS:  # a later version of the service may send others
                    event = self._validated(_EVENTS[one.event], one.data)
                    if isinstance(event, Failed):
                        event = event.model_copy(update={"message": self._shown(event.message)})
                    yield event

    def _validated(self, kind: TypeAdapter[_T], data: str | bytes) -> _T:
        try:
            return kind.validate_json(data)
        except ValidationError as error:
            problem = self._shown(first_problem(error))
        # Not chained: the ValidationError quotes the response.
        raise UnexpectedReply(
            f"unexpected response from {self.address}: {problem} (client and server versions may differ)"
        )

    def _refused(self, response: httpx2.Response, body: bytes, *, idempotent: bool) -> RagError | _Retryable:
        """Convert a response with an error status to an exception."""
        status = response.status_code
        error = self._named(status, body)
        error.retry_after = _retry_after(response.headers.get("retry-after", ""))
        not_executed = status == HTTPStatus.TOO_MANY_REQUESTS or isinstance(error, Overloaded)
        again = status in _BUSY and error.retry_after is not None and (idempotent or not_executed)
        return _Retryable(error) if again else error

    def _named(self, status: int, body: bytes) -> RagError:
        try:
            reported = ErrorBody.model_validate_json(body).error
        except ValidationError:
            return self._unnamed(status, body)
        kind = error_named(reported.type)
        if kind is NotAllowed:
            return NotAllowed(self._not_allowed())
        if reported.type == "NotFound":
            return UnexpectedReply(f"{self.address} has no such route; {_URL} must not end with a path such as /v1")
        if kind is RagError:
            about_the_request = status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
            other = ServiceUnavailable if status >= HTTPStatus.INTERNAL_SERVER_ERROR else UnexpectedReply
            kind = InvalidArgument if about_the_request else other
        return kind(self._shown(reported.message) or reported.type)

    def _unnamed(self, status: int, body: bytes) -> RagError:
        try:
            problem = NotReady.model_validate_json(body).problem
        except ValidationError:
            message = f"{self.address} responded with status {status} and no error of the service"
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                return ServiceUnavailable(message)
            return UnexpectedReply(f"{message}; check that {_URL} is the address of `rag-serving serve`")
        return error_named(problem)(f"{self.address} is not ready: {self._shown(problem)}; retry shortly")

    def _not_allowed(self) -> str:
        if not self._secret:
            return f"{self.address} requires an API key; set {_KEY}"
        return f"{self.address} rejects the API key: it is unknown or revoked; set a valid one with {_KEY}"

    def _shown(self, text: str) -> str:
        """Sanitize text from the service for a message: one line, bounded length, our key redacted."""
        if self._secret:
            text = text.replace(self._secret, "[key]")
        return "".join(c if c.isprintable() else " " for c in text[:_MOST_MESSAGE_CHARACTERS]).strip()


def _pause(state: RetryCallState) -> float:
    return _jittered(state) + (_failure(state).error.retry_after or 0)


def _log_pause(state: RetryCallState) -> None:
    _log.info("attempt %d failed, retrying in %.1f s: %s", state.attempt_number, state.upcoming_sleep, _failure(state))


def _give_up(state: RetryCallState) -> NoReturn:
    failure = _failure(state)
    if state.attempt_number > 1:
        failure.error.args = (f"{failure.error} (after {state.attempt_number} attempts)",)
    _log.info("giving up: %s", failure.error)  # the caller gets the error
    raise failure.error from failure.__cause__


def _failure(state: RetryCallState) -> _Retryable:
    return cast("_Retryable", state.outcome.exception() if state.outcome is not None else None)


def _retry_after(text: str) -> int | None:
    """Parse a ``Retry-After`` header, a number of seconds or a date, to seconds."""
    if text.isdecimal():
        return int(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return max(0, math.ceil((moment - datetime.now(UTC)).total_seconds()))


def _checked_address(base_url: str) -> str:
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, TypeError):
        raise InvalidArgument(f"{_URL} is not a URL; write for example https://rag.example.com") from None
    if url.scheme not in ("http", "https"):
        raise InvalidArgument(f"{_URL} must start with http:// or https://")
    if not url.host or url.userinfo or url.query or url.fragment:
        raise InvalidArgument(f"{_URL} must have a host, and no user, query or fragment")
    return str(url).rstrip("/")


def _checked_key(key: SecretStr | None) -> str:
    text = "" if key is None else key.get_secret_value().strip()
    # The HTTP library's error for an invalid header would show the key.
    if len(text) > MOST_KEY_CHARACTERS or not all("!" <= c <= "~" for c in text):
        raise InvalidArgument(
            f"the API key in {_KEY} is malformed: expected rag_<8 hex>_<43 chars>; if it is lost, create a new one "
            "with `rag-serving keys create`"
        )
    return text
