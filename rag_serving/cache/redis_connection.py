"""The connection to Redis or a Redis cluster: its URL, and limits on its commands. What is stored is elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from rag_serving.concurrency.circuit_breaker import CircuitBreaker
from rag_serving.concurrency.polled_timeout import polled_timeout
from rag_serving.errors import CacheUnavailable, SettingsError

CLUSTER_SUFFIX = "+cluster"
_CONNECTIONS = 64
_PAUSE_SECONDS = 5.0


class RedisConnection:
    """Runs commands on a client: up to `connections` at once, each for up to `timeout` seconds.

    After several failures in a row Redis is bypassed until a probe succeeds; probes are `pause` seconds apart. The log
    names the connection by its `purpose`. Belongs to one event loop.
    """

    def __init__(
        self,
        client: Any,
        *,
        purpose: str,
        timeout: float,
        connections: int = _CONNECTIONS,
        pause: float = _PAUSE_SECONDS,
    ) -> None:
        self.client = client
        self._timeout = timeout
        self._slots = asyncio.Semaphore(connections)
        self._breaker = CircuitBreaker(f"Redis ({purpose})", self._probe, pause=pause)

    @property
    def breaker_open(self) -> bool:
        """Whether Redis is currently bypassed."""
        return self._breaker.is_open

    async def run(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Run a command; raises `CacheUnavailable`, or redis-py's `ResponseError` if Redis rejects it."""
        from redis.exceptions import RedisClusterException, RedisError, ResponseError

        self._check_breaker()
        async with self._slots:  # outside the timeout: waiting for a free connection is no failure of Redis
            self._check_breaker()  # it may have opened in the meantime
            try:
                async with polled_timeout(self._timeout):
                    result = await command()
            except ResponseError:
                self._breaker.succeeded()
                raise
            except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
                reason = type(error).__name__
                self._breaker.failed(reason)
                message = f"Redis does not respond ({reason}); check RAG_REDIS_URL"
                raise CacheUnavailable(message, known=self.breaker_open) from error
            self._breaker.succeeded()
            return result

    async def close(self) -> None:
        """Close the connections."""
        await self._breaker.close()
        with suppress(TimeoutError):
            async with polled_timeout(self._timeout):
                await self.client.aclose()

    def _check_breaker(self) -> None:
        if self._breaker.is_open:
            raise CacheUnavailable("Redis unavailable; bypassing the cache until it recovers", known=True)

    async def _probe(self) -> None:
        async with self._slots, polled_timeout(self._timeout):
            # Reconnect: the open connections may lead to a host that is gone, and only then does a cluster client look
            # for the nodes again, because it does not see our timeouts.
            await self.client.aclose()
            await self.client.ping()


def connect(url: str, *, purpose: str, timeout: float, pause: float = _PAUSE_SECONDS) -> RedisConnection:
    """Create a client without connecting yet; raises `SettingsError` for a malformed URL.

    ``redis://`` and ``rediss://`` (TLS) address a server, ``redis+cluster://`` and ``rediss+cluster://`` any node of a
    cluster. ``max_connections`` in the query string lowers the number of connections.
    """
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import ExponentialWithJitterBackoff
    from redis.exceptions import ConnectionError as Lost
    from redis.exceptions import RedisError

    options: dict[str, Any] = {
        # redis-py's own timeouts count the lag of the event loop; `RedisConnection` bounds connecting and commands.
        "socket_timeout": None,
        "socket_connect_timeout": None,
        # Reconnect once after a dropped connection.
        "retry": Retry(ExponentialWithJitterBackoff(cap=0.05, base=0.01), 1, supported_errors=(Lost,)),
    }
    scheme, _, rest = url.partition("://")
    try:
        if scheme.endswith(CLUSTER_SUFFIX):
            if not urlsplit(url).hostname:
                raise ValueError("no host")
            client: Any = RedisCluster.from_url(f"{scheme.removesuffix(CLUSTER_SUFFIX)}://{rest}", **options)
            allowed = client.connection_kwargs["max_connections"]
        else:
            client = Redis.from_url(url, **options)
            # Build a connection without opening it, because only that validates the options in the query string.
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
            allowed = client.connection_pool.max_connections
    except (ValueError, TypeError, RedisError):
        # Not chained: the cause quotes the URL, including part of a password that contains a slash.
        raise SettingsError("RAG_REDIS_URL is malformed; write for example redis://host:6379/0") from None
    connections = min(_CONNECTIONS, allowed)
    return RedisConnection(client, purpose=purpose, timeout=timeout, connections=connections, pause=pause)
