"""Routes of OpenAI's protocol."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from rag_serving.api_schemas import AskRequest
from rag_serving.events import Delta, Done, Event
from rag_serving.http.auth import Principal
from rag_serving.http.openai.answer_fields import sources_footer
from rag_serving.http.openai.chat import ChatCompletion
from rag_serving.http.openai.conversation import Conversation, conversation_of
from rag_serving.http.openai.front_end_prompts import is_front_end_prompt, reply_events
from rag_serving.http.openai.models import Model, model_named, models_of
from rag_serving.http.openai.refusals import refuse_unsupported
from rag_serving.http.openai.responses import ResponseObject
from rag_serving.http.openai.schemas import ChatRequest, ResponsesRequest
from rag_serving.http.service import Allowed, service_of
from rag_serving.http.streams import (
    answer_events,
    answer_of,
    begun,
    chained,
    recorded,
    stream_schema,
    streamed,
    while_connected,
)
from rag_serving.results import QUESTION_CUT, Answer

openai_routes = APIRouter(prefix="/v1")

_RESPONSE_EVENTS = (
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.annotation.added",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
    "response.incomplete",
    "response.failed",
)


@openai_routes.get("/models", summary="List models (OpenAI-compatible)")
async def models(request: Request, caller: Allowed) -> dict[str, Any]:
    """Return the models that the key may use: `rag-shards`, and one for each region and each shard.

    Models with the suffix `:sources` list the cited sources at the end of the text.
    """
    return {"object": "list", "data": [_described(model) for model in await _models(request, caller)]}


@openai_routes.get("/models/{model:path}", summary="Describe a model (OpenAI-compatible)")
async def model(model: str, request: Request, caller: Allowed) -> dict[str, Any]:
    """Return a model that the key may use."""
    return _described(await _model_named(request, model, caller))


@openai_routes.post(
    "/chat/completions",
    responses=stream_schema("message"),
    summary="Create a chat completion (OpenAI-compatible)",
    response_model=None,
)
async def chat(body: ChatRequest, request: Request, caller: Allowed) -> Response:
    """Answer the last message; the messages before it are its history.

    Citations are returned as `annotations` of the message and as `citations` of the response. `regions` and
    `departments` restrict the search within the scope of the model.
    """
    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return await _answered(request, body, caller, lambda model: ChatCompletion(model, with_usage))


@openai_routes.post(
    "/responses",
    responses=stream_schema(*_RESPONSE_EVENTS),
    summary="Create a response (OpenAI-compatible)",
    response_model=None,
)
async def responses(body: ResponsesRequest, request: Request, caller: Allowed) -> Response:
    """Answer the last message of the input; the messages before it are its history.

    Citations are returned as annotations of the text and as `citations` of the response. `instructions` are ignored,
    and nothing is stored. `regions` and `departments` restrict the search within the scope of the model.
    """
    return await _answered(request, body, caller, ResponseObject)


class _Protocol(Protocol):
    """Converts an answer to one of OpenAI's two protocols."""

    def whole(self, answer: Answer) -> dict[str, Any]: ...

    def streamed(self, event: Event) -> Iterator[bytes]: ...


async def _answered(
    request: Request,
    body: ChatRequest | ResponsesRequest,
    caller: Principal,
    protocol_of: Callable[[str], _Protocol],
) -> Response:
    """Answer the last message, as a whole or as a stream; `protocol_of` gets the id of the model."""
    refuse_unsupported(body)
    model = await _model_named(request, body.model, caller)
    first, rest = await while_connected(request, begun(_events(request, body, model, caller)))
    protocol = protocol_of(model.id)
    if not body.stream:
        answer = await while_connected(request, answer_of(first, rest))
        return JSONResponse(protocol.whole(answer), headers={"x-cache": answer.cache})

    async def sent() -> AsyncGenerator[bytes]:
        async for event in chained(first, rest):
            for part in protocol.streamed(event):
                yield part

    return streamed(request, first, sent())


async def _models(request: Request, caller: Principal) -> list[Model]:
    return models_of(await service_of(request).client.shards(within=caller.within))


async def _model_named(request: Request, name: str, caller: Principal) -> Model:
    """Return the model with this name; raises `UnknownModel`, also for shards that the caller may not see."""
    return model_named(name, await _models(request, caller) if "/" in name else models_of(()))


def _described(model: Model) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": int(time.time()), "owned_by": "rag-shards"}


def _events(
    request: Request, body: ChatRequest | ResponsesRequest, model: Model, caller: Principal
) -> AsyncGenerator[Event]:
    """Return the events of the answer to the last message."""
    conversation = conversation_of(body.messages)
    service = service_of(request)
    if is_front_end_prompt(conversation.last):
        return recorded(request, reply_events(service.client, conversation.last))
    regions, departments = model.narrow(body.regions, body.departments)
    ask = AskRequest(
        question=conversation.question,
        history=list(conversation.turns),
        regions=regions,
        departments=departments,
    )
    events = recorded(request, answer_events(request, ask, caller))
    lists_sources = model.lists_sources or service.settings.sources_footer
    return _completed(events, conversation, lists_sources=lists_sources)


async def _completed(
    events: AsyncGenerator[Event], conversation: Conversation, *, lists_sources: bool
) -> AsyncGenerator[Event]:
    """Yield the events; add the footer to the text, and the mark of a question that was cut."""
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, Done):
                yield event
                continue
            answer = event.answer
            footer = sources_footer(answer) if lists_sources else ""
            if footer:
                yield Delta(text=footer)
            marks = (QUESTION_CUT,) if conversation.is_too_long else ()
            update = {"text": answer.text + footer, "degraded": (*answer.degraded, *marks)}
            yield Done(answer=answer.model_copy(update=update))
