"""Timings of the phases of an answer."""

import time

from rag_serving.tracing import Phases


class Clock:
    """Measures phases, and creates an OpenTelemetry span for each."""

    def __init__(self) -> None:
        self._spans = Phases()
        self._started = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """End a phase, or another part of it."""
        now = time.perf_counter()
        self._laps[phase] = self._laps.get(phase, 0.0) + (now - self._last) * 1000
        self._spans.ended(phase, now - self._last)
        self._last = now

    def timings(self) -> dict[str, float]:
        """Return the milliseconds per phase and in total, so far."""
        total = (time.perf_counter() - self._started) * 1000
        return {phase: round(value, 2) for phase, value in {**self._laps, "total": total}.items()}
