"""The events of a streamed answer. They are the same whether the cache or the language model produces it.

The order is `sources`, any number of `delta`, `citations`, `done`; `error` may end the stream at any point. `restart`
voids all deltas before it: the model or process that wrote them failed and another one started over.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from rag_serving.errors import DeadlineExceeded, RagError
from rag_serving.results import Answer, CacheState, Citation


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Sources(_Event):
    """The numbered passages given to the model; for a cached answer, those that it cites."""

    type: Literal["sources"] = "sources"
    sources: tuple[Citation, ...]
    cache: CacheState | None = Field(
        default=None, description="state of the cache as far as it is known now; `done` has the final one"
    )


class Delta(_Event):
    """The next piece of the answer's text. Its citations are unchecked; the text in `done` is final."""

    type: Literal["delta"] = "delta"
    text: str


class Restart(_Event):
    """Voids the deltas so far."""

    type: Literal["restart"] = "restart"


class Citations(_Event):
    """The passages that the answer cites, checked."""

    type: Literal["citations"] = "citations"
    citations: tuple[Citation, ...]


class Done(_Event):
    """The complete answer; the last event."""

    type: Literal["done"] = "done"
    answer: Answer


class Failed(_Event):
    """The error that ended the stream, named as in `rag_serving.errors`; the last event."""

    type: Literal["error"] = "error"
    error: str
    message: str


Event = Annotated[Sources | Delta | Restart | Citations | Done | Failed, Field(discriminator="type")]

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
"""Reads and writes events as JSON."""


def replayed(answer: Answer) -> tuple[Event, ...]:
    """Return the events that stream a finished answer."""
    return (
        Sources(sources=answer.citations, cache=answer.cache),
        Delta(text=answer.text),
        Citations(citations=answer.citations),
        Done(answer=answer),
    )


def failed(error: RagError) -> Failed:
    """Return an error as the last event."""
    return Failed(error=type(error).__name__, message=str(error))


async def finished(events: AsyncIterator[Event]) -> Done | Failed:
    """Consume the events and return the last one."""
    last: Event | None = None
    async for event in events:
        last = event
    if not isinstance(last, (Done, Failed)):
        raise AssertionError("an answer ends with Done or Failed")
    return last


async def until(deadline: float, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    """Yield the events until the event loop's clock reaches `deadline`, then raise `DeadlineExceeded`."""
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except DeadlineExceeded:  # raised by the events themselves; it is a TimeoutError, too
                raise
            except TimeoutError as error:
                raise DeadlineExceeded("no answer before the deadline; retry, or raise the deadline") from error
            yield event
