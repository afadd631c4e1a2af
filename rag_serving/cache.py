"""The answer cache: entries, how they are found again, and what else is kept of a question that was asked.

An entry lies under a tag (tenant, scope, embedder, model and prompt version) and its normalised question. It carries
the content digests of the shards it was made from and the evidence that was found in them, so that a reader can tell
whether it still holds. Its life is absolute: a hit does not prolong it. Where entries are kept is a `CacheStore`.
"""

from __future__ import annotations

import hashlib
import json
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rag_serving.guards import Evidence, Guard
from rag_serving.results import Answer

if TYPE_CHECKING:
    import numpy.typing as npt

NEIGHBOURS = 3
"""Stored questions that are looked at for one asked."""
MOST_NOTES = 1_000
"""Notes kept at most, the newest."""
USE_SECONDS = 600.0
"""What one use of an entry weighs beside its age when the least used have to go."""


class Entry(BaseModel):
    """A stored answer with the state of the documents that it was made from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(default=2, ge=2, le=2)
    tenant: str
    question: str
    answer: Answer
    digests: dict[str, str] = Field(description="content digest by shard")
    evidence: tuple[Evidence, ...] = Field(description="what was found for the question, best first")
    created_at: float
    expires_at: float

    @property
    def key(self) -> str:
        """What it is stored under, within its tag."""
        return question_key(self.question)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and the cosine of its question with the one asked."""

    entry: Entry
    similarity: float


class Note(BaseModel):
    """A pair of questions worth looking at: refused narrowly, served in the shadow, or judged by a person.

    Written as JSON lines, notes with `same` are what a recalibration reads.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["near_miss", "shadow", "feedback"]
    tenant: str
    asked: str
    cached: str | None = Field(description="the stored question; None for an answer that came from none")
    similarity: float | None
    asked_evidence: tuple[Evidence, ...] = ()
    cached_evidence: tuple[Evidence, ...] = ()
    guard: Guard | None = Field(default=None, description="which guard refused")
    risk: float | None = Field(default=None, description="estimated probability that serving would have been wrong")
    same: bool | None = Field(default=None, description="whether the answer was right, where a person said so")
    at: float


StoreState = Literal[
    "exact and semantic", "exact tier only: the server has no search commands", "unavailable", "in this process"
]


class CacheStore(Protocol):
    """Where entries are kept. Methods raise `CacheUnavailable`; callers go on without the cache then."""

    async def get(self, tag: str, key: str) -> Entry | None:
        """The entry stored under exactly that key; counts as a use of it."""
        ...

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[Found]:
        """Up to `NEIGHBOURS` entries of that tag, most similar question first; empty without vector search."""
        ...

    async def put(self, tag: str, key: str, vector: npt.NDArray[np.float32] | None, entry: Entry) -> None:
        """Store or replace; the entry is gone at `entry.expires_at`. Without a vector it is found exactly only.

        Where the store is full, those least used leave it.
        """
        ...

    async def used(self, tag: str, key: str) -> None:
        """Count a use of an entry that was found by `nearest`."""
        ...

    async def move(self, tag: str, key: str, entry: Entry) -> None:
        """Replace the entry where it still lies, its vector and its end unchanged."""
        ...

    async def drop(self, tag: str, key: str) -> bool:
        """Remove an entry; says whether there was one."""
        ...

    async def note(self, note: Note) -> None:
        """Keep a note, of which the newest `MOST_NOTES` are kept."""
        ...

    async def notes(self) -> list[Note]:
        """The notes that are kept, newest first."""
        ...

    async def state(self) -> StoreState:
        """What it can do just now; never raises."""
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


def digest_of(digests: Mapping[str, str]) -> str:
    """32 hex digits over the contents of a scope."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]


class AnswerCache:
    """Finds, stores and moves entries of a store, on one clock."""

    def __init__(
        self,
        store: CacheStore,
        *,
        ttl_seconds: int,
        refusal_ttl_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._ttl = ttl_seconds
        self._refusal_ttl = refusal_ttl_seconds
        self._clock = clock

    async def exact(self, tag: str, question: str) -> Entry | None:
        """The entry of the same question, whatever the state of the documents it was made from."""
        entry = await self.store.get(tag, question_key(question))
        return entry if entry is not None and self._lives(entry) else None

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32], floor: float) -> list[Found]:
        """Entries of questions at least so similar, likewise, most similar first."""
        found = await self.store.nearest(tag, vector)
        return [one for one in found if one.similarity >= floor and self._lives(one.entry)]

    async def keep(
        self,
        tag: str,
        tenant: str,
        vector: npt.NDArray[np.float32] | None,
        answer: Answer,
        digests: Mapping[str, str],
        evidence: Sequence[Evidence],
    ) -> Entry:
        """Store an answer for the cache's lifetime from now, or for a short one where it says that nothing was found.

        Documents that answer it may arrive in any minute, and people ask again.
        """
        now = self._clock()
        entry = Entry(
            tenant=tenant,
            question=answer.question,
            answer=answer,
            digests=dict(digests),
            evidence=tuple(evidence),
            created_at=now,
            expires_at=now + (self._refusal_ttl if answer.kind == "none" else self._ttl),
        )
        await self.store.put(tag, entry.key, vector, entry)
        return entry

    async def move(self, tag: str, entry: Entry, answer: Answer, digests: Mapping[str, str]) -> Entry:
        """Have an entry stand for the documents as they are now, its evidence being in them unchanged."""
        moved = entry.model_copy(update={"answer": answer, "digests": dict(digests)})
        await self.store.move(tag, moved.key, moved)
        return moved

    async def close(self) -> None:
        await self.store.close()

    def _lives(self, entry: Entry) -> bool:
        return entry.expires_at > self._clock()


class MemoryStore:
    """Entries in this process. Beyond `capacity` the least used go; a use weighs as much as `USE_SECONDS` of youth."""

    def __init__(self, capacity: int, clock: Callable[[], float] = time.time) -> None:
        self._capacity = capacity
        self._clock = clock
        self._entries: dict[tuple[str, str], tuple[npt.NDArray[np.float32] | None, Entry]] = {}
        self._worth: dict[tuple[str, str], float] = {}
        self._notes: deque[Note] = deque(maxlen=MOST_NOTES)

    async def get(self, tag: str, key: str) -> Entry | None:
        stored = self._entries.get((tag, key))
        if stored is None:
            return None
        if stored[1].expires_at <= self._clock():
            self._forget((tag, key))
            return None
        await self.used(tag, key)
        return stored[1]

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[Found]:
        now = self._clock()
        vectors: list[npt.NDArray[np.float32]] = []
        entries: list[Entry] = []
        for (other, _), (stored, entry) in self._entries.items():
            if other == tag and stored is not None and stored.shape == vector.shape and entry.expires_at > now:
                vectors.append(stored)
                entries.append(entry)
        if not vectors:
            return []
        cosines = np.stack(vectors) @ vector
        best: list[int] = np.argsort(-cosines)[:NEIGHBOURS].tolist()
        return [Found(entries[row], float(cosines[row])) for row in best]

    async def put(self, tag: str, key: str, vector: npt.NDArray[np.float32] | None, entry: Entry) -> None:
        self._forget((tag, key))
        while len(self._entries) >= self._capacity:
            self._forget(min(self._worth.items(), key=lambda item: item[1])[0])
        self._entries[tag, key] = (vector, entry)
        self._worth[tag, key] = self._clock()

    async def used(self, tag: str, key: str) -> None:
        if (tag, key) in self._worth:
            self._worth[tag, key] += USE_SECONDS

    async def move(self, tag: str, key: str, entry: Entry) -> None:
        stored = self._entries.get((tag, key))
        if stored is not None:
            self._entries[tag, key] = (stored[0], entry)

    async def drop(self, tag: str, key: str) -> bool:
        return self._forget((tag, key))

    async def note(self, note: Note) -> None:
        self._notes.appendleft(note)

    async def notes(self) -> list[Note]:
        return list(self._notes)

    async def state(self) -> StoreState:
        return "in this process"

    async def close(self) -> None:
        self._entries.clear()
        self._worth.clear()

    def _forget(self, place: tuple[str, str]) -> bool:
        self._worth.pop(place, None)
        return self._entries.pop(place, None) is not None
