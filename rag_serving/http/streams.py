"""Events of an answer on their way to a caller: early errors, callers who leave, and heartbeats."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from rag_serving.api_schemas import AskRequest
from rag_serving.errors import error_named
from rag_serving.events import Delta, Done, Event, Failed, Sources
from rag_serving.http.auth import Principal
from rag_serving.http.documents.presentation import Presentation
from rag_serving.http.service import service_of, told_to_caller
from rag_serving.results import Answer

_T = TypeVar("_T")

EVENT_STREAM = "text/event-stream"
_UNBUFFERED = {"cache-control": "no-store", "x-accel-buffering": "no"}
_HEARTBEAT = b": still working\n\n"
"""A comment in a stream; proxies close a connection that is silent for a minute."""


def stream_schema(*events: str) -> dict[int | str, dict[str, Any]]:
    """Describe a response that may be a stream of events with these names, for OpenAPI."""
    properties = {"data": {"type": "string"}, "event": {"type": "string", "enum": list(events)}}
    item = {"type": "object", "required": ["data"], "properties": properties}
    return {200: {"content": {EVENT_STREAM: {"itemSchema": item}}}}


def answer_events(request: Request, ask: AskRequest, caller: Principal) -> AsyncGenerator[Event]:
    """Return the events of the answer to a question."""
    return service_of(request).client.stream(
        ask.question,
        regions=ask.regions,
        departments=ask.departments,
        k=ask.k,
        history=ask.history,
        tenant=caller.tenant,
        within=caller.within,
    )


async def recorded(request: Request, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    """Yield the events of an answer as callers see them, and record how long they took and what the answer cost."""
    presentation = Presentation.of(request)
    began = time.perf_counter()
    first_text: float | None = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta) and first_text is None:
                first_text = time.perf_counter() - began
            if isinstance(event, Done):
                request.state.cache = event.answer.cache
                service_of(request).metrics.answered(event.answer, time.perf_counter() - began, first_text)
            if isinstance(event, Failed):
                yield event.model_copy(update={"message": told_to_caller(event.error, event.message)})
            else:
                yield presentation.event(event)


def streamed(request: Request, first: Event, parts: AsyncGenerator[bytes]) -> StreamingResponse:
    """Return the parts as a stream of server-sent events, with heartbeats; `first` is the answer's first event."""
    seconds = service_of(request).settings.heartbeat_seconds
    cache = {"x-cache": first.cache} if isinstance(first, Sources) and first.cache is not None else {}
    return StreamingResponse(
        _with_heartbeats(parts, seconds), media_type=EVENT_STREAM, headers={**_UNBUFFERED, **cache}
    )


async def _with_heartbeats(parts: AsyncGenerator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """Yield the parts, and a comment whenever none came for so many seconds."""
    async with aclosing(parts):
        while True:
            coming = asyncio.ensure_future(anext(parts, None))
            try:
                while not (await asyncio.wait((coming,), timeout=seconds))[0]:
                    yield _HEARTBEAT
            finally:
                if not coming.done():  # the caller left
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
            part = coming.result()
            if part is None:
                return
            yield part


async def begun(events: AsyncGenerator[Event]) -> tuple[Event, AsyncGenerator[Event]]:
    """Wait for the first event, so that an early error gets its own status instead of an event in a 200 response."""
    first = await anext(events)
    if isinstance(first, Failed):
        raise error_named(first.error)(first.message)
    return first, events


async def chained(first: Event, rest: AsyncGenerator[Event]) -> AsyncIterator[Event]:
    """Yield the first event and the others."""
    async with aclosing(rest):  # at once when the caller leaves, so that the answer is cancelled
        yield first
        async for event in rest:
            yield event


async def while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of `work`, or cancel it and raise `CallerLeft` when the caller closes the connection."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise CallerLeft
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Wait until the caller closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class CallerLeft(Exception):
    """The caller closed the connection before the response."""


async def answer_of(first: Event, rest: AsyncGenerator[Event]) -> Answer:
    """Return the answer that ends the events, or raise the error that does."""
    async for event in chained(first, rest):
        if isinstance(event, Failed):
            raise error_named(event.error)(event.message)
        if isinstance(event, Done):
            return event.answer
    raise AssertionError("an answer ends with Done or Failed")
