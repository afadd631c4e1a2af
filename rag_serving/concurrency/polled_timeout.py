"""A timeout for network operations that does not count the event loop's own lag."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

_TICKS = 20


@asynccontextmanager
async def polled_timeout(seconds: float) -> AsyncGenerator[None]:
    """Raise `TimeoutError` if the block takes longer than `seconds` on a responsive event loop.

    `asyncio.timeout` expires when a busy loop runs late, even if the reply has arrived long ago and only waits to be
    read. Here the time passes in ticks. A tick that fires late counts only for its nominal length, and the loop polls
    its sockets before every tick, so the block has had `_TICKS` chances to go on.
    """
    loop = asyncio.get_running_loop()
    left = _TICKS

    def tick() -> None:
        nonlocal left, timer
        left -= 1
        if left:
            timer = loop.call_later(seconds / _TICKS, tick)
        else:
            timeout.reschedule(loop.time())

    async with asyncio.timeout(None) as timeout:
        timer = loop.call_later(seconds / _TICKS, tick)
        try:
            yield
        finally:
            timer.cancel()
