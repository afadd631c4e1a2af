"""Authentication of requests by API key, and the rate limits of keys."""

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from rag_serving.errors import NotAllowed, TooManyRequests
from rag_serving.http.api_keys import ApiKeys
from rag_serving.http.rate_limits import RateLimits


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller. `within` holds patterns of the visible shards; None means all."""

    key: str
    tenant: str
    within: tuple[str, ...] | None


class Authenticator:
    """Authenticates callers by API key; without keys, all callers share one identity.

    Wrong keys are rate-limited per address. A valid key is always accepted, because the address may be a proxy's.
    """

    def __init__(self, keys: ApiKeys | None, rates: RateLimits, *, failed_per_minute: int) -> None:
        self._keys = keys
        self._rates = rates
        self._failed_per_minute = failed_per_minute

    async def authenticate(self, connection: HTTPConnection) -> Principal:
        """Return the caller of a request; raises `NotAllowed` or `TooManyRequests`."""
        if self._keys is None:
            return Principal("", "default", None)
        scheme, _, presented = connection.headers.get("authorization", "").partition(" ")
        key = self._keys.find(presented.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            address = connection.client.host if connection.client else ""
            wait = await self._rates.take(self._failed_per_minute, "failed", address) if presented else None
            if wait is not None:
                raise TooManyRequests(f"too many wrong API keys from this address; retry in {wait} s", wait)
            raise NotAllowed("missing or invalid API key; send a valid one as Authorization: Bearer rag_…")
        wait = await self._rates.take(key.requests_per_minute, "key", key.id)
        if wait is not None:
            limit = key.requests_per_minute
            raise TooManyRequests(f"rate limit of {limit} requests per minute exceeded; retry in {wait} s", wait)
        return Principal(key.id, key.tenant, key.shards)
