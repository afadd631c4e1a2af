"""Rate limits per minute, enforced across all processes with Redis and per process without it.

Both count in a moving window: the times of the latest requests are kept, and a request is within the limit if the one
that many requests before it is at least a minute old. (The package limits would do, but supports no redis 8 and takes
no client that exists already.)
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rag_serving.cache.redis_connection import RedisConnection, connect
from rag_serving.errors import CacheUnavailable
from rag_serving.settings import ServingSettings

_WINDOW_SECONDS = 60.0
_MOST_WINDOWS = 10_000
"""Windows in memory from which expired ones are removed: failed keys have one for each address."""

# Redis' clock, so that the clocks of the processes do not matter. Returns the milliseconds to wait.
_TAKE = """
local now = redis.call('TIME')
local at = now[1] * 1000 + math.floor(now[2] / 1000)
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local oldest = redis.call('LINDEX', KEYS[1], limit - 1)
if oldest and at - oldest < window then return window - (at - oldest) end
redis.call('LPUSH', KEYS[1], at)
redis.call('LTRIM', KEYS[1], 0, limit - 1)
redis.call('PEXPIRE', KEYS[1], window)
return 0
"""

_log = logging.getLogger(__name__)


class RateLimits:
    """Enforces limits in Redis across all processes. Without Redis, each process enforces its share of every limit.

    Belongs to one event loop.
    """

    def __init__(self, redis: RedisConnection | None = None, *, prefix: str = "rag", workers: int = 1) -> None:
        self._redis = redis
        self._workers = workers
        self._prefix = f"{prefix}:rates"
        self._script: Any = None if redis is None else redis.client.register_script(_TAKE)
        self._windows: dict[tuple[str, ...], deque[float]] = {}
        self._rejected = False

    @property
    def shared(self) -> bool:
        """Whether requests are counted across all processes."""
        return self._redis is not None and not self._rejected and not self.breaker_open

    @property
    def breaker_open(self) -> bool:
        """Whether Redis is currently bypassed."""
        return self._redis is not None and self._redis.breaker_open

    async def take(self, per_minute: int, *of: str) -> int | None:
        """Record one request. Returns None if within the limit, else seconds until a retry may succeed."""
        if self._redis is not None:
            from redis.exceptions import ResponseError

            key = ":".join((self._prefix, *of))
            arguments = [per_minute, int(_WINDOW_SECONDS * 1000)]
            try:
                wait = await self._redis.run(lambda: self._script(keys=[key], args=arguments)) / 1000
            except CacheUnavailable as error:
                _log.debug("enforcing rate limits per process: %s", error)
            except ResponseError as error:
                if not self._rejected:
                    reason = type(error).__name__
                    _log.warning("Redis rejected a command (%s); enforcing rate limits per process", reason)
                self._rejected = True
            else:
                self._rejected = False
                return math.ceil(wait) or None
        return self._take_here(math.ceil(per_minute / self._workers), of)

    def _take_here(self, limit: int, of: tuple[str, ...]) -> int | None:
        now = time.monotonic()
        if len(self._windows) >= _MOST_WINDOWS and of not in self._windows:
            self._windows = {key: times for key, times in self._windows.items() if now - times[0] < _WINDOW_SECONDS}
        times = self._windows.setdefault(of, deque())  # newest first, like the list in Redis
        if len(times) >= limit and (age := now - times[limit - 1]) < _WINDOW_SECONDS:
            return math.ceil(_WINDOW_SECONDS - age)
        times.appendleft(now)
        while len(times) > limit:
            times.pop()
        return None

    async def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            await self._redis.close()


def open_rate_limits(settings: ServingSettings, *, workers: int) -> Callable[[], RateLimits]:
    """Return a factory of the configured limits, to be called on the event loop; it raises `SettingsError`."""

    def make() -> RateLimits:
        url = settings.redis_url
        redis = None
        if url is not None:
            redis = connect(url.get_secret_value(), purpose="rate limits", timeout=settings.cache_timeout)
        return RateLimits(redis, prefix=settings.cache_prefix, workers=workers)

    return make
