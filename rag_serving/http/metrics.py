"""The service's Prometheus metrics, aggregated over all worker processes."""

import os
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of the folder in which worker processes share their metrics."""

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


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
        self.rates_shared = Gauge(
            "rag_rates_shared",
            "1 if rate limits are enforced across all processes, 0 if per process",
            registry=self._registry,
            multiprocess_mode="livemin",
        )
        self._events = Counter(
            "rag_events",
            "Answers by cache state, refusals by guard, model calls, feedback",
            ["event"],
            registry=self._registry,
        )
        self._tokens = Counter("rag_tokens", "Language model tokens used", ["kind"], registry=self._registry)
        self._seen: dict[str, int] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Record a completed request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tokens(self, tokens: Mapping[str, int]) -> None:
        """Add the tokens that one answer used."""
        for kind, count in tokens.items():
            self._tokens.labels(kind).inc(count)

    def follow(self, stats: Mapping[str, int]) -> None:
        """Update the counters from a client's `stats`."""
        for event, count in stats.items():
            more = count - self._seen.get(event, 0)
            if more > 0:
                self._events.labels(event).inc(more)
                self._seen[event] = count

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        registry = self._registry
        if os.environ.get(SHARED):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)
