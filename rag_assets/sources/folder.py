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
        if any(folder.is_symlink() for folder in (start, *start.parents) if self._root in folder.parents):
            return
        page: list[SourceObject] = []
        within = start.relative_to(self._root).as_posix()
        with self._listing():
            for path, key, problem in self._walk(str(start), "" if within == "." else f"{within}/"):
                if not key.startswith(prefix) or key.encode() <= start_after.encode():
                    continue
                try:
                    stat = os.lstat(path) if problem else os.stat(path)  # noqa: PTH116  # a Path takes longer
                except FileNotFoundError:  # deleted since its folder was read
                    continue
                page.append(_entry(key, stat, problem))
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
        """Return the entry of one file; None if it does not exist or is reached through a link that is left out."""
        path = self._root / key
        if path.relative_to(self._root).as_posix() != key:  # `a//b` would be a second name of the file `a/b`
            return None
        with self._listing():
            try:
                if not self._is_within_shard(str(path), key):
                    return None
                stat = path.stat()
            except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the key contains NUL
                return None
            except OSError as error:
                if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
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
            advice = "check RAG_SOURCE_URI"
            if isinstance(error, PermissionError):
                advice = "give this user access, or move the folder out of the source"
            raise SourceUnavailable(f"cannot list {error.filename}: {error.strerror}; {advice}") from error

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

    def _walk(self, folder: str, key: str, *, linked: bool = False) -> Iterator[tuple[str, str, str]]:
        """Yield the files below `folder`, their keys, which start with `key`, and their problem; in key order like S3.

        A link is followed if it leads to another place of its shard; elsewhere, others may have access. In a folder
        that was reached through a link (`linked`), links to folders are not followed.
        """
        if not os.path.isdir(folder):  # noqa: PTH112
            return
        names: list[tuple[bytes, bool]] = []
        with os.scandir(folder) as found:
            for entry in found:
                name, is_link = os.fsencode(entry.name), entry.is_symlink()
                if _leads_to_folder(entry):
                    names.append((name + b"/", is_link))
                elif is_link or entry.is_file(follow_symlinks=False):
                    names.append((name, is_link))
        names.sort()
        for encoded, is_link in names:
            name = encoded.decode("utf-8", "backslashreplace")
            path = f"{folder}/{os.fsdecode(encoded)}".removesuffix("/")
            if name.encode() != encoded:  # keys are UTF-8
                yield path, key + name.removesuffix("/"), "name in another encoding than UTF-8"
            elif is_link and not self._may_follow(path, folder, key + name, linked=linked):
                yield path, key + name.removesuffix("/"), "symbolic link"
            elif name.endswith("/"):
                yield from self._walk(path, key + name, linked=linked or is_link)
            else:
                yield path, key + name, ""

    def _may_follow(self, path: str, folder: str, key: str, *, linked: bool) -> bool:
        """Return whether a link leads to a file or folder of its shard, but to no folder above it."""
        target = os.path.realpath(path)
        if key.endswith("/"):
            is_above = f"{os.path.realpath(folder)}/".startswith(f"{target}/")
            return not linked and not is_above and self._is_within_shard(path, key)
        return os.path.isfile(target) and self._is_within_shard(path, key)  # noqa: PTH113

    def _is_within_shard(self, path: str, key: str) -> bool:
        """Return whether the file of a key is in the folder of its shard once all links are followed."""
        shard = self._root.joinpath(*key.split("/")[:2])
        if shard.is_symlink() or shard.parent.is_symlink():
            return False
        return os.path.realpath(path).startswith(f"{os.path.realpath(shard)}/")


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _folders(folder: Path) -> list[str]:
    """Return the names of the subfolders in the order of their bytes."""
    with os.scandir(folder) as found:
        return sorted((entry.name for entry in found if entry.is_dir(follow_symlinks=False)), key=os.fsencode)


def _entry(key: str, stat: os.stat_result, problem: str = "") -> SourceObject:
    return SourceObject(key, file_etag(stat), stat.st_size, _time(stat.st_mtime), problem)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
