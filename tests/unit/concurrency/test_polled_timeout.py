"""The timeout that does not count the lag of the event loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from rag_serving.concurrency.polled_timeout import polled_timeout


def test_a_block_that_waits_too_long_times_out() -> None:
    async def go() -> None:
        async with polled_timeout(0.02):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(go())


def test_a_block_that_ends_in_time_is_not_interrupted_later() -> None:
    async def go() -> str:
        async with polled_timeout(0.02):
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        return "done"

    assert asyncio.run(go()) == "done"


def test_a_blocked_event_loop_does_not_count() -> None:
    async def go() -> str:
        async with polled_timeout(0.02):
            for _ in range(4):
                time.sleep(0.03)  # noqa: ASYNC251 - another request's work, longer than the timeout
                await asyncio.sleep(0)
            return "done"

    assert asyncio.run(go()) == "done"


def test_cancelling_the_caller_is_not_a_timeout() -> None:
    async def go() -> None:
        async def wait() -> None:
            async with polled_timeout(10):
                await asyncio.Event().wait()

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await waiting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(go())
