"""The protocol of sources (a folder or an S3 bucket), and the mapping from keys to shards.

Keys are relative to the source's root, so ``london/people/leave.md`` is the same document in both. A failed listing
raises; it never looks like an empty one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from rag_serving.errors import InvalidShardName
from rag_serving.lake.shards import Shard


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One entry of the source's listing."""

    key: str
    etag: str
    size: int
    modified_at: datetime
    problem: str = ""
    """What it is instead of a document, such as "symbolic link"; empty for what may be one. See `left_out`."""


@dataclass(frozen=True, slots=True)
class FetchedObject:
    """An object's bytes with their etag and time, which may be newer than the listing's."""

    data: bytes
    etag: str
    modified_at: datetime
    stored_bytes: int | None = None
    """Size of the object in the listing, if `data` was decoded from it."""


class ObjectGone(Exception):
    """The object was deleted between the listing and the fetch."""


class ObjectUnreadable(Exception):
    """This object cannot be read (permissions, archived storage class), but others can."""


class Source(Protocol):
    """Where documents arrive. All methods raise `SourceUnavailable` if the source as a whole fails."""

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        """Yield pages of the objects whose key starts with `prefix`, in the order of the keys' UTF-8 bytes.

        What cannot be read as an object is among them, with a `problem`.
        """
        ...

    def shards(self) -> Iterator[Shard]:
        """Yield the shards that have a folder, without listing it: it may contain no document."""
        ...

    def head(self, key: str) -> SourceObject | None:
        """Return the listing entry of one key; None if there is no such object."""
        ...

    def fetch(self, key: str) -> FetchedObject:
        """Fetch an object; raise `ObjectGone` or `ObjectUnreadable` if only this one fails."""
        ...

    def uri(self, key: str) -> str:
        """Return the URI of an object, for people."""
        ...


GOLDEN_FOLDER = "_eval"
"""Folder of a shard for its golden questions; it contains no documents."""


def shard_of(key: str) -> Shard | None:
    """Return the shard of a document's key.

    None for keys outside ``region/department/``, hidden keys, folder markers and golden questions.
    """
    parts = key.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return None if not parts[-1] or hidden or _is_golden(parts) else owner_of(key)


def golden_shard_of(key: str) -> Shard | None:
    """Return the shard of a golden questions' key; None for all other keys."""
    parts = key.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return owner_of(key) if _is_golden(parts) and not hidden else None


def _is_golden(parts: Sequence[str]) -> bool:
    return len(parts) > 3 and parts[2] == GOLDEN_FOLDER


def owner_of(key: str) -> Shard | None:
    """Return the shard in whose folder a key is, whatever the key is; None outside of region/department/."""
    parts = key.split("/")
    if len(parts) < 3:
        return None
    try:
        return Shard(parts[0], parts[1])
    except InvalidShardName:
        return None


def document_shard(entry: SourceObject) -> Shard | None:
    """Return the shard of a listed document; None for everything else."""
    return None if entry.problem else shard_of(entry.key)


def list_folder(source: Source, shard: Shard) -> Iterator[SourceObject]:
    """Yield everything in the folder of one shard in key order, documents or not."""
    for page in source.pages(f"{shard.key}/"):
        yield from page


def has_documents(source: Source, shard: Shard) -> bool:
    """Return whether the shard has a document; stops listing at the first."""
    return any(document_shard(entry) == shard for entry in list_folder(source, shard))


def shard_of_folders(region: str, department: str) -> Shard | None:
    """Return the shard of these folders; None if the names are invalid or hidden."""
    return shard_of(f"{region}/{department}/document")
