"""A limit on concurrent operations, with a bounded queue."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from rag_serving.errors import Overloaded


class ConcurrencyLimiter:
    """Runs up to `running` callers, queues up to `waiting` more and refuses others. Belongs to one event loop."""

    def __init__(self, name: str, *, running: int, waiting: int) -> None:
        self._name = name
        self._running = running
        self._most = running + waiting
        self._slots = asyncio.Semaphore(running)
        self._inside = 0

    @property
    def inside(self) -> int:
        """Number of callers that are running or queued."""
        return self._inside

    @property
    def running(self) -> int:
        """Number of callers that run."""
        return min(self._inside, self._running)

    @property
    def queued(self) -> int:
        """Number of callers that wait for a slot."""
        return self._inside - self.running

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None]:
        """Hold a slot while the block runs; raises `Overloaded` if the queue is full."""
        if self._inside >= self._most:
            raise Overloaded(f"too many queued {self._name} (limit {self._most}); retry shortly")
        self._inside += 1
        try:
            async with self._slots:
                yield
        finally:
            self._inside -= 1
