"""Rate limits per minute, enforced across all processes with Redis and per process without it."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter

from rag_serving.cache.redis_connection import connect
from rag_serving.concurrency.circuit_breaker import CircuitBreaker
from rag_serving.settings import ServingSettings

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster

_PAUSE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class RateLimits:
    """Enforces limits in Redis across all processes. Without Redis, each process enforces its share of every limit.

    When Redis fails, one request waits `timeout` seconds; then Redis is bypassed and probed in the background. Belongs
    to one event loop.
    """

    def __init__(
        self,
        client: "Redis | RedisCluster | None" = None,
        *,
        prefix: str = "rag",
        timeout: float = 0.25,
        workers: int = 1,
        pause: float = _PAUSE_SECONDS,
    ) -> None:
        self._client: Any = client
        self._timeout = timeout
        self._workers = workers
        self._here = MovingWindowRateLimiter(MemoryStorage())
        self._everywhere = None if client is None else MovingWindowRateLimiter(_Storage(client, f"{prefix}:rates"))
        self._breaker = CircuitBreaker(self._probe, pause=pause)
        self.shared = client is not None
        """Whether the latest request was counted across all processes."""

    async def take(self, per_minute: int, *of: str) -> int | None:
        """Record one request. Returns None if within the limit, else seconds until a retry may succeed."""
        if self._everywhere is not None and not self._breaker.open:
            from redis.exceptions import RedisClusterException, RedisError

            try:
                async with asyncio.timeout(self._timeout):
                    left = await _take(self._everywhere, per_minute, of)
            except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
                self._breaker.trip()
                _log.warning("Redis unavailable (%s); enforcing rate limits per process", type(error).__name__)
            else:
                self.shared = True
                return left
        self.shared = False
        return await _take(self._here, math.ceil(per_minute / self._workers), of)

    async def close(self) -> None:
        """Close the connections."""
        await self._breaker.close()
        if self._client is not None:
            await self._client.aclose()

    async def _probe(self) -> None:
        await self._client.ping()


def open_rate_limits(settings: ServingSettings, *, workers: int) -> Callable[[], RateLimits]:
    """Return a factory of the configured limits, to be called on the event loop; it raises `SettingsError`."""

    def make() -> RateLimits:
        url = settings.redis_url
        client = None if url is None else connect(url.get_secret_value(), timeout=settings.cache_timeout)
        return RateLimits(client, prefix=settings.cache_prefix, timeout=settings.cache_timeout, workers=workers)

    return make


async def _take(limiter: MovingWindowRateLimiter, per_minute: int, of: tuple[str, ...]) -> int | None:
    rate = RateLimitItemPerMinute(per_minute)
    if await limiter.hit(rate, *of):
        return None
    reset, _ = await limiter.get_window_stats(rate, *of)
    return max(1, round(reset - time.time()))


class _Storage(RedisStorage):
    """The Redis storage of the package limits on our client, which supports clusters behind TLS and has timeouts."""

    STORAGE_SCHEME = None  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]  # not found by URL

    def __init__(self, client: "Redis | RedisCluster", prefix: str) -> None:
        self._given: Any = client
        super().__init__("async+redis://", implementation="redispy", key_prefix=prefix)

    def configure_bridge(self) -> None:
        bridge: Any = self.bridge
        bridge.storage = self._given
        bridge.connection_getter = lambda _readonly: self._given  # pyright: ignore[reportUnknownLambdaType]
