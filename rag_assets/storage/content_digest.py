"""The digest of everything that can be retrieved from a search table."""

import hashlib
from collections.abc import Iterable

from rag_assets.storage.lake import Table, column_values
from rag_assets.storage.set_digest import DigestSum


class ContentDigest:
    """Digest of the embedder and the set of chunks. Compaction does not change it."""

    def __init__(self, fingerprint: str, known: str | None = None) -> None:
        self._embedder = hashlib.sha256(fingerprint.encode()).hexdigest()[:12]
        prefix, _, chunks = (known or "").partition(":")
        self._chunks = DigestSum.parse(chunks) if chunks and prefix == self._embedder else DigestSum()

    def change(self, removed: Iterable[str], added: Iterable[str]) -> None:
        """Update the digest by the ids of removed and added chunks."""
        for chunk_id in removed:
            self._chunks.remove(chunk_id)
        for chunk_id in added:
            self._chunks.add(chunk_id)

    def __str__(self) -> str:
        return f"{self._embedder}:{self._chunks}"


def content_digest(table: Table, fingerprint: str) -> str:
    """Return the content digest of a whole table."""
    digest = ContentDigest(fingerprint)
    digest.change((), column_values(table, "chunk_id"))
    return str(digest)
