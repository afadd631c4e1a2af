"""OpenTelemetry spans of the phases of a question; FastAPI creates the spans of requests.

Only OpenTelemetry's API is used, so nothing happens unless it is installed and spans are collected. Spans hold names,
numbers and states, never a question, a text, a key or an error message.
"""

import functools
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


class Phases:
    """Spans of the phases of one question, children of the span that is current at construction."""

    def __init__(self) -> None:
        self._tracer = _tracer()
        if self._tracer is not None:
            from opentelemetry.context import get_current

            self._parent = get_current()

    def ended(self, phase: str, seconds: float) -> None:
        """Record a phase that took `seconds` and ends now."""
        if self._tracer is not None:
            end = time.time_ns()
            start = end - round(seconds * 1e9)
            self._tracer.start_span(f"rag.{phase}", context=self._parent, start_time=start).end(end)


def describe_request(*, key: str, cache: str, has_query: bool) -> None:
    """Add the key's id and the cache state to the current span, and redact its query string if there is one."""
    if _tracer() is None:
        return
    from opentelemetry.trace import get_current_span

    span = get_current_span()
    if span.is_recording():
        span.set_attributes({name: value for name, value in (("rag.key", key), ("rag.cache", cache)) if value})
        if has_query:  # no route reads one; it may be a key that was put there by mistake
            span.set_attribute("url.query", "REDACTED")


@functools.cache
def _tracer() -> "Tracer | None":
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace.get_tracer("rag_serving")
