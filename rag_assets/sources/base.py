"""Where documents arrive: a folder or an S3 bucket, listed page by page and fetched object by object.

Keys are relative to the source's root, so ``london/people/leave.md`` is the same document in both. A listing that
fails raises; it never looks like an empty one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from rag_serving.errors import InvalidShardName
from rag_serving.lake.shards import Shard


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One line of the source's listing."""

    key: str
    etag: str
    size: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class FetchedObject:
    """An object's bytes, with the etag and time they belong to (which may be newer than the listing's)."""

    data: bytes
    etag: str
    modified_at: datetime


class ObjectGone(Exception):
    """The object was deleted between the listing and the fetch."""


class ObjectUnreadable(Exception):
    """This one object cannot be read (permissions, archived storage class); others can."""


class Source(Protocol):
    """Documents as they arrive. Listing and fetching raise `SourceUnavailable` when the whole source fails."""

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        """Objects whose key starts with `prefix`, in key order (UTF-8 bytes), a page at a time."""
        ...

    def shards(self) -> Iterator[Shard]:
        """Shards that have something below them, found without walking through it: maybe no document at all."""
        ...

    def head(self, key: str) -> SourceObject | None:
        """What the listing would say of one key now; None where there is no such object."""
        ...

    def fetch(self, key: str) -> FetchedObject:
        """The object; raises `ObjectGone` or `ObjectUnreadable` for this one alone."""
        ...

    def uri(self, key: str) -> str:
        """Where a person finds the object."""
        ...


GOLDEN_FOLDER = "_eval"
"""Folder of a shard that holds its golden questions. What lies in it is no document."""


def shard_of(key: str) -> Shard | None:
    """The shard of a document's key.

    None for keys outside ``region/department/``, hidden ones, folder markers and golden questions.
    """
    parts = key.split("/")
    return None if not parts[-1] or _is_golden(parts) else _owner(parts)


def golden_shard_of(key: str) -> Shard | None:
    """The shard whose golden questions lie under the key, or None for all other keys."""
    parts = key.split("/")
    return _owner(parts) if _is_golden(parts) else None


def _is_golden(parts: Sequence[str]) -> bool:
    return len(parts) > 3 and parts[2] == GOLDEN_FOLDER


def _owner(parts: Sequence[str]) -> Shard | None:
    if len(parts) < 3 or any(part.startswith(".") for part in parts):
        return None
    try:
        return Shard(parts[0], parts[1])
    except InvalidShardName:
        return None


def list_shard(source: Source, shard: Shard) -> list[SourceObject]:
    """The documents of one shard, in key order."""
    return [entry for page in source.pages(f"{shard.key}/") for entry in page if shard_of(entry.key) == shard]


def has_documents(source: Source, shard: Shard) -> bool:
    """Whether the shard has a document; reads no further than to the first."""
    return any(shard_of(entry.key) == shard for page in source.pages(f"{shard.key}/") for entry in page)


def shard_of_folders(region: str, department: str) -> Shard | None:
    """That shard, unless its names cannot be those of one, or hide it."""
    return shard_of(f"{region}/{department}/document")
