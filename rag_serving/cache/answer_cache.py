"""The answer cache: entries, how they are found again, and what else is kept of a question that was asked.

An entry lies under a tag (tenant, scope, embedder, model and prompt version) and its normalised question. It carries
the content digests of the shards it was made from and the evidence that was found in them, so that a reader can tell
whether it still holds. Its life is absolute: a hit does not prolong it. Where entries are kept is a `CacheStore`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rag_serving.cache.entries import CachedAnswer, Entry, question_key
from rag_serving.cache.evidence_record import Evidence
from rag_serving.cache.store import CacheStore
from rag_serving.results import Answer

if TYPE_CHECKING:
    import numpy.typing as npt


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

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32], floor: float) -> list[CachedAnswer]:
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
