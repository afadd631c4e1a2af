"""The part of OpenAI's chat completions API that clients and chat front ends use."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rag_serving.api_schemas import AskRequest, ChatRequest
from rag_serving.errors import InvalidArgument
from rag_serving.events import Delta, Done, Event, Failed, Restart
from rag_serving.results import Answer, Citation, Turn
from rag_serving.validation import MAX_QUESTION_CHARACTERS, MAX_TURNS

MODEL = "rag-shards"
_RESTART = "\n\n---\n\n"
"""Separates the text of a failed model from that of the next one, because this protocol cannot retract text."""


@dataclass(frozen=True, slots=True)
class CompletionIdentity:
    """The fields that all parts of one response share."""

    id: str
    created: int

    def of(self, kind: str, **more: Any) -> dict[str, Any]:
        """Build an object of the protocol."""
        return {"id": self.id, "object": kind, "created": self.created, "model": MODEL, **more}


def models() -> dict[str, Any]:
    """Return the list of models, which has one entry."""
    entry = {"id": MODEL, "object": "model", "created": int(time.time()), "owned_by": "rag-shards"}
    return {"object": "list", "data": [entry]}


def question_of(request: ChatRequest) -> AskRequest:
    """Convert the last message to a question and the exchanges before it to its history.

    `system` and `developer` messages are ignored: callers cannot change how sources are used. Raises `InvalidArgument`
    unless the last message is the user's.
    """
    if request.model.partition("/")[0] != MODEL:
        raise InvalidArgument(f"unknown model; use {MODEL}")
    dialogue = [message for message in request.messages if message.role in ("user", "assistant")]
    if not dialogue or dialogue[-1].role != "user":
        raise InvalidArgument("the last message must be the user's question")
    turns: list[Turn] = []
    asked: str | None = None
    for message in dialogue[:-1]:
        if message.role == "user":
            asked = message.text if asked is None else f"{asked}\n{message.text}"
        elif asked is not None:
            turns.append(Turn(question=asked, answer=message.text))
            asked = None
    try:
        return AskRequest(
            question=dialogue[-1].text.strip(),
            history=turns[-MAX_TURNS:],
            regions=request.regions,
            departments=request.departments,
        )
    except ValueError:
        raise InvalidArgument(f"the question must have 1 to {MAX_QUESTION_CHARACTERS} characters") from None


def completion(identity: CompletionIdentity, answer: Answer) -> dict[str, Any]:
    """Return the response for a finished answer."""
    message = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": _annotations(answer)}
    return identity.of(
        "chat.completion",
        choices=[{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        usage=_usage(answer),
        citations=_citations(answer.citations),
        rag={"cache": answer.cache, "cache_reason": answer.cache_reason, "degraded": list(answer.degraded)},
    )


def chunks(identity: CompletionIdentity, event: Event, *, with_usage: bool) -> Iterator[str]:
    """Yield the chunks of a streamed response that an event maps to."""

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        return json.dumps(identity.of("chat.completion.chunk", choices=choices, **more))

    if event.type == "sources":
        yield chunk({"role": "assistant", "content": ""})
    elif isinstance(event, Delta):
        yield chunk({"content": event.text})
    elif isinstance(event, Restart):
        yield chunk({"content": _RESTART})
    elif isinstance(event, Failed):
        yield json.dumps({"error": {"type": event.error, "message": event.message}})
    elif isinstance(event, Done):
        answer = event.answer
        yield chunk(
            {"annotations": _annotations(answer)},
            "stop",
            citations=_citations(answer.citations),
            rag={"cache": answer.cache, "cache_reason": answer.cache_reason, "degraded": list(answer.degraded)},
        )
        if with_usage:
            yield json.dumps(identity.of("chat.completion.chunk", choices=[], usage=_usage(answer)))


def _usage(answer: Answer) -> dict[str, int]:
    prompt, written = answer.tokens.get("prompt", 0), answer.tokens.get("completion", 0)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _citations(citations: tuple[Citation, ...]) -> list[dict[str, Any]]:
    return [citation.model_dump(mode="json") for citation in citations]


def _annotations(answer: Answer) -> list[dict[str, Any]]:
    """Return every position at which the text cites a source."""
    found: list[dict[str, Any]] = []
    for citation in answer.citations:
        mark = f"[{citation.number}]"
        at = answer.text.find(mark)
        while at >= 0:
            place = {"start_index": at, "end_index": at + len(mark), "url": citation.link, "title": citation.title}
            found.append({"type": "url_citation", "url_citation": place})
            at = answer.text.find(mark, at + len(mark))
    return found
