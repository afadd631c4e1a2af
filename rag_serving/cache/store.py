"""The protocol of cache stores, and the limits that they share."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from rag_serving.cache.entries import CachedAnswer, Entry, ReviewItem, StoreState

NEIGHBOURS = 3
"""Nearest cached questions to consider."""
MAX_REVIEW_ITEMS = 1_000
"""Review items that a store keeps; older ones are dropped."""
USE_SECONDS = 600.0
"""Eviction drops the entry with the lowest creation time plus this many seconds per use."""


class CacheStore(Protocol):
    """Stores entries. Methods raise `CacheUnavailable`; callers then bypass the cache."""

    @property
    def breaker_open(self) -> bool:
        """Whether the store's server is currently bypassed."""
        ...

    async def get(self, tag: str, key: str) -> Entry | None:
        """Return the entry with exactly this key; counts as a use."""
        ...

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[CachedAnswer]:
        """Return up to `NEIGHBOURS` entries of the tag, most similar first; empty without vector search."""
        ...

    async def put(self, tag: str, key: str, vector: npt.NDArray[np.float32] | None, entry: Entry) -> None:
        """Store or replace an entry until `entry.expires_at`; a full store evicts the least used ones.

        Without a vector only `get` finds it.
        """
        ...

    async def used(self, tag: str, key: str) -> None:
        """Count a use of an entry that was not found by `get`; a store may record it later."""
        ...

    async def move(self, tag: str, key: str, entry: Entry) -> None:
        """Replace an entry if it is still stored; its vector and expiry stay."""
        ...

    async def drop(self, tag: str, key: str) -> bool:
        """Remove an entry; returns whether it existed."""
        ...

    async def note(self, note: ReviewItem) -> None:
        """Record a review item."""
        ...

    async def notes(self) -> list[ReviewItem]:
        """Return the review items, newest first."""
        ...

    async def state(self) -> StoreState:
        """Return what the store can currently do; never raises."""
        ...

    async def close(self) -> None:
        """Release the store's resources."""
        ...
