"""A circuit breaker: a server that failed is left alone, and looked at again beside the questions, not in their way."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)


class CircuitBreaker:
    """Closed until `trip`; then open until a probe, made at most every `pause` seconds in the background, succeeds.

    No caller waits for a probe, so that an open breaker adds microseconds. Belongs to one event loop.
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
        """Whether to leave the server alone; begins a probe when it is time for one."""
        if self._open and self._clock() >= self._next and (self._probing is None or self._probing.done()):
            self._probing = asyncio.create_task(self._look())
        return self._open

    def trip(self) -> None:
        """The server failed just now."""
        self._open = True
        self._next = self._clock() + self._pause

    async def close(self) -> None:
        """End a probe that is under way."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _look(self) -> None:
        try:
            await self._probe()
        except Exception as error:  # noqa: BLE001 - whatever a probe fails with, the server is not back
            _log.debug("still left alone: %s", type(error).__name__)
            self._next = self._clock() + self._pause
        else:
            self._open = False
