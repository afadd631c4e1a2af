"""Bounds on what goes on at once: so many running, so many waiting, and no longer than a deadline."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from rag_serving.errors import Overloaded


class ConcurrencyLimiter:
    """Lets `running` callers in at once and `waiting` more wait; refuses others at once. Belongs to one event loop."""

    def __init__(self, name: str, *, running: int, waiting: int) -> None:
        self._name = name
        self._most = running + waiting
        self._slots = asyncio.Semaphore(running)
        self._inside = 0

    @property
    def inside(self) -> int:
        """Callers that run or wait."""
        return self._inside

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None]:
        """A place for the length of the block; raises `Overloaded` when as many wait as may."""
        if self._inside >= self._most:
            raise Overloaded(f"too many {self._name} wait already ({self._most}); ask again in a moment")
        self._inside += 1
        try:
            async with self._slots:
                yield
        finally:
            self._inside -= 1
