"""Spans of OpenTelemetry, by its API alone: without it, and where no process collects spans, nothing happens.

Requests have theirs from FastAPI; here is what only this project can say. A span holds names, numbers and states; never
a question, a text, a key or the message of an error.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


class Phases:
    """Spans of the phases of one question, below the span that is current when this is made."""

    def __init__(self) -> None:
        self._tracer = _tracer()
        if self._tracer is not None:
            from opentelemetry.context import get_current

            self._parent = get_current()

    def ended(self, phase: str, seconds: float) -> None:
        """A phase that took so long ends now."""
        if self._tracer is not None:
            end = time.time_ns()
            start = end - round(seconds * 1e9)
            self._tracer.start_span(f"rag.{phase}", context=self._parent, start_time=start).end(end)


def describe_request(*, key: str, cache: str, has_query: bool) -> None:
    """Tell the current span, while it lasts, on whose behalf it was and what the cache did."""
    if _tracer() is None:
        return
    from opentelemetry.trace import get_current_span

    span = get_current_span()
    if span.is_recording():
        span.set_attributes({name: value for name, value in (("rag.key", key), ("rag.cache", cache)) if value})
        if has_query:  # no route reads one: whatever it is, a key perhaps, it was put there by mistake
            span.set_attribute("url.query", "REDACTED")


@functools.cache
def _tracer() -> Tracer | None:
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace.get_tracer("rag_serving")
