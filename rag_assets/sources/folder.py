"""A local folder as the source of documents."""

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG

from rag_assets.errors import SourceRefused, SourceUnavailable
from rag_assets.sources.base import FetchedObject, ObjectGone, ObjectUnreadable, SourceObject, shard_of_folders
from rag_serving.lake.object_store import file_etag
from rag_serving.lake.shards import Shard


class FolderSource:
    """A folder with the layout of the bucket. A file's etag consists of its size, modification time and inode."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        """Yield pages of 1000 files whose key starts with `prefix`."""
        start = self._root / prefix.rpartition("/")[0]
        page: list[SourceObject] = []
        within = start.relative_to(self._root).as_posix()
        with self._listing():
            for path, key in _walk(str(start), "" if within == "." else f"{within}/"):
                if not key.startswith(prefix) or key.encode() <= start_after.encode():
                    continue
                try:
                    stat = os.stat(path)  # noqa: PTH116  # creating a Path takes longer than the call
                except FileNotFoundError:  # deleted since its folder was read
                    continue
                page.append(_entry(key, stat))
                if len(page) == 1000:
                    yield page
                    page = []
            if page:
                yield page

    def shards(self) -> Iterator[Shard]:
        """Yield the shards whose folder exists."""
        with self._listing():
            for region in _folders(self._root):
                for department in _folders(self._root / region):
                    if (shard := shard_of_folders(region, department)) is not None:
                        yield shard

    def head(self, key: str) -> SourceObject | None:
        """Return the entry of one file; None if it does not exist or is reached through a link."""
        path = self._root / key
        if path.relative_to(self._root).as_posix() != key:  # `a//b` would be a second name of the file `a/b`
            return None
        with self._listing():
            try:
                folders = path.parents[: len(path.relative_to(self._root).parts) - 1]
                if any(folder.is_symlink() for folder in folders):  # the listing does not follow links
                    return None
                stat = path.lstat()
            except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the key contains NUL
                return None
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    return None
                raise
        return _entry(key, stat) if S_ISREG(stat.st_mode) else None

    @contextmanager
    def _listing(self) -> Generator[None]:
        if not self._root.is_dir():
            problem = "is a file, not a folder" if self._root.exists() else "does not exist"
            raise SourceRefused(f"the source folder {self._root} {problem}; check RAG_SOURCE_URI")
        try:
            yield
        except OSError as error:
            raise SourceUnavailable(f"cannot list {error.filename}: {error.strerror}; check RAG_SOURCE_URI") from error

    def fetch(self, key: str) -> FetchedObject:
        """Read a file."""
        try:
            with (self._root / key).open("rb") as file:
                data = file.read()
                stat = os.fstat(file.fileno())
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self._root.is_dir():
                raise SourceUnavailable(f"the source folder {self._root} is gone; check RAG_SOURCE_URI") from error
            raise ObjectGone(key) from error
        except OSError as error:
            raise ObjectUnreadable(f"{key}: {error.strerror}") from error
        return FetchedObject(data, file_etag(stat), _time(stat.st_mtime))

    def uri(self, key: str) -> str:
        """Return the file's ``file://`` URI."""
        return (self._root / key).as_uri()


def _walk(folder: str, key: str) -> Iterator[tuple[str, str]]:
    """Yield the files below `folder` with their keys, which start with `key`, in key order like S3.

    Links are not followed.
    """
    if not os.path.isdir(folder):  # noqa: PTH112
        return
    names: list[bytes] = []
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                names.append(os.fsencode(entry.name) + b"/")
            elif entry.is_file(follow_symlinks=False):
                names.append(os.fsencode(entry.name))
    names.sort()
    for encoded in names:
        try:
            name = encoded.decode()
        except UnicodeDecodeError:  # keys are UTF-8
            continue
        path = f"{folder}/{name}"
        if name.endswith("/"):
            yield from _walk(path.removesuffix("/"), key + name)
        else:
            yield path, key + name


def _folders(folder: Path) -> list[str]:
    """Return the names of the subfolders in the order of their bytes."""
    with os.scandir(folder) as found:
        return sorted((entry.name for entry in found if entry.is_dir(follow_symlinks=False)), key=os.fsencode)


def _entry(key: str, stat: os.stat_result) -> SourceObject:
    return SourceObject(key, file_etag(stat), stat.st_size, _time(stat.st_mtime))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
