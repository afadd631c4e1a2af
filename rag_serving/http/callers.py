"""Who calls: the key of a request, what it allows, and how often it may ask."""

from __future__ import annotations

import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.requests import HTTPConnection

from rag_serving.errors import NotAllowed, TooManyRequests
from rag_serving.http.keys import Keys


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request is answered. `within` are patterns of shards; None is all of them."""

    key: str
    tenant: str
    within: tuple[str, ...] | None


class Door:
    """Lets callers in by their key; without keys, everybody as one. Counts within this process."""

    def __init__(self, keys: Keys | None, *, failed_per_minute: int) -> None:
        self._keys = keys
        self._failed = RateLimitItemPerMinute(failed_per_minute)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def enter(self, connection: HTTPConnection) -> Caller:
        """Raises `NotAllowed` and `TooManyRequests`."""
        if self._keys is None:
            return Caller("", "default", None)
        address = connection.client.host if connection.client else ""
        if not await self._limiter.test(self._failed, "failed", address):
            raise TooManyRequests("too many wrong keys from this address", 60)
        scheme, _, presented = connection.headers.get("authorization", "").partition(" ")
        key = self._keys.find(presented.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            await self._limiter.hit(self._failed, "failed", address)
            raise NotAllowed("send a valid key as Authorization: Bearer rag_…")
        rate = RateLimitItemPerMinute(key.requests_per_minute)
        if not await self._limiter.hit(rate, "key", key.id):
            reset, _ = await self._limiter.get_window_stats(rate, "key", key.id)
            raise TooManyRequests(
                f"more than {key.requests_per_minute} requests in a minute", max(1, round(reset - time.time()))
            )
        return Caller(key.id, key.tenant, key.shards)
