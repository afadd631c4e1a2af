"""Authentication of requests by API key, and the rate limits of keys."""

import asyncio
import base64
import binascii
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from rag_serving.errors import NotAllowed, TooManyRequests
from rag_serving.http.api_keys import ApiKeys
from rag_serving.http.rate_limits import RateLimits

_REFUSAL_SECONDS = 60.0
"""Seconds until the log may say again that an address is refused."""
_MOST_ADDRESSES = 10_000
_DELAY_SECONDS = 1.0
_MOST_DELAYED = 100
"""Requests that are delayed at a time before they are refused."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller. `within` holds patterns of the visible shards; None means all."""

    key: str
    tenant: str
    within: tuple[str, ...] | None


class Authenticator:
    """Authenticates callers by API key; without keys, all callers share one identity.

    Wrong keys are rate-limited and logged per address. Beyond the limit, they are refused after `delay` seconds, so
    that a stranger who tries again at once does not fill the event loop. A valid key is always accepted, because the
    address may be a proxy's.
    """

    def __init__(
        self,
        keys: ApiKeys | None,
        rates: RateLimits,
        *,
        failed_per_minute: int,
        delay: float = _DELAY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._rates = rates
        self._failed_per_minute = failed_per_minute
        self._clock = clock
        self._delay = delay
        self._delayed = 0
        self._refused: OrderedDict[str, float] = OrderedDict()
        """When the log said last that an address is refused, oldest first."""

    @property
    def needs_key(self) -> bool:
        """Whether a request needs a key."""
        return self._keys is not None

    @property
    def key_file_broken(self) -> bool:
        """Whether the key file cannot be used, so that the keys read last stay valid."""
        if self._keys is None:
            return False
        self._keys.refresh()
        return self._keys.problem is not None

    async def authenticate(self, connection: HTTPConnection) -> Principal:
        """Return the caller of a request; raises `NotAllowed` or `TooManyRequests`."""
        if self._keys is None:
            return Principal("", "default", None)
        presented = _presented(connection.headers.get("authorization", ""))
        key = self._keys.find(presented)
        if key is None:
            if presented:
                await self._count_wrong_key(connection.client.host if connection.client else "")
            raise NotAllowed("missing or invalid API key; send a valid one as Authorization: Bearer rag_…")
        wait = await self._rates.take(key.requests_per_minute, "key", key.id)
        if wait is not None:
            limit = key.requests_per_minute
            raise TooManyRequests(f"rate limit of {limit} requests per minute exceeded; retry in {wait} s", wait)
        return Principal(key.id, key.tenant, key.shards)

    async def _count_wrong_key(self, address: str) -> None:
        """Count and log a wrong key; raises `TooManyRequests` if the address presented too many."""
        limit = self._failed_per_minute
        wait = await self._rates.take(limit, "failed", address)
        if wait is None:
            _log.warning("wrong API key from %s", address)
            return
        now = self._clock()
        if now - self._refused.get(address, -_REFUSAL_SECONDS) >= _REFUSAL_SECONDS:
            self._refused[address] = now
            self._refused.move_to_end(address)
            if len(self._refused) > _MOST_ADDRESSES:
                self._refused.popitem(last=False)
            _log.warning("refusing wrong API keys from %s: more than %d in a minute", address, limit)
        if self._delayed < _MOST_DELAYED:
            self._delayed += 1
            try:
                await asyncio.sleep(self._delay)
            finally:
                self._delayed -= 1
        raise TooManyRequests(f"too many wrong API keys from this address; retry in {wait} s", wait)


def _presented(header: str) -> str:
    """Return the key in a header: as a bearer, or as the password of a browser or scraper that knows only passwords."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return value
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return value
