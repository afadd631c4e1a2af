"""The answer cache: lookup, expiry and storage of entries in a `CacheStore`.

An entry is keyed by a tag (tenant, scope, embedder, model and prompt version) and its normalized question. It records
the content digests of the shards it was made from and the passages that were found, so that readers can tell whether it
is still valid. Hits do not extend its lifetime.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rag_serving.cache.entries import CachedAnswer, Entry, question_key
from rag_serving.cache.evidence_record import Evidence
from rag_serving.cache.guards.question import read
from rag_serving.cache.guards.rules import particulars
from rag_serving.cache.store import CacheStore
from rag_serving.results import Answer


class AnswerCache:
    """Finds, stores and moves the entries of a store."""

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
        """Return the entry of the same question, even if its documents have changed since.

        A question that is typed differently must also agree in its numbers, codes and symbols.
        """
        entry = await self.store.get(tag, question_key(question))
        if entry is None or not self._lives(entry):
            return None
        if entry.question != question and particulars(read(question), read(entry.question)) is not None:
            return None
        return entry

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32], floor: float) -> list[CachedAnswer]:
        """Return entries of questions with at least the cosine `floor`, most similar first; as for `exact`."""
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
        *,
        short_lived: bool = False,
    ) -> Entry:
        """Store an answer. `short_lived` ones expire like “not found”: a better one may be possible soon."""
        now = self._clock()
        entry = Entry(
            tenant=tenant,
            question=answer.question,
            answer=answer,
            digests=dict(digests),
            evidence=tuple(evidence),
            created_at=now,
            expires_at=now + (self._refusal_ttl if short_lived or answer.kind == "none" else self._ttl),
        )
        await self.store.put(tag, entry.key, vector, entry)
        return entry

    async def move(self, tag: str, entry: Entry, answer: Answer, digests: Mapping[str, str]) -> Entry:
        """Mark an entry as valid for the documents with these digests, in which its passages are unchanged."""
        moved = entry.model_copy(update={"answer": answer, "digests": dict(digests)})
        await self.store.move(tag, moved.key, moved)
        return moved

    async def close(self) -> None:
        """Close the store."""
        await self.store.close()

    def _lives(self, entry: Entry) -> bool:
        return entry.expires_at > self._clock()
