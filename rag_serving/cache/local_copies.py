"""Short-lived copies of what was found in a shared cache store, so that a hot question does not ask it every time."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rag_serving.cache.entries import CachedAnswer, Entry, ReviewItem, StoreState
from rag_serving.cache.store import CacheStore

_MOST_COPIES = 1_000
_MOST_BYTES = 16 * 2**20

_Place = tuple[str, str | bytes]
"""A tag with the key of an entry, or with the bytes of a vector whose nearest entries are copied."""
_Found = Sequence[CachedAnswer]


@dataclass(frozen=True, slots=True)
class _Copy:
    found: _Found
    end: float
    size: int


class LocalCopies:
    """A `CacheStore` around another: what it found is served again for `seconds`, also while its server is unavailable.

    Changes by this process take effect at once, changes by others after `seconds`. Concurrent lookups of the same entry
    share one request. At most `most_copies` are kept, with at most `most_bytes` of JSON; the least recently used are
    dropped. Belongs to one event loop.
    """

    def __init__(
        self,
        store: CacheStore,
        *,
        seconds: float,
        most_copies: int = _MOST_COPIES,
        most_bytes: int = _MOST_BYTES,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._seconds = seconds
        self._most_copies = most_copies
        self._most_bytes = most_bytes
        self._clock = clock
        self._timer = timer
        self._copies: OrderedDict[_Place, _Copy] = OrderedDict()
        self._bytes = 0
        self._lookups: dict[_Place, asyncio.Task[_Found]] = {}

    @property
    def breaker_open(self) -> bool:
        """Whether the store's server is currently bypassed."""
        return self._store.breaker_open

    async def get(self, tag: str, key: str) -> Entry | None:
        """Return the entry with exactly this key; counts as a use."""
        asked = False

        async def ask() -> _Found:
            nonlocal asked
            asked = True
            entry = await self._store.get(tag, key)
            return [] if entry is None else [CachedAnswer(entry, 1.0)]

        found = await self._look_up((tag, key), ask)
        if not found:
            return None
        if not asked:
            await self._store.used(tag, key)
        return found[0].entry

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[CachedAnswer]:
        """Return the nearest entries of the tag, most similar first."""
        return list(await self._look_up((tag, vector.tobytes()), lambda: self._store.nearest(tag, vector)))

    async def put(self, tag: str, key: str, vector: npt.NDArray[np.float32] | None, entry: Entry) -> None:
        """Store or replace an entry."""
        try:
            await self._store.put(tag, key, vector, entry)
        finally:
            self._forget(tag, key)

    async def used(self, tag: str, key: str) -> None:
        """Count a use."""
        await self._store.used(tag, key)

    async def move(self, tag: str, key: str, entry: Entry) -> None:
        """Replace an entry if it is still stored."""
        try:
            await self._store.move(tag, key, entry)
        finally:
            self._forget(tag, key)

    async def drop(self, tag: str, key: str) -> bool:
        """Remove an entry; returns whether it existed."""
        try:
            return await self._store.drop(tag, key)
        finally:
            self._forget(tag, key)

    async def note(self, note: ReviewItem) -> None:
        """Record a review item."""
        await self._store.note(note)

    async def notes(self) -> list[ReviewItem]:
        """Return the review items, newest first."""
        return await self._store.notes()

    async def state(self) -> StoreState:
        """Return what the store can currently do; never raises."""
        return await self._store.state()

    async def close(self) -> None:
        """Wait for the lookups in progress and close the store."""
        await asyncio.gather(*self._lookups.values(), return_exceptions=True)
        await self._store.close()

    async def _look_up(self, place: _Place, ask: Callable[[], Awaitable[_Found]]) -> _Found:
        copy = self._copies.get(place)
        if copy is not None and self._is_fresh(copy):
            self._copies.move_to_end(place)
            return copy.found
        lookup = self._lookups.get(place)
        if lookup is None:
            lookup = asyncio.create_task(self._ask(place, ask))
            self._lookups[place] = lookup
        return await asyncio.shield(lookup)  # others wait for it, too, when this caller leaves

    async def _ask(self, place: _Place, ask: Callable[[], Awaitable[_Found]]) -> _Found:
        end = self._timer() + self._seconds
        try:
            found = await ask()
        finally:
            # Not if the entry has changed since, because then the reply may be older than the change.
            is_current = self._lookups.get(place) is asyncio.current_task()
            if is_current:
                del self._lookups[place]
        # That nothing was found is not kept: another process may store the answer at any moment.
        if is_current and found:
            self._keep(place, _Copy(found, end, sum(len(one.entry.model_dump_json()) for one in found)))
        return found

    def _is_fresh(self, copy: _Copy) -> bool:
        now = self._clock()
        return self._timer() < copy.end and all(one.entry.expires_at > now for one in copy.found)

    def _keep(self, place: _Place, copy: _Copy) -> None:
        self._remove(place)
        self._copies[place] = copy
        self._bytes += copy.size
        while len(self._copies) > self._most_copies or self._bytes > self._most_bytes:
            self._remove(next(iter(self._copies)))

    def _forget(self, tag: str, key: str) -> None:
        """Forget the entry and what was nearest to any vector of its tag, including lookups in progress."""
        for place in [*self._copies, *self._lookups]:
            if place == (tag, key) or (place[0] == tag and isinstance(place[1], bytes)):
                self._remove(place)
                self._lookups.pop(place, None)

    def _remove(self, place: _Place) -> None:
        copy = self._copies.pop(place, None)
        if copy is not None:
            self._bytes -= copy.size
