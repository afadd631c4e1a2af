"""The digest of everything that can be retrieved from a search table."""

import hashlib
from collections.abc import Iterable

from rag_assets.storage.lake import Table, rows_of
from rag_assets.storage.set_digest import DigestSum


class ContentDigest:
    """Digest of the embedder and the set of rows as answers cite them. Compaction does not change it."""

    def __init__(self, fingerprint: str, known: str | None = None) -> None:
        self._embedder = hashlib.sha256(fingerprint.encode()).hexdigest()[:12]
        prefix, _, rows = (known or "").partition(":")
        self._rows = DigestSum.parse(rows) if rows and prefix == self._embedder else DigestSum()

    def change(self, removed: Iterable[str], added: Iterable[str]) -> None:
        """Update the digest by the `cited_row` of removed and added rows."""
        for row in removed:
            self._rows.remove(row)
        for row in added:
            self._rows.add(row)

    def __str__(self) -> str:
        return f"{self._embedder}:{self._rows}"


def cited_row(chunk_id: str, source: str, title: str) -> str:
    """Return what identifies a row as an answer cites it: its passage, and the document's place and title."""
    return f"{chunk_id}\0{source}\0{title}"


def content_digest(table: Table, fingerprint: str) -> str:
    """Return the content digest of a whole table."""
    digest = ContentDigest(fingerprint)
    digest.change((), cited_rows(table))
    return str(digest)


def cited_rows(table: Table) -> Iterable[str]:
    """Yield `cited_row` of every row of a search table."""
    return (cited_row(*row) for row in rows_of(table, "chunk_id", "source", "title"))
