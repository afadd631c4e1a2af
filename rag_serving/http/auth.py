"""Who calls: the key of a request, what it allows, and how often it may ask."""

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from rag_serving.errors import NotAllowed, TooManyRequests
from rag_serving.http.api_keys import ApiKeys
from rag_serving.http.rate_limits import RateLimits


@dataclass(frozen=True, slots=True)
class Principal:
    """On whose behalf a request is answered. `within` are patterns of shards; None is all of them."""

    key: str
    tenant: str
    within: tuple[str, ...] | None


class Authenticator:
    """Lets callers in by their key; without keys, everybody as one.

    A right key is never refused for what others tried from the same address, which may be a proxy's.
    """

    def __init__(self, keys: ApiKeys | None, rates: RateLimits, *, failed_per_minute: int) -> None:
        self._keys = keys
        self._rates = rates
        self._failed_per_minute = failed_per_minute

    async def authenticate(self, connection: HTTPConnection) -> Principal:
        """Raises `NotAllowed` and `TooManyRequests`."""
        if self._keys is None:
            return Principal("", "default", None)
        scheme, _, presented = connection.headers.get("authorization", "").partition(" ")
        key = self._keys.find(presented.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            address = connection.client.host if connection.client else ""
            wait = await self._rates.take(self._failed_per_minute, "failed", address) if presented else None
            if wait is not None:
                raise TooManyRequests("too many wrong keys from this address", wait)
            raise NotAllowed("send a valid key as Authorization: Bearer rag_…")
        wait = await self._rates.take(key.requests_per_minute, "key", key.id)
        if wait is not None:
            raise TooManyRequests(f"more than {key.requests_per_minute} requests in a minute", wait)
        return Principal(key.id, key.tenant, key.shards)
