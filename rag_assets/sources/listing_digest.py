"""The digest of a shard's listing, which changes when an object is added, changed, removed or renamed.

It is a sum of hashes, so the order of entries does not matter (some S3 servers list folder by folder instead of in key
order), and a changed object can be worked in without listing the others.
"""

from collections.abc import Iterable

from rag_assets.sources.base import SourceObject
from rag_assets.storage.set_digest import DigestSum


def listing_line(entry: SourceObject) -> str:
    """Return the item by which an entry is counted in a listing's `DigestSum`."""
    return f"{len(entry.key)}:{entry.key}\0{entry.etag}\0{entry.size}"


def listing_digest(entries: Iterable[SourceObject]) -> str:
    """Return the digest of a shard's complete listing."""
    digest = DigestSum()
    for entry in entries:
        digest.add(listing_line(entry))
    return str(digest)


def listed_objects(digest: str | None) -> int:
    """Return the number of objects in the listing that the digest was made from."""
    return DigestSum.parse(digest).items if digest else 0
