"""What the service counts, in Prometheus' form; over all worker processes where there are several."""

import os
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Variable of the folder through which worker processes add up."""

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "rag_requests", "Requests answered", ["route", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "rag_request_seconds", "Until the last byte", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self.in_flight = Gauge(
            "rag_requests_in_flight", "Requests under way", registry=self._registry, multiprocess_mode="livesum"
        )
        self.rates_shared = Gauge(
            "rag_rates_shared",
            "1 where the rates of keys are counted over all processes, 0 where in each",
            registry=self._registry,
            multiprocess_mode="livemin",
        )
        self._events = Counter(
            "rag_events",
            "Answers by state of the cache, refusals by guard, calls of the model, feedback",
            ["event"],
            registry=self._registry,
        )
        self._tokens = Counter("rag_tokens", "Tokens paid for", ["kind"], registry=self._registry)
        self._seen: dict[str, int] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tokens(self, tokens: Mapping[str, int]) -> None:
        """What one answer was paid with."""
        for kind, count in tokens.items():
            self._tokens.labels(kind).inc(count)

    def follow(self, stats: Mapping[str, int]) -> None:
        """Bring the counts of a client's `stats` up to date."""
        for event, count in stats.items():
            more = count - self._seen.get(event, 0)
            if more > 0:
                self._events.labels(event).inc(more)
                self._seen[event] = count

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        registry = self._registry
        if os.environ.get(SHARED):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)
