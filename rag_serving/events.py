"""The events by which an answer comes, the same ones whether the cache or the language model gives it.

`sources`, then `delta`s, `citations` and `done`; or `error` at any place. `restart` says that the deltas before it are
void, because the model or the process that wrote them failed midway and another began anew.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from rag_serving.errors import DeadlineExceeded, RagError
from rag_serving.results import Answer, Citation


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Sources(_Event):
    """The numbered passages that the answer may rest on; for an answer from the cache, those that it cites."""

    type: Literal["sources"] = "sources"
    sources: tuple[Citation, ...]


class Delta(_Event):
    """The next piece of the answer's text, as the model writes it: citations are checked in `done` only."""

    type: Literal["delta"] = "delta"
    text: str


class Restart(_Event):
    """The deltas so far are void."""

    type: Literal["restart"] = "restart"


class Citations(_Event):
    """The passages that the answer refers to, after the check."""

    type: Literal["citations"] = "citations"
    citations: tuple[Citation, ...]


class Done(_Event):
    """The whole answer. The last event."""

    type: Literal["done"] = "done"
    answer: Answer


class Failed(_Event):
    """No answer; `error` names one of `rag_serving.errors`. The last event."""

    type: Literal["error"] = "error"
    error: str
    message: str


Event = Annotated[Sources | Delta | Restart | Citations | Done | Failed, Field(discriminator="type")]

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
"""Reads and writes events as JSON."""


def replayed(answer: Answer) -> tuple[Event, ...]:
    """A finished answer as the events of one in the making."""
    return (
        Sources(sources=answer.citations),
        Delta(text=answer.text),
        Citations(citations=answer.citations),
        Done(answer=answer),
    )


def failed(error: RagError) -> Failed:
    """An error as the last event."""
    return Failed(error=type(error).__name__, message=str(error))


async def finished(events: AsyncIterator[Event]) -> Done | Failed:
    """The last event."""
    last: Event | None = None
    async for event in events:
        last = event
    if not isinstance(last, (Done, Failed)):
        raise AssertionError("an answer ends with Done or Failed")
    return last


async def until(deadline: float, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    """The events, until that time of the loop; raises `DeadlineExceeded`, and what they raise."""
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except DeadlineExceeded:  # their own, which is a TimeoutError too
                raise
            except TimeoutError as error:
                raise DeadlineExceeded("no answer within the time that one question may take") from error
            yield event
