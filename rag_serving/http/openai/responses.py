"""The Responses API: its response object and the typed events of its stream."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi.sse import format_sse_event

from rag_serving.events import Delta, Done, Event, Failed, Restart
from rag_serving.http.openai.answer_fields import RESTART, citations_and_marks, cited_places, compact, finish_reason
from rag_serving.results import Answer

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete, by the finish reason of a chat completion."""

Status = Literal["in_progress", "completed", "incomplete", "failed"]


@dataclass(slots=True)
class ResponseObject:
    """A response, as one object or as the events of a stream, which are numbered."""

    model: str
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    message_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _sent: int = 0

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the response for a finished answer."""
        reason = _INCOMPLETE.get(finish_reason(answer))
        return self._object(
            "completed" if reason is None else "incomplete",
            output=[self._message(answer)],
            incomplete_details=None if reason is None else {"reason": reason},
            usage=_usage(answer),
            **citations_and_marks(answer),
        )

    def streamed(self, event: Event) -> Iterator[bytes]:
        """Yield the events of a stream that an event of the answer maps to."""
        if event.type == "sources":
            yield self._event("response.created", response=self._object("in_progress"))
            yield self._event("response.in_progress", response=self._object("in_progress"))
            yield self._event("response.output_item.added", output_index=0, item=self._message(None))
            yield self._of_part("response.content_part.added", part=_part("", []))
        elif isinstance(event, Delta):
            yield self._of_part("response.output_text.delta", delta=event.text, logprobs=[])
        elif isinstance(event, Restart):
            yield self._of_part("response.output_text.delta", delta=RESTART, logprobs=[])
        elif isinstance(event, Failed):
            error = {"code": "server_error", "message": f"{event.error}: {event.message}"}
            yield self._event("response.failed", response=self._object("failed", error=error))
        elif isinstance(event, Done):
            yield from self._ending(event.answer)

    def _ending(self, answer: Answer) -> Iterator[bytes]:
        whole = self.whole(answer)
        (message,) = whole["output"]
        (part,) = message["content"]
        for index, annotation in enumerate(part["annotations"]):
            yield self._of_part("response.output_text.annotation.added", annotation_index=index, annotation=annotation)
        yield self._of_part("response.output_text.done", text=answer.text, logprobs=[])
        yield self._of_part("response.content_part.done", part=part)
        yield self._event("response.output_item.done", output_index=0, item=message)
        yield self._event(f"response.{whole['status']}", response=whole)

    def _object(self, status: Status, **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.model,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "usage": None,
            **more,
        }

    def _message(self, answer: Answer | None) -> dict[str, Any]:
        """Return the only item of the output; without an answer, it is in progress."""
        message = {"id": self.message_id, "type": "message", "role": "assistant"}
        if answer is None:
            return {**message, "status": "in_progress", "content": []}
        status = "incomplete" if finish_reason(answer) in _INCOMPLETE else "completed"
        annotations = [{"type": "url_citation", **place} for place in cited_places(answer)]
        return {**message, "status": status, "content": [_part(answer.text, annotations)]}

    def _of_part(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self.message_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sent, **fields}
        self._sent += 1
        return format_sse_event(event=kind, data_str=compact(event))


def _part(text: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


def _usage(answer: Answer) -> dict[str, Any]:
    read, written = answer.tokens.get("prompt", 0), answer.tokens.get("completion", 0)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }
