"""The protocol of a cache store, and the bounds that every store keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from rag_serving.cache.entries import CachedAnswer, Entry, ReviewItem, StoreState

if TYPE_CHECKING:
    import numpy.typing as npt

NEIGHBOURS = 3
"""Stored questions that are looked at for one asked."""

MAX_REVIEW_ITEMS = 1_000
"""Review items that a store keeps; the newest stay."""
USE_SECONDS = 600.0
"""What one use of an entry weighs beside its age when the least used have to go."""


class CacheStore(Protocol):
    """Where entries are kept. Methods raise `CacheUnavailable`; callers go on without the cache then."""

    async def get(self, tag: str, key: str) -> Entry | None:
        """The entry stored under exactly that key; counts as a use of it."""
        ...

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[CachedAnswer]:
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

    async def note(self, note: ReviewItem) -> None:
        """Keep a note, of which the newest `MAX_REVIEW_ITEMS` are kept."""
        ...

    async def notes(self) -> list[ReviewItem]:
        """The review items that are kept, newest first."""
        ...

    async def state(self) -> StoreState:
        """What it can do just now; never raises."""
        ...

    async def close(self) -> None: ...
