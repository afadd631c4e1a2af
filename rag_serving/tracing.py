"""OpenTelemetry spans of the phases of a question; FastAPI creates the spans of requests.

Only OpenTelemetry's API is used, so nothing happens unless it is installed and spans are collected. Spans hold names,
numbers and states, never a question, a text, a key or an error message.
"""

import functools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


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


class ModelCall:
    """A span of one call of a language model, by OpenTelemetry's conventions for generative AI (``gen_ai.*``)."""

    def __init__(self, model: str) -> None:
        """Begin the span, as a child of the current one; `model` is litellm's name."""
        self._span: Span | None = None
        tracer = _tracer()
        if tracer is None:
            return
        from opentelemetry.trace import SpanKind

        provider, _, name = model.rpartition("/")
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider.partition("/")[0] or "openai",
            "gen_ai.request.model": name,
        }
        self._span = tracer.start_span(f"chat {name}", kind=SpanKind.CLIENT, attributes=attributes)

    def ended(self, tokens: Mapping[str, int], finish: str, *, failed: bool) -> None:
        """End the span; `tokens` by kind and `finish` are the provider's."""
        if self._span is None:
            return
        self._span.set_attributes(
            {f"gen_ai.usage.{_TOKENS[kind]}": count for kind, count in tokens.items() if kind in _TOKENS}
        )
        if failed:
            self._span.set_attribute("error.type", "model_unavailable")
        else:
            self._span.set_attribute("gen_ai.response.finish_reasons", [finish])
        self._span.end()


_TOKENS = {"prompt": "input_tokens", "completion": "output_tokens"}


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


def current_trace() -> str:
    """Return the 32 hex digits of the current trace, or an empty string outside of one."""
    if _tracer() is None:
        return ""
    from opentelemetry.trace import format_trace_id, get_current_span

    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else ""


@functools.cache
def _tracer() -> "Tracer | None":
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace.get_tracer("rag_serving")
