"""Connect to Redis or a Redis cluster."""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rag_serving.errors import SettingsError

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster

CLUSTER_SUFFIX = "+cluster"


def connect(url: str, *, timeout: float) -> "Redis | RedisCluster":
    """Create a client without connecting yet; raises `SettingsError` for a malformed URL.

    ``redis://`` and ``rediss://`` (TLS) address a server, ``redis+cluster://`` and ``rediss+cluster://`` any node of a
    cluster.
    """
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import ExponentialWithJitterBackoff
    from redis.exceptions import ConnectionError as Lost
    from redis.exceptions import RedisError

    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        # Reconnect once after a dropped connection, but do not retry after a timeout.
        "retry": Retry(ExponentialWithJitterBackoff(cap=0.05, base=0.01), 1, supported_errors=(Lost,)),
    }
    scheme, _, rest = url.partition("://")
    try:
        if scheme.endswith(CLUSTER_SUFFIX):
            if not urlsplit(url).hostname:
                raise ValueError("no host")
            client: Any = RedisCluster.from_url(f"{scheme.removesuffix(CLUSTER_SUFFIX)}://{rest}", **options)
        else:
            client = Redis.from_url(url, **options)
            # Build a connection without opening it, because only that validates the options in the query string.
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (ValueError, TypeError, RedisError):
        # Not chained: the cause quotes the URL, including part of a password that contains a slash.
        raise SettingsError("RAG_REDIS_URL is malformed; write for example redis://host:6379/0") from None
    return client
