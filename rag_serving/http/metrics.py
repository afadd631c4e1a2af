"""The service's Prometheus metrics, aggregated over all worker processes."""

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from rag_serving.results import Answer

if TYPE_CHECKING:
    from rag_serving.answering.generation import EndedCall

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of the folder in which worker processes share their metrics."""

_MEMORY = Path("/proc/self/statm")
_FILES = "/proc/self/fd"
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)

_STATES: Mapping[str, tuple[str, Literal["livesum", "livemax", "livemin", "liveall"]]] = {
    "connections": ("Open connections", "livesum"),
    "searches_running": ("Searches in progress", "livesum"),
    "searches_queued": ("Searches that wait for a slot", "livesum"),
    "model_calls_running": ("Calls of the language model in progress", "livesum"),
    "model_calls_queued": ("Calls of the language model that wait for a slot", "livesum"),
    "cache_breaker_open": ("1 while Redis is bypassed after failures", "livemax"),
    "rates_shared": ("1 if rate limits are enforced across all processes, 0 if per process", "livemin"),
    "models_bypassed": ("Language models that are bypassed because they do not respond", "livemax"),
    "shards": ("Published shards", "livemax"),
    "shards_left_out": ("Shards that are not searched, because something of them cannot be read", "livemax"),
    "snapshot_age_seconds": ("Seconds since the catalog was read", "livemax"),
    "key_file_broken": ("1 while the key file cannot be read and its last valid state is used", "livemax"),
    "loop_blocked": ("How often the event loop was blocked for more than a second", "livesum"),
    "process_memory_bytes": ("Resident memory of a process", "liveall"),
    "process_open_files": ("Open files of a process", "liveall"),
    "process_most_files": ("Most files that a process may open", "liveall"),
}
"""Gauges by name without prefix, and how several processes are combined."""


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "rag_requests", "Completed requests", ["route", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "rag_request_seconds",
            "Seconds from receiving a request to sending the last byte of its response",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "rag_requests_in_flight", "Requests in progress", registry=self._registry, multiprocess_mode="livesum"
        )
        self._events = Counter(
            "rag_events",
            "Answers by cache state, refusals by guard, model calls, feedback",
            ["event"],
            registry=self._registry,
        )
        self._tokens = Counter("rag_tokens", "Language model tokens used", ["kind"], registry=self._registry)
        self._cost = Counter("rag_cost_dollars", "US dollars for language models, if known", registry=self._registry)
        self._answer_seconds = self._histogram("rag_answer_seconds", "Seconds to a complete answer", "cache")
        self._first_text = self._histogram("rag_first_text_seconds", "Seconds to the first text of an answer", "cache")
        self._model_seconds = self._histogram("rag_model_seconds", "Seconds of a call of a model", "model", "outcome")
        self._closed = Counter(
            "rag_connections_closed", "Connections closed by a limit", ["reason"], registry=self._registry
        )
        self._states = {
            name: Gauge(f"rag_{name}", text, registry=self._registry, multiprocess_mode=mode)
            for name, (text, mode) in _STATES.items()
        }
        self._seen: dict[tuple[str, str], int] = {}

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=_SECONDS, registry=self._registry)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Record a completed request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answered(self, answer: Answer, seconds: float, first_text: float | None) -> None:
        """Record an answer: its tokens and cost, and the seconds until it was complete and until its first text."""
        for kind, count in answer.tokens.items():
            self._tokens.labels(kind).inc(count)
        self._cost.inc(answer.cost or 0.0)
        self._answer_seconds.labels(answer.cache).observe(seconds)
        if first_text is not None:
            self._first_text.labels(answer.cache).observe(first_text)

    def called(self, call: "EndedCall") -> None:
        """Record a call of a language model."""
        self._model_seconds.labels(call.model, call.outcome).observe(call.seconds)

    def follow(self, stats: Mapping[str, int], closed: Mapping[str, int], states: Mapping[str, float]) -> None:
        """Update the counters from a client's `stats` and the `closed` connections, and set the gauges."""
        for kind, counter, counts in (("event", self._events, stats), ("closed", self._closed, closed)):
            for label, count in counts.items():
                counter.labels(label).inc(count - self._seen.get((kind, label), 0))
                self._seen[kind, label] = count
        for name, value in {**states, **_resources()}.items():
            self._states[name].set(value)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        registry = self._registry
        if os.environ.get(SHARED):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)


def _resources() -> dict[str, float]:
    """Return what this process uses; without procfs only its limit of open files, and its peak of memory."""
    most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        memory = int(_MEMORY.read_text().split()[1]) * resource.getpagesize()
        files = len(os.listdir(_FILES))  # noqa: PTH208 - thousands of paths would take long
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"process_memory_bytes": peak * 1024, "process_most_files": most_files}
    return {"process_memory_bytes": memory, "process_open_files": files, "process_most_files": most_files}
