"""A circuit breaker: a failed server is bypassed, and probed in the background until it recovers."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)


class CircuitBreaker:
    """Closed until `trip`, then open until a probe succeeds. Probes are at least `pause` seconds apart.

    Callers never wait for a probe, so an open breaker costs microseconds. Belongs to one event loop.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[object]], *, pause: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe = probe
        self._pause = pause
        self._clock = clock
        self._open = False
        self._next = 0.0
        self._probing: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Whether to bypass the server; starts a probe if one is due."""
        if self._open and self._clock() >= self._next and (self._probing is None or self._probing.done()):
            self._probing = asyncio.create_task(self._look())
        return self._open

    def trip(self) -> None:
        """Open the breaker after a failure."""
        self._open = True
        self._next = self._clock() + self._pause

    async def close(self) -> None:
        """Cancel a running probe."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _look(self) -> None:
        try:
            await self._probe()
        except Exception as error:  # noqa: BLE001 - the server is down, whatever the error
            _log.debug("probe failed, still bypassing: %s", type(error).__name__)
            self._next = self._clock() + self._pause
        else:
            self._open = False
