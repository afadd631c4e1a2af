"""Connect to Redis or a Redis cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rag_serving.errors import SettingsError

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster

CLUSTER_SUFFIX = "+cluster"


def connect(url: str, *, timeout: float) -> Redis | RedisCluster:
    """A client of that server; nothing is contacted yet. Raises `SettingsError` for a URL that is none.

    ``redis://`` and ``rediss://`` (TLS) name a server, ``redis+cluster://`` and ``rediss+cluster://`` any node of a
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
        # A dropped connection is made anew once; a server that does not answer in time will not a second time.
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
            # Options behind the question mark are checked only here: a connection is made, and not opened.
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (ValueError, TypeError, RedisError):
        # Not chained: the cause quotes the URL, and with it a part of a password that holds a slash.
        raise SettingsError("RAG_REDIS_URL is malformed; write redis://host:6379/0 or rediss://…") from None
    return client
