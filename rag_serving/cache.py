"""The answer cache: an exact tier by normalised question and a semantic tier by nearest stored question.

Entries live in Redis (with the search commands for the semantic tier) or, without Redis, in this process. A key
carries tenant, scope, embedder, model and prompt version; an entry carries the content digests of the shards it was
made from and is a miss when one differs. Its life is absolute: a hit does not prolong it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from rag_serving.errors import CacheUnavailable, SettingsError
from rag_serving.results import Answer

if TYPE_CHECKING:
    import numpy.typing as npt
    from redis.asyncio import Redis

_NEIGHBOURS = 3
_BREAKER_SECONDS = 5.0

_TERM = re.compile(r"[a-z\d]+(?:[.,:/-][a-z\d]+)*")
_WORD = re.compile(r"\w+(?:['’]\w+)?")
_NEGATIONS = frozenset(
    [
        "no",
        "not",
        "never",
        "none",
        "nobody",
        "nothing",
        "neither",
        "nor",
        "without",
        "cannot",
        "except",
        "unless",
        "unable",
        "exclude",
        "excluding",
        "kein",
        "keine",
        "nicht",
        "non",
        "sem",
        "não",
        "ikke",
        "aldri",
    ]
)
# By their first three letters. Without May, which is a verb more often: "12 May" still differs from "12 June".
_CALENDAR = re.compile(
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?"
    r"|january|february|march|april|june|july|august|september|october|november|december"
)


class Entry(BaseModel):
    """A stored answer with the state of the documents that it was made from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    question: str
    answer: Answer
    digests: dict[str, str]
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and the cosine of its question with the one asked."""

    entry: Entry
    similarity: float


class CacheStore(Protocol):
    """Where entries are kept. Methods raise `CacheUnavailable`; callers go on without the cache then."""

    async def get(self, tag: str, key: str) -> Entry | None:
        """The entry stored under exactly that key."""
        ...

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[Found]:
        """Up to three entries of that tag, most similar question first; empty without vector search."""
        ...

    async def put(self, tag: str, key: str, vector: npt.NDArray[np.float32], entry: Entry) -> None:
        """Store or replace; the entry is gone at `entry.expires_at`."""
        ...

    async def close(self) -> None: ...


def normalise(question: str) -> str:
    """The form under which two questions are the same: compatibility forms, case, space and end marks folded."""
    folded = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(folded.split()).rstrip(" ?!.。？！").lstrip("¿¡ ")


def question_key(question: str) -> str:
    """32 hex digits of the normalised question."""
    return hashlib.sha256(normalise(question).encode()).hexdigest()[:32]


def scope_tag(**parts: object) -> str:
    """32 hex digits over everything that must be equal for an answer to be shared; hex is safe in every query."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def same_particulars(left: str, right: str) -> bool:
    """Whether two questions agree in their numbers, codes, months and weekdays, and in how often they negate.

    Embeddings hardly tell 2024 from 2025, 12 March from 12 April, or may from may not, apart.
    """

    def particulars(text: str) -> tuple[list[str], list[str], int]:
        folded = normalise(text)
        words = _WORD.findall(folded)
        numbers = sorted(term for term in _TERM.findall(folded) if any(c.isdigit() for c in term))
        days = sorted(word[:3] for word in words if _CALENDAR.fullmatch(word))
        negations = sum(word in _NEGATIONS or word.endswith(("n't", "n’t")) for word in words)
        return numbers, days, negations

    return particulars(left) == particulars(right)


class AnswerCache:
    """The two tiers over a store."""

    def __init__(
        self,
        store: CacheStore,
        *,
        similarity: float,
        ttl_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._similarity = similarity
        self._ttl = ttl_seconds
        self._clock = clock

    async def exact(self, tag: str, question: str, digests: Mapping[str, str]) -> Entry | None:
        """The entry of the same question, if the shards it was made from are unchanged."""
        entry = await self._store.get(tag, question_key(question))
        return entry if entry is not None and self._holds(entry, digests) else None

    async def semantic(
        self, tag: str, question: str, vector: npt.NDArray[np.float32], digests: Mapping[str, str]
    ) -> Found | None:
        """The entry of a question that means the same, likewise."""
        for found in await self._store.nearest(tag, vector):
            if (
                found.similarity >= self._similarity
                and self._holds(found.entry, digests)
                and same_particulars(question, found.entry.question)
            ):
                return found
        return None

    async def store(
        self, tag: str, vector: npt.NDArray[np.float32], answer: Answer, digests: Mapping[str, str]
    ) -> None:
        """Keep an answer for the cache's lifetime from now."""
        now = self._clock()
        entry = Entry(
            question=answer.question,
            answer=answer,
            digests=dict(digests),
            created_at=now,
            expires_at=now + self._ttl,
        )
        await self._store.put(tag, question_key(answer.question), vector, entry)

    async def close(self) -> None:
        await self._store.close()

    def _holds(self, entry: Entry, digests: Mapping[str, str]) -> bool:
        return entry.digests == digests and entry.expires_at > self._clock()


class MemoryStore:
    """Entries in this process, the least recently used dropped beyond `capacity`."""

    def __init__(self, capacity: int, clock: Callable[[], float] = time.time) -> None:
        self._capacity = capacity
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], tuple[npt.NDArray[np.float32], Entry]] = OrderedDict()

    async def get(self, tag: str, key: str) -> Entry | None:
        stored = self._entries.get((tag, key))
        if stored is None:
            return None
        if stored[1].expires_at <= self._clock():
            del self._entries[tag, key]
            return None
        self._entries.move_to_end((tag, key))
        return stored[1]

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[Found]:
        now = self._clock()
        keys = [key for key, (_, entry) in self._entries.items() if key[0] == tag and entry.expires_at > now]
        if not keys:
            return []
        cosines = np.stack([self._entries[key][0] for key in keys]) @ vector
        best = np.argsort(-cosines)[:_NEIGHBOURS]
        return [Found(self._entries[keys[row]][1], float(cosines[row])) for row in best]

    async def put(self, tag: str, key: str, vector: npt.NDArray[np.float32], entry: Entry) -> None:
        self._entries[tag, key] = (vector, entry)
        self._entries.move_to_end((tag, key))
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    async def close(self) -> None:
        self._entries.clear()


class RedisStore:
    """Entries as Redis hashes under one vector index per dimension count.

    Needs the search commands (Redis 8, Redis Stack, Valkey with valkey-search) for the semantic tier; on a server
    without them the exact tier works and `searchable` is False. After a failure the server is left alone for five
    seconds, so that a dead one costs no time per question.
    """

    def __init__(
        self,
        client: Redis,
        *,
        prefix: str,
        clock: Callable[[], float] = time.time,
        breaker: float = _BREAKER_SECONDS,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._clock = clock
        self._breaker = breaker
        self._broken_until = 0.0
        self._indexed: set[int] = set()
        self.searchable = True

    async def get(self, tag: str, key: str) -> Entry | None:
        # The dimension count is part of an entry's key, so the exact tier keeps a pointer beside it.
        return _read_entry(await self._answered(self._client.get(f"{self._prefix}:x:{tag}:{key}")))

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[Found]:
        from redis.commands.search.query import Query
        from redis.exceptions import ResponseError

        if not await self._ensure_index(len(vector)):
            return []
        query = (
            Query(f"(@tag:{{{tag}}})=>[KNN {_NEIGHBOURS} @vector $vector AS distance]")
            .sort_by("distance")
            .return_fields("entry", "distance")
            .paging(0, _NEIGHBOURS)
            .dialect(2)
        )
        search: Any = self._commands(len(vector)).search(query, {"vector": _bytes(vector)})
        try:
            answer = await self._guarded(search)
        except ResponseError as error:
            if "no such index" not in str(error).lower() and "not found" not in str(error).lower():
                raise CacheUnavailable(f"the cache refused a search: {error}") from error
            self._indexed.discard(len(vector))  # the server was flushed; the next question makes the index anew
            return []
        found: list[Found] = []
        for document in _documents(answer):
            entry = _read_entry(document.get("entry"))
            if entry is not None:
                found.append(Found(entry, 1.0 - float(document["distance"])))
        return found

    async def put(self, tag: str, key: str, vector: npt.NDArray[np.float32], entry: Entry) -> None:
        seconds = max(1, round(entry.expires_at - self._clock()))
        data = entry.model_dump_json()
        pipeline = self._client.pipeline(transaction=True)
        pipeline.set(f"{self._prefix}:x:{tag}:{key}", data, ex=seconds)
        if await self._ensure_index(len(vector)):
            name = f"{self._prefix}:v{len(vector)}:{tag}:{key}"
            pipeline.hset(name, mapping={"tag": tag, "vector": _bytes(vector), "entry": data})
            pipeline.expire(name, seconds)
        await self._answered(pipeline.execute())

    async def close(self) -> None:
        await self._client.aclose()

    def _index(self, dimensions: int) -> str:
        return f"{self._prefix}:index:{dimensions}"

    def _commands(self, dimensions: int) -> Any:
        return self._client.ft(self._index(dimensions))

    async def _ensure_index(self, dimensions: int) -> bool:
        if not self.searchable:
            return False
        if dimensions in self._indexed:
            return True
        from redis.commands.search.field import TagField, VectorField
        from redis.commands.search.index_definition import IndexDefinition, IndexType
        from redis.exceptions import ResponseError

        vector = VectorField("vector", "FLAT", {"TYPE": "FLOAT32", "DIM": dimensions, "DISTANCE_METRIC": "COSINE"})
        definition = IndexDefinition(prefix=[f"{self._prefix}:v{dimensions}:"], index_type=IndexType.HASH)
        create: Any = self._commands(dimensions).create_index([TagField("tag"), vector], definition=definition)
        try:
            await self._guarded(create)
        except ResponseError as error:
            message = str(error).lower()
            if "unknown command" in message:
                self.searchable = False
                return False
            if "already exists" not in message:
                raise CacheUnavailable(f"the cache refused to make its index: {error}") from error
        self._indexed.add(dimensions)
        return True

    async def _answered(self, operation: Any) -> Any:
        """As `_guarded`, for what no server should refuse: a full or read-only one does."""
        from redis.exceptions import ResponseError

        try:
            return await self._guarded(operation)
        except ResponseError as error:
            raise CacheUnavailable(f"the cache refused a command ({type(error).__name__}): {error}") from error

    async def _guarded(self, operation: Any) -> Any:
        from redis.exceptions import RedisError, ResponseError

        if time.monotonic() < self._broken_until:
            _discard(operation)
            raise CacheUnavailable("the cache failed a moment ago and is left alone for some seconds")
        try:
            return await operation
        except ResponseError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            self._broken_until = time.monotonic() + self._breaker
            raise CacheUnavailable(f"Redis does not answer ({type(error).__name__}); check RAG_REDIS_URL") from error


def open_redis(url: str, *, timeout: float, prefix: str) -> RedisStore:
    """A store on that server; nothing is contacted yet. Raises `SettingsError` for a URL that is none."""
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import ExponentialWithJitterBackoff

    try:
        client = Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(ExponentialWithJitterBackoff(cap=0.05, base=0.01), 1),
            decode_responses=False,
        )
        # Options behind the question mark are checked only here: a connection is made, and not opened.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (ValueError, TypeError):
        # Not chained: the cause quotes the URL, and with it a part of a password that holds a slash.
        raise SettingsError("RAG_REDIS_URL is malformed; write redis://host:6379/0 or rediss://…") from None
    return RedisStore(client, prefix=prefix)


def _discard(operation: Any) -> None:
    close = getattr(operation, "close", None)
    if callable(close):
        close()


def _bytes(vector: npt.NDArray[np.float32]) -> bytes:
    return np.asarray(vector, dtype="<f4").tobytes()


def _read_entry(data: Any) -> Entry | None:
    """What the server holds is not trusted: an entry that does not validate is none."""
    if data is None:
        return None
    try:
        return Entry.model_validate_json(data)
    except ValidationError:
        return None


def _documents(answer: Any) -> list[dict[str, Any]]:
    """The fields of each found hash, whether the client speaks RESP2 or RESP3."""
    if not isinstance(answer, dict):
        return [vars(document) for document in answer.docs]
    by_name = {_text(name): value for name, value in cast("dict[Any, Any]", answer).items()}
    rows = [{_text(name): value for name, value in row.items()} for row in by_name.get("results", [])]
    return [{_text(name): value for name, value in row["extra_attributes"].items()} for row in rows]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
