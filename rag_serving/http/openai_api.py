"""OpenAI's chat completions, as far as clients and chat front ends use them; shapes by its API reference."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rag_serving.api_schemas import AskRequest, ChatRequest
from rag_serving.errors import InvalidArgument
from rag_serving.events import Delta, Done, Event, Failed, Restart
from rag_serving.results import Answer, Citation, Turn
from rag_serving.validation import MAX_TURNS

MODEL = "rag-shards"
_ANEW = "\n\n---\n\n"
"""Between what a failed model wrote and what the next one writes: this protocol can take nothing back."""


@dataclass(frozen=True, slots=True)
class CompletionIdentity:
    """What all parts of one reply share."""

    id: str
    created: int

    def of(self, kind: str, **more: Any) -> dict[str, Any]:
        """An object of the protocol."""
        return {"id": self.id, "object": kind, "created": self.created, "model": MODEL, **more}


def models() -> dict[str, Any]:
    """The list of models."""
    entry = {"id": MODEL, "object": "model", "created": int(time.time()), "owned_by": "rag-shards"}
    return {"object": "list", "data": [entry]}


def question_of(request: ChatRequest) -> AskRequest:
    """The last message as a question, and the exchanges before it as its history.

    Instructions (`system`, `developer`) have no effect: what a caller may see and how sources are used is not theirs to
    say. Raises `InvalidArgument` where the last message is not a user's.
    """
    if request.model.partition("/")[0] != MODEL:
        raise InvalidArgument(f"the model is called {MODEL}")
    spoken = [message for message in request.messages if message.role in ("user", "assistant")]
    if not spoken or spoken[-1].role != "user":
        raise InvalidArgument("the last message must be the user's question")
    turns: list[Turn] = []
    asked: str | None = None
    for message in spoken[:-1]:
        if message.role == "user":
            asked = message.text if asked is None else f"{asked}\n{message.text}"
        elif asked is not None:
            turns.append(Turn(question=asked, answer=message.text))
            asked = None
    question = spoken[-1].text.strip()
    try:
        return AskRequest(
            question=question,
            history=turns[-MAX_TURNS:],
            regions=request.regions,
            departments=request.departments,
        )
    except ValueError:
        raise InvalidArgument(f"the question must have 1 to {4_000} characters") from None


def completion(identity: CompletionIdentity, answer: Answer) -> dict[str, Any]:
    """A whole reply."""
    message = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": _annotations(answer)}
    return identity.of(
        "chat.completion",
        choices=[{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        usage=_usage(answer),
        citations=_citations(answer.citations),
        rag={"cache": answer.cache, "cache_reason": answer.cache_reason, "degraded": list(answer.degraded)},
    )


def chunks(identity: CompletionIdentity, event: Event, *, with_usage: bool) -> Iterator[str]:
    """What of a streamed reply an event makes."""

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        return json.dumps(identity.of("chat.completion.chunk", choices=choices, **more))

    if event.type == "sources":
        yield chunk({"role": "assistant", "content": ""})
    elif isinstance(event, Delta):
        yield chunk({"content": event.text})
    elif isinstance(event, Restart):
        yield chunk({"content": _ANEW})
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
    """Each place where the text refers to a source."""
    found: list[dict[str, Any]] = []
    for citation in answer.citations:
        mark = f"[{citation.number}]"
        at = answer.text.find(mark)
        while at >= 0:
            place = {"start_index": at, "end_index": at + len(mark), "url": citation.source, "title": citation.title}
            found.append({"type": "url_citation", "url_citation": place})
            at = answer.text.find(mark, at + len(mark))
    return found
