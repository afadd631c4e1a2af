"""A cache store in the memory of one process."""

import time
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rag_serving.cache.entries import CachedAnswer, Entry, ReviewItem, StoreState
from rag_serving.cache.store import MAX_REVIEW_ITEMS, NEIGHBOURS, USE_SECONDS


class MemoryStore:
    """A `CacheStore` in this process. Beyond `capacity` it evicts the least used; see `USE_SECONDS`."""

    def __init__(self, capacity: int, clock: Callable[[], float] = time.time) -> None:
        self._capacity = capacity
        self._clock = clock
        self._entries: dict[tuple[str, str], tuple[npt.NDArray[np.float32] | None, Entry]] = {}
        self._worth: dict[tuple[str, str], float] = {}
        self._notes: deque[ReviewItem] = deque(maxlen=MAX_REVIEW_ITEMS)

    @property
    def breaker_open(self) -> bool:
        """Always False: there is no server to bypass."""
        return False

    async def get(self, tag: str, key: str) -> Entry | None:
        """Return the entry if it has not expired; counts as a use."""
        stored = self._entries.get((tag, key))
        if stored is None:
            return None
        if stored[1].expires_at <= self._clock():
            self._forget((tag, key))
            return None
        await self.used(tag, key)
        return stored[1]

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[CachedAnswer]:
        """Compare the vector with every entry of the tag."""
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
        return [CachedAnswer(entries[row], float(cosines[row])) for row in best]

    async def put(self, tag: str, key: str, vector: npt.NDArray[np.float32] | None, entry: Entry) -> None:
        """Store or replace an entry, and evict others if the store is full."""
        self._forget((tag, key))
        while len(self._entries) >= self._capacity:
            self._forget(min(self._worth.items(), key=lambda item: item[1])[0])
        self._entries[tag, key] = (vector, entry)
        self._worth[tag, key] = self._clock()

    async def used(self, tag: str, key: str) -> None:
        """Count a use."""
        if (tag, key) in self._worth:
            self._worth[tag, key] += USE_SECONDS

    async def move(self, tag: str, key: str, entry: Entry) -> None:
        """Replace an entry if it is still stored."""
        stored = self._entries.get((tag, key))
        if stored is not None:
            self._entries[tag, key] = (stored[0], entry)

    async def drop(self, tag: str, key: str) -> bool:
        """Remove an entry; returns whether it existed."""
        return self._forget((tag, key))

    async def note(self, note: ReviewItem) -> None:
        """Record a review item."""
        self._notes.appendleft(note)

    async def notes(self) -> list[ReviewItem]:
        """Return the review items, newest first."""
        return list(self._notes)

    async def state(self) -> StoreState:
        """Return the fixed state of this store."""
        return "in this process"

    async def close(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self._worth.clear()

    def _forget(self, place: tuple[str, str]) -> bool:
        self._worth.pop(place, None)
        return self._entries.pop(place, None) is not None
