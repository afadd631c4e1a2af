"""Open the original of a document, as it is stored in the folder or bucket that the documents were indexed from.

URIs come from the lake, which is untrusted. Only objects in the folder of the document's shard are opened, because
others may be visible to other callers.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from rag_serving.errors import SettingsError, SourceGone, SourceNotOffered, SourceUnavailable, first_line
from rag_serving.lake.object_store import file_etag, folder_path, is_s3, open_s3_store, split_s3

if TYPE_CHECKING:
    from obstore.store import S3Store

_SETTING = "RAG_SOURCE_URI"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Original:
    """A source object. `read` returns the bytes from `start` to before `end`; raises `SourceGone` if it changed."""

    size: int
    etag: str
    modified_at: datetime
    read: Callable[[int, int], Awaitable[bytes]]
    encoding: str = ""
    """Content-Encoding of the stored bytes."""


class Originals:
    """The folder or bucket of RAG_SOURCE_URI. Other sources, which a package added, offer no originals."""

    def __init__(self, uri: str | None) -> None:
        self._store: _Folder | _Bucket | None = None
        self._problem = f"{_SETTING} is not set"
        try:
            if uri is not None:
                self._store = _Bucket(*split_s3(uri, _SETTING)) if is_s3(uri) else _Folder(folder_path(uri, _SETTING))
        except SettingsError as error:
            self._problem = str(error)

    async def open(self, source: str, shard: str) -> Original:
        """Find the object that the URI of a document in `shard` names.

        Raises `SourceNotOffered`, `SourceGone` or `SourceUnavailable`.
        """
        if self._store is None:
            _log.warning("no original can be opened: %s", self._problem)
            raise SourceNotOffered("originals are not available here")
        key = _key_of(source, self._store.uri, shard)
        if key is None:
            _log.warning("the original of a document in %s is not in its folder below %s", shard, _SETTING)
            raise SourceNotOffered("the original of this document is not available here")
        return await self._store.open(key, shard)


def _key_of(source: str, root: str, shard: str) -> str | None:
    """Return the key of the object that a URI names; None unless it is in the folder of the shard below the root."""
    plain = unquote(source.partition("#")[0])
    key = plain.removeprefix(f"{root}/")
    is_below = key != plain and key.startswith(f"{shard}/") and "\0" not in key
    # No key that the pipeline indexes has such a part: it skips hidden files.
    return key if is_below and not any(part == "" or part.startswith(".") for part in key.split("/")) else None


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.uri = f"file://{root}".rstrip("/")

    async def open(self, key: str, shard: str) -> Original:
        """Find a file; symbolic links must stay within the folder of the shard."""

        def read(start: int, end: int) -> bytes:
            with self._opened(key, shard) as file:
                if file_etag(os.fstat(file.fileno())) != etag:
                    raise SourceGone("the original changed while it was read; open it again")
                return os.pread(file.fileno(), end - start, start)

        def stat() -> os.stat_result:
            with self._opened(key, shard) as file:
                return os.fstat(file.fileno())

        found = await asyncio.to_thread(stat)
        etag = file_etag(found)
        modified_at = datetime.fromtimestamp(found.st_mtime, UTC)
        return Original(found.st_size, etag, modified_at, lambda start, end: asyncio.to_thread(read, start, end))

    def _opened(self, key: str, shard: str) -> FileIO:
        path = os.path.realpath(self._root / key)
        if not path.startswith(f"{os.path.realpath(self._root)}/{shard}/"):
            _log.warning("the original %s is a symbolic link out of the folder of %s", key, shard)
            raise SourceNotOffered("the original of this document is not available here")
        try:
            # Not a link that replaced the file meanwhile; and opening a named pipe must not wait for its writer.
            file = FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._root.is_dir():
                raise _gone() from error
            raise _unavailable(key, error) from error
        except OSError as error:
            raise _unavailable(key, error) from error
        if not S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise _gone()
        return file


class _Bucket:
    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._store: S3Store | None = None
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    async def open(self, key: str, shard: str) -> Original:  # noqa: ARG002  # a bucket has no links
        """Find an object."""
        head = await self._get(key, {"head": True})
        etag = head.meta["e_tag"] or ""

        async def read(start: int, end: int) -> bytes:
            # In ranges, because the time limit of a request would end the download of a caller who reads slowly.
            part = await self._get(key, {"range": (start, end), **({"if_match": etag} if etag else {})})
            return bytes(await part.bytes_async())

        encoding = str(head.attributes.get("Content-Encoding", ""))
        return Original(head.meta["size"], etag.strip('"'), head.meta["last_modified"], read, encoding)

    async def _get(self, key: str, options: Any) -> Any:
        import obstore
        from obstore.exceptions import BaseError, PreconditionError

        if self._store is None:
            self._store = open_s3_store(self._bucket)
        try:
            return await obstore.get_async(self._store, self._prefix + key, options=options)
        except FileNotFoundError as error:
            raise _gone() from error
        except PreconditionError as error:
            raise SourceGone("the original changed while it was read; open it again") from error
        except (BaseError, OSError, ValueError) as error:
            raise _unavailable(key, error) from error


def _gone() -> SourceGone:
    return SourceGone("the original of this document was deleted since it was indexed")


def _unavailable(key: str, error: Exception) -> SourceUnavailable:
    _log.error("cannot read the original %s: %s; check %s and the AWS_* variables", key, first_line(error), _SETTING)
    return SourceUnavailable("the original cannot be read now; retry later")
