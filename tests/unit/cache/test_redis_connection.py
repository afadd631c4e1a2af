"""Limits on commands to Redis: what counts as a failure, and how a probe finds out that Redis is back."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import ResponseError

from rag_serving.cache.redis_connection import RedisConnection
from rag_serving.errors import CacheUnavailable


class Client:
    """A client that records how it is used."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def aclose(self) -> None:
        self.calls.append("aclose")

    async def ping(self) -> None:
        self.calls.append("ping")


async def lost() -> None:
    raise Lost("connection refused")


async def rejected() -> None:
    raise ResponseError("WRONGTYPE")


async def answered() -> str:
    return "reply"


async def fail(connection: RedisConnection, times: int) -> None:
    for _ in range(times):
        with pytest.raises(CacheUnavailable, match="does not respond"):
            await connection.run(lost)


def test_a_probe_discards_the_open_connections_first() -> None:
    async def go() -> None:
        client = Client()
        connection = RedisConnection(client, purpose="test", timeout=5, pause=0)
        await fail(connection, 5)
        while connection.breaker_open:
            with pytest.raises(CacheUnavailable):
                await connection.run(answered)
            await asyncio.sleep(0)
        assert client.calls == ["aclose", "ping"]
        assert await connection.run(answered) == "reply"

    asyncio.run(go())


def test_a_rejected_command_shows_that_redis_responds() -> None:
    async def go() -> None:
        connection = RedisConnection(Client(), purpose="test", timeout=5)
        await fail(connection, 4)
        with pytest.raises(ResponseError):
            await connection.run(rejected)
        await fail(connection, 4)
        assert not connection.breaker_open

    asyncio.run(go())


def test_waiting_for_a_free_connection_is_no_failure() -> None:
    async def go() -> None:
        connection = RedisConnection(Client(), purpose="test", timeout=0.2, connections=1)

        async def slow() -> str:
            await asyncio.sleep(0.03)
            return "reply"

        assert await asyncio.gather(*(connection.run(slow) for _ in range(10))) == ["reply"] * 10

    asyncio.run(go())


def test_failures_are_reported_one_by_one_only_until_the_breaker_opens() -> None:
    async def go() -> list[bool]:
        connection = RedisConnection(Client(), purpose="test", timeout=5, connections=8)
        errors = await asyncio.gather(*(connection.run(lost) for _ in range(8)), return_exceptions=True)
        return [error.known for error in errors if isinstance(error, CacheUnavailable)]

    assert asyncio.run(go()) == [False] * 4 + [True] * 4
