"""A circuit breaker: a failed server is bypassed, and probed in the background until it recovers."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)


class CircuitBreaker:
    """Closed until `failures` operations in a row have failed, then open until a probe succeeds.

    An open breaker probes every `pause` seconds, whether or not there are callers, so that its state is true and the
    reported outage no longer than the real one. Every change of state is logged once, under the server's `name`.
    Belongs to one event loop.
    """

    def __init__(self, name: str, probe: Callable[[], Awaitable[object]], *, pause: float, failures: int = 5) -> None:
        self._name = name
        self._probe = probe
        self._pause = pause
        self._most_failures = failures
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None
        self.is_open = False
        """Whether to bypass the server."""

    def succeeded(self) -> None:
        """Record that the server responded."""
        self._failures = 0

    def failed(self, reason: str) -> None:
        """Record that the server did not respond; the last of several failures in a row opens the breaker."""
        self._failures += 1
        if self.is_open or self._failures < self._most_failures:
            return
        self.is_open = True
        _log.warning(
            "circuit breaker opened: %s failed %d times in a row, last with %s; bypassing it until a probe succeeds",
            self._name,
            self._failures,
            reason,
        )
        self._probing = asyncio.create_task(self._probe_until_it_succeeds())

    async def close(self) -> None:
        """Stop probing."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _probe_until_it_succeeds(self) -> None:
        opened = time.monotonic()
        while self.is_open:
            await asyncio.sleep(self._pause)
            try:
                await self._probe()
            except Exception as error:  # noqa: BLE001 - the server is down, whatever the error
                _log.debug("probe failed, still bypassing %s: %s", self._name, type(error).__name__)
            else:
                self.is_open, self._failures = False, 0
        seconds = time.monotonic() - opened
        _log.info("circuit breaker closed: %s responds again after %.1f seconds", self._name, seconds)
