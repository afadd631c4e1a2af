"""Chat completions: the objects of OpenAI's protocol for an answer and its events."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi.sse import format_sse_event

from rag_serving.api_schemas import ErrorBody
from rag_serving.events import Delta, Done, Event, Failed, Restart
from rag_serving.http.openai.answer_fields import RESTART, citations_and_marks, cited_places, compact, finish_reason
from rag_serving.results import Answer

_END = format_sse_event(data_str="[DONE]")


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """A completion, as one object or as the chunks of a stream."""

    model: str
    with_usage: bool = False
    """Whether a stream ends with the usage."""
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the response for a finished answer."""
        message = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": _annotations(answer)}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason(answer), "logprobs": None}
        return self._object("chat.completion", choices=[choice], usage=_usage(answer), **citations_and_marks(answer))

    def streamed(self, event: Event) -> Iterator[bytes]:
        """Yield the chunks of a stream that an event of the answer maps to."""
        if event.type == "sources":
            yield self._chunk({"role": "assistant", "content": ""})
        elif isinstance(event, Delta):
            yield self._chunk({"content": event.text})
        elif isinstance(event, Restart):
            yield self._chunk({"content": RESTART})
        elif isinstance(event, Failed):
            yield format_sse_event(data_str=ErrorBody.of(event.error, event.message).model_dump_json())
            yield _END
        elif isinstance(event, Done):
            answer = event.answer
            annotations = {"annotations": _annotations(answer)}
            yield self._chunk(annotations, finish_reason(answer), **citations_and_marks(answer))
            if self.with_usage:
                yield self._sent(self._object("chat.completion.chunk", choices=[], usage=_usage(answer)))
            yield _END

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        return self._sent(self._object("chat.completion.chunk", choices=choices, **more))

    def _object(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, **more}

    @staticmethod
    def _sent(chunk: dict[str, Any]) -> bytes:
        return format_sse_event(data_str=compact(chunk))


def _annotations(answer: Answer) -> list[dict[str, Any]]:
    return [{"type": "url_citation", "url_citation": place} for place in cited_places(answer)]


def _usage(answer: Answer) -> dict[str, int]:
    prompt, written = answer.tokens.get("prompt", 0), answer.tokens.get("completion", 0)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
