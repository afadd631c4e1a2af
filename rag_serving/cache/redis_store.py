"""The cache and the flights that processes share, in Redis.

The semantic tier needs search commands (Redis 8, Redis Stack, Valkey with valkey-search); on other servers only the
exact tier works, and `searchable` is False. Only features common to these servers are used: KNN with a TAG filter over
FLOAT32 vectors. All keys of a prefix are in one slot of a Redis Cluster, so that scripts and the index reach all of
them.
"""

import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from rag_serving.cache.entries import CachedAnswer, Entry, ReviewItem, StoreState
from rag_serving.cache.redis_connection import RedisConnection, connect
from rag_serving.cache.store import MAX_REVIEW_ITEMS, NEIGHBOURS, USE_SECONDS
from rag_serving.errors import CacheUnavailable

_NOTES_SECONDS = 30 * 86_400

# Atomic scripts, so that no entry exists without an expiry and no two processes evict for the same slot.
_PUT = """
redis.call('DEL', KEYS[1])
local excess = redis.call('ZCARD', KEYS[2]) + 1 - tonumber(ARGV[4])
if excess > 0 then
  local gone = redis.call('ZPOPMIN', KEYS[2], excess)
  for place = 1, #gone, 2 do redis.call('DEL', gone[place]) end
end
redis.call('HSET', KEYS[1], 'tag', ARGV[1], 'entry', ARGV[2])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], ARGV[5], ARGV[6]) end
redis.call('PEXPIREAT', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[7], KEYS[1])
redis.call('PEXPIREAT', KEYS[2], ARGV[8])
return 1
"""
_MOVE = "if redis.call('EXISTS', KEYS[1]) == 1 then return redis.call('HSET', KEYS[1], 'entry', ARGV[1]) end return 0"
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisStore:
    """A `CacheStore` and `SharedFlights` in Redis."""

    def __init__(
        self,
        connection: RedisConnection,
        *,
        prefix: str,
        most_entries: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._client = connection.client
        self._prefix = f"{{{prefix}}}"
        self._index_prefix = prefix
        self._most_entries = most_entries
        self._clock = clock
        self._indexed: set[int] = set()
        self._uses: Counter[str] = Counter()
        """Uses of entries that Redis does not know yet."""
        self.searchable = True

    @property
    def breaker_open(self) -> bool:
        """Whether Redis is currently bypassed."""
        return self._connection.breaker_open

    # Entries

    async def get(self, tag: str, key: str) -> Entry | None:
        """Return the entry if it has not expired and is valid; counts as a use."""
        name = self._name(tag, key)
        self._uses[name] += 1
        uses, self._uses = self._uses, Counter()
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hget(name, "entry")
        for used, times in uses.items():
            pipeline.zadd(self._usage, {used: times * USE_SECONDS}, xx=True, incr=True)
        found, *_ = await self._connection.run(lambda: pipeline.execute(raise_on_error=False))
        if isinstance(found, Exception):
            self._check(found)
            return None
        return _read_entry(found)

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[CachedAnswer]:
        """Search the index for the nearest entries of the tag; empty if the server cannot search."""
        from redis.exceptions import ResponseError

        dimensions = len(vector)
        if not await self._ensure_index(dimensions):
            return []
        command = (
            *("FT.SEARCH", self._index(dimensions)),
            f"(@tag:{{{tag}}})=>[KNN {NEIGHBOURS} @{_field(dimensions)} $vector AS distance]",
            *("PARAMS", 2, "vector", _bytes(vector), "NOCONTENT", "LIMIT", 0, NEIGHBOURS, "DIALECT", 2),
        )
        try:
            answer = await self._connection.run(lambda: self._search_command(*command))
        except ResponseError as error:
            if "no such index" not in str(error).lower() and "not found" not in str(error).lower():
                raise CacheUnavailable(f"Redis rejected a search: {_code(error)}") from error
            self._indexed.discard(dimensions)  # the server was flushed; the next question recreates the index
            return []
        # Only names come from the search and the rest from the hashes, because servers differ in what else they return.
        names = [name for name in _ids(answer) if name.startswith(self._name(tag, ""))]
        if not names:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.hmget(name, ["entry", _field(dimensions)])
        found: list[CachedAnswer] = []
        for data, stored in await self._answered(pipeline.execute):
            entry = _read_entry(data)
            if entry is not None and stored is not None and len(stored) == 4 * dimensions:
                found.append(CachedAnswer(entry, float(np.frombuffer(stored, dtype="<f4") @ vector)))
        return sorted(found, key=lambda one: -one.similarity)

    async def put(self, tag: str, key: str, vector: npt.NDArray[np.float32] | None, entry: Entry) -> None:
        """Store or replace an entry, and evict others if the store is full."""
        indexed = vector is not None and await self._ensure_index(len(vector))
        end = max(int(entry.expires_at * 1000), int(self._clock() * 1000) + 1)
        await self._answered(
            lambda: self._client.eval(
                _PUT,
                2,
                self._name(tag, key),
                self._usage,
                tag,
                entry.model_dump_json(),
                end,
                self._most_entries,
                _field(len(vector)) if vector is not None else "",
                _bytes(vector) if vector is not None and indexed else b"",
                self._clock(),
                end + 86_400_000,
            )
        )

    async def used(self, tag: str, key: str) -> None:
        """Count a use; Redis learns of it with the next `get` of any entry."""
        self._uses[self._name(tag, key)] += 1

    async def move(self, tag: str, key: str, entry: Entry) -> None:
        """Replace an entry if it is still stored."""
        await self._answered(lambda: self._client.eval(_MOVE, 1, self._name(tag, key), entry.model_dump_json()))

    async def drop(self, tag: str, key: str) -> bool:
        """Remove an entry; returns whether it existed."""
        name = self._name(tag, key)
        removed = await self._answered(lambda: self._client.delete(name))
        await self._answered(lambda: self._client.zrem(self._usage, name))
        return bool(removed)

    async def note(self, note: ReviewItem) -> None:
        """Record a review item; all of them expire 30 days after the last one."""
        name = f"{self._prefix}:notes"
        pipeline = self._client.pipeline(transaction=False)
        pipeline.lpush(name, note.model_dump_json())
        pipeline.ltrim(name, 0, MAX_REVIEW_ITEMS - 1)
        pipeline.expire(name, _NOTES_SECONDS)
        await self._answered(pipeline.execute)

    async def notes(self) -> list[ReviewItem]:
        """Return the review items, newest first."""
        kept = await self._answered(lambda: self._client.lrange(f"{self._prefix}:notes", 0, -1))
        found: list[ReviewItem] = []
        for data in kept:
            try:
                found.append(ReviewItem.model_validate_json(data))
            except ValidationError:  # written by another version of this package
                continue
        return found

    # Flights

    async def acquire(self, flight: str, token: str, seconds: float) -> str | None:
        """Become the leader and return None, or return the token of the current leader."""
        name = self._flight(flight)
        if await self._answered(lambda: self._client.set(name, token, nx=True, px=int(seconds * 1000))):
            return None
        return await self.leader(flight) or await self.acquire(flight, token, seconds)

    async def leader(self, flight: str) -> str | None:
        """Return the token of the current leader, if any."""
        found = await self._answered(lambda: self._client.get(self._flight(flight)))
        return None if found is None else found.decode()

    async def renew(self, flight: str, token: str, seconds: float) -> bool:
        """Extend the lease to `seconds` from now; returns False if another process leads."""
        name = self._flight(flight)
        return bool(await self._answered(lambda: self._client.eval(_RENEW, 1, name, token, int(seconds * 1000))))

    async def publish(self, flight: str, token: str, events: Sequence[bytes], seconds: float) -> None:
        """Append events of this leader; all of them are kept for `seconds` from now."""
        name = f"{self._flight(flight)}:{token}"
        pipeline = self._client.pipeline(transaction=False)
        pipeline.rpush(name, *events)
        pipeline.pexpire(name, int(seconds * 1000))
        await self._answered(pipeline.execute)

    async def events(self, flight: str, token: str, after: int) -> list[bytes]:
        """Return the events of a leader from number `after` on, counted from 0."""
        return await self._answered(lambda: self._client.lrange(f"{self._flight(flight)}:{token}", after, -1))

    async def release(self, flight: str, token: str) -> None:
        """Give up the lease if this process still holds it."""
        await self._answered(lambda: self._client.eval(_RELEASE, 1, self._flight(flight), token))

    # The server

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    async def state(self) -> StoreState:
        """Ask the server whether it can search; never raises."""
        from redis.exceptions import ResponseError

        try:
            await self._connection.run(lambda: self._search_command("FT._LIST"))
        except ResponseError as error:
            if "unknown command" in str(error).lower():
                self.searchable = False
                return "exact tier only: the server has no search commands"
            return "unavailable"
        except CacheUnavailable:
            return "unavailable"
        return "exact and semantic"

    @property
    def _usage(self) -> str:
        return f"{self._prefix}:usage"

    def _name(self, tag: str, key: str) -> str:
        return f"{self._prefix}:e:{tag}:{key}"

    def _flight(self, flight: str) -> str:
        return f"{self._prefix}:f:{flight}"

    def _index(self, dimensions: int) -> str:
        return f"{self._index_prefix}:index:{dimensions}"

    async def _search_command(self, *command: Any) -> Any:
        """Run a search command on the node that holds the entries; by default a cluster client picks any node."""
        node = getattr(self._client, "get_node_from_key", None)
        if node is None:
            return await self._client.execute_command(*command)
        await self._client.initialize()
        return await self._client.execute_command(*command, target_nodes=node(self._usage))

    async def _ensure_index(self, dimensions: int) -> bool:
        if not self.searchable:
            return False
        if dimensions in self._indexed:
            return True
        from redis.exceptions import ResponseError

        command = (
            *("FT.CREATE", self._index(dimensions), "ON", "HASH", "PREFIX", 1, f"{self._prefix}:e:"),
            *("SCHEMA", "tag", "TAG", _field(dimensions), "VECTOR", "FLAT", 6),
            *("TYPE", "FLOAT32", "DIM", dimensions, "DISTANCE_METRIC", "COSINE"),
        )
        try:
            await self._connection.run(lambda: self._search_command(*command))
        except ResponseError as error:
            message = str(error).lower()
            if "unknown command" in message:
                self.searchable = False
                return False
            if "already exists" not in message:
                raise CacheUnavailable(f"Redis rejected the search index: {_code(error)}") from error
        self._indexed.add(dimensions)
        return True

    async def _answered(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        """Run an operation; a rejected command is a failure, too, because a full or read-only server rejects writes."""
        from redis.exceptions import ResponseError

        try:
            return await self._connection.run(operation)
        except ResponseError as error:
            raise CacheUnavailable(f"Redis rejected a command: {_code(error)}") from error

    def _check(self, error: Exception) -> None:
        """Raise the error of a command in a pipeline, except for a key of another type, which is no entry."""
        if not str(error).startswith("WRONGTYPE"):
            raise CacheUnavailable(f"Redis rejected a command: {_code(error)}") from error


def _code(error: Exception) -> str:
    """Return the code with which Redis answers, such as OOM for a full server; its messages may repeat the question."""
    message = str(error).rpartition("caused error: ")[2]
    code = re.match(r"[A-Z]{2,}(?=\s|$)", message)
    return code[0] if code else type(error).__name__  # redis-py strips the code if it has a class for it


def open_redis(url: str, *, timeout: float, prefix: str, most_entries: int = 100_000) -> RedisStore:
    """Create a store on the server at `url`; see `connect`."""
    connection = connect(url, purpose="answer cache", timeout=timeout)
    return RedisStore(connection, prefix=prefix, most_entries=most_entries)


def _field(dimensions: int) -> str:
    return f"v{dimensions}"


def _bytes(vector: npt.NDArray[np.float32]) -> bytes:
    return np.asarray(vector, dtype="<f4").tobytes()


def _read_entry(data: Any) -> Entry | None:
    """Parse an entry, or return None if it does not validate: the server's data is not trusted."""
    if data is None:
        return None
    try:
        return Entry.model_validate_json(data)
    except ValidationError:
        return None


def _ids(answer: Any) -> list[str]:
    """Return the names of the hashes found, from a RESP2 reply (a list) or a RESP3 reply (a map)."""
    if isinstance(answer, dict):
        by_name = {_text(name): value for name, value in cast("dict[Any, Any]", answer).items()}
        rows = [{_text(name): value for name, value in row.items()} for row in by_name.get("results", [])]
        return [_text(row["id"]) for row in rows]
    return [_text(name) for name in cast("list[Any]", answer)[1:]]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
