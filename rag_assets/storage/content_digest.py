"""The digest of all that can be retrieved from a search table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rag_assets.storage.lake import scan, values
from rag_assets.storage.set_digest import DigestSum

if TYPE_CHECKING:
    from lancedb.table import Table


class ContentDigest:
    """Identity of what can be retrieved: the set of chunks and the embedder. Compaction does not change it."""

    def __init__(self, fingerprint: str, known: str | None = None) -> None:
        self._embedder = hashlib.sha256(fingerprint.encode()).hexdigest()[:12]
        prefix, _, chunks = (known or "").partition(":")
        self._chunks = DigestSum.parse(chunks) if chunks and prefix == self._embedder else DigestSum()

    def change(self, removed: Iterable[str], added: Iterable[str]) -> None:
        """Work in the ids of chunks that went and came."""
        for chunk_id in removed:
            self._chunks.remove(chunk_id)
        for chunk_id in added:
            self._chunks.add(chunk_id)

    def __str__(self) -> str:
        return f"{self._embedder}:{self._chunks}"


def content_digest(table: Table, fingerprint: str) -> str:
    """The digest of all that can be retrieved from the table."""
    digest = ContentDigest(fingerprint)
    for batch in scan(table, ["chunk_id"]):
        digest.change((), values(batch, "chunk_id"))
    return str(digest)
