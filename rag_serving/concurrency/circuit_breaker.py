"""A circuit breaker: a failed server is bypassed, and probed in the background until it recovers."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)


class CircuitBreaker:
    """Closed until `failures` operations in a row have failed, then open until a probe succeeds.

    Probes are at least `pause` seconds apart. Callers never wait for a probe, so an open breaker costs microseconds.
    Every change of state is logged once, under the server's `name`. Belongs to one event loop.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], Awaitable[object]],
        *,
        pause: float,
        failures: int = 5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._probe = probe
        self._pause = pause
        self._most_failures = failures
        self._clock = clock
        self._failures = 0
        self._opened: float | None = None
        self._next_probe = 0.0
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the server is bypassed. Reading it has no effect."""
        return self._opened is not None

    def refuses(self) -> bool:
        """Return whether to bypass the server; starts a probe if one is due."""
        due = self.is_open and self._clock() >= self._next_probe
        if due and (self._probing is None or self._probing.done()):
            self._probing = asyncio.create_task(self._look())
        return self.is_open

    def succeeded(self) -> None:
        """Record that the server responded."""
        self._failures = 0

    def failed(self, reason: str) -> None:
        """Record that the server did not respond; the last of several failures in a row opens the breaker."""
        self._failures += 1
        if self.is_open or self._failures < self._most_failures:
            return
        self._opened = self._clock()
        self._next_probe = self._opened + self._pause
        _log.warning(
            "circuit breaker opened: %s failed %d times in a row, last with %s; bypassing it until a probe succeeds",
            self._name,
            self._failures,
            reason,
        )

    async def close(self) -> None:
        """Cancel a running probe."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _look(self) -> None:
        try:
            await self._probe()
        except Exception as error:  # noqa: BLE001 - the server is down, whatever the error
            _log.debug("probe failed, still bypassing %s: %s", self._name, type(error).__name__)
            self._next_probe = self._clock() + self._pause
            return
        seconds = self._clock() - (self._opened or 0.0)
        self._opened, self._failures = None, 0
        _log.info("circuit breaker closed: %s responds again after %.1f seconds", self._name, seconds)
