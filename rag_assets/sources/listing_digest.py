"""The digest of a shard's listing, by which a change of the source is noticed."""

from __future__ import annotations

from collections.abc import Iterable

from rag_assets.sources.base import SourceObject
from rag_assets.storage.set_digest import DigestSum


class ListingDigest:
    """Digest of a shard's listing: changes when an object is added, changed, removed or renamed.

    A sum of hashes, so that the order of the entries is all one (some S3 servers list folder by folder instead of by
    the bytes of the keys) and that one object's change is worked in without the others.
    """

    def __init__(self) -> None:
        self._sum = DigestSum()

    @classmethod
    def parse(cls, text: str) -> ListingDigest:
        """Go on from a digest; raises ValueError for what is none."""
        digest = cls()
        digest._sum = DigestSum.parse(text)
        return digest

    @classmethod
    def of(cls, entries: Iterable[SourceObject]) -> ListingDigest:
        """The digest of one shard's complete listing."""
        digest = cls()
        for entry in entries:
            digest.add(entry)
        return digest

    @property
    def objects(self) -> int:
        return self._sum.items

    def add(self, entry: SourceObject) -> None:
        self._sum.add(_line(entry))

    def remove(self, entry: SourceObject) -> None:
        """Take out an entry that was added before."""
        self._sum.remove(_line(entry))

    def __str__(self) -> str:
        return str(self._sum)


def listed_objects(digest: str | None) -> int:
    """Objects of the listing that the digest was made from; 0 for none."""
    return ListingDigest.parse(digest).objects if digest else 0


def _line(entry: SourceObject) -> str:
    return f"{len(entry.key)}:{entry.key}\0{entry.etag}\0{entry.size}"


def listing_digest(entries: Iterable[SourceObject]) -> str:
    """The digest of one shard's complete listing, as it is published."""
    return str(ListingDigest.of(entries))
