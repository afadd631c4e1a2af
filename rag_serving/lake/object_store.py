"""Small objects in the lake (catalog, leases, model files) on a folder or S3: read, list, conditional write, delete.

Conditional writes let many writers share a lake without a database: a write succeeds only if the object is unchanged
since it was read. S3 supports them with ``If-Match`` and ``If-None-Match``; a folder uses an exclusive lock around
compare and rename.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import unquote, urlsplit

from rag_serving.errors import LakeUnavailable, SettingsError, WriteConflict, first_line
from rag_serving.lake.retries import with_retries

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import S3Store

ANY: Literal["any"] = "any"
"""Write unconditionally."""
ABSENT: Literal["absent"] = "absent"
"""Write only if the object does not exist."""

LAKE_SETTING = "RAG_LAKE_URI"

RETRY_SECONDS = 10
"""Maximum seconds for which obstore and Lance retry a request that S3 throttles or drops.

A third of the default `RAG_LEASE_SECONDS`, so that a renewal gives up before the next one is due. Longer outages are
left to the retries of Dagster's steps.
"""
_MAX_RETRIES = 6  # with jitter, about three seconds of pauses in total
_FIRST_PAUSE = 0.2
_TRIES = 4
_WRITE = "write-id"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+|[Ss]3:")
"""Start of a URI, also of one with too few slashes such as ``s3:/bucket``, which is no path."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's bytes, and its etag for conditional writes."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """An object in a listing."""

    key: str
    etag: str
    size: int


class ObjectStore(Protocol):
    """Small objects under one root. Keys are relative, separated by ``/``, and trusted.

    Every method raises `LakeUnavailable` if the store cannot be reached or rejects the request.
    """

    def get(self, key: str) -> StoredObject | None:
        """Return the object, or None if it does not exist."""
        ...

    def put(self, key: str, data: bytes, *, expect: str = ANY) -> str:
        """Write atomically and return the new etag.

        `expect` is `ANY`, `ABSENT` or the etag of the object to replace; raises `WriteConflict` if it does not match.
        """
        ...

    def list(self, prefix: str) -> "list[ObjectEntry]":
        """Return all objects under ``prefix/``, unordered."""
        ...

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""
        ...


def is_s3(uri: str) -> bool:
    """Return whether the URI is an ``s3://`` URI."""
    return uri.startswith("s3://")


def folder_path(uri: str, setting: str = LAKE_SETTING) -> Path:
    """Return the absolute path of a plain path or ``file://`` URI; raises `SettingsError` for other schemes.

    `setting` is the environment variable that the error names.
    """
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path)).absolute()
    scheme = _SCHEME.match(uri)
    if scheme is not None:
        raise SettingsError(f"{setting}: {scheme[0]} is not supported; use a folder or s3://bucket/prefix")
    return Path(uri).expanduser().absolute()


def absolute_uri(uri: str) -> str:
    """Return a URI that means the same in every working directory."""
    return uri if is_s3(uri) else str(folder_path(uri))


def split_s3(uri: str, setting: str = LAKE_SETTING) -> tuple[str, str]:
    """Split ``s3://bucket/some/prefix/`` into bucket and prefix; raises `SettingsError` without a bucket."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise SettingsError(f"{setting}: {uri!r} has no bucket; write s3://bucket/prefix")
    return bucket, prefix.strip("/")


def s3_options(environ: Mapping[str, str]) -> dict[str, str]:
    """Translate the AWS_* variables for the endpoint and the region to options of Lance and obstore.

    Both read credentials from the environment themselves, but expect the endpoint in other variables than boto3.
    """
    options: dict[str, str] = {}
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["aws_endpoint"] = endpoint
        if endpoint.startswith("http://"):
            options["allow_http"] = "true"
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if region or endpoint:
        options["aws_region"] = region or "us-east-1"
    return options


def open_object_store(uri: str, *, must_exist: bool = False) -> ObjectStore:
    """Open a folder or ``s3://bucket/prefix``, without connecting yet; raises `SettingsError`.

    Listing a folder that does not exist returns nothing, or raises `LakeUnavailable` if it `must_exist`; listing a
    bucket that does not exist always raises.
    """
    if not is_s3(uri):
        return FolderObjectStore(folder_path(uri), must_exist=must_exist)
    return S3ObjectStore(open_s3_store(*split_s3(uri)), uri)


def open_s3_store(bucket: str, prefix: str = "") -> "S3Store":
    """Open a prefix of a bucket with obstore, without connecting yet."""
    from obstore.store import S3Store

    options = s3_options(os.environ)
    allow_http = options.pop("allow_http", "false") == "true"
    return S3Store(
        bucket,
        prefix=prefix or None,
        config={**options, "conditional_put": "etag"},  # pyright: ignore[reportArgumentType]  # a TypedDict, as a dict
        client_options={"allow_http": allow_http, "timeout": "30s", "connect_timeout": "5s"},
        retry_config={
            "max_retries": _MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=_FIRST_PAUSE),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
    )


class FolderObjectStore:
    """Objects as files. Safe between processes of one machine, and on shared file systems that support locks."""

    def __init__(self, root: Path, *, must_exist: bool = False) -> None:
        self._root = root
        self._must_exist = must_exist

    def get(self, key: str) -> StoredObject | None:
        """Read the file."""
        try:
            with (self._root / key).open("rb") as file:
                return StoredObject(file.read(), file_etag(os.fstat(file.fileno())))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unavailable("read", self._root / key, error) from error

    def put(self, key: str, data: bytes, *, expect: str = ANY) -> str:
        """Replace the file under its folder's lock."""
        path = self._root / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent):
                try:
                    before = path.stat()
                except FileNotFoundError:
                    before = None
                if expect not in (ANY, ABSENT if before is None else file_etag(before)):
                    raise WriteConflict(f"{key} was changed by another process meanwhile; read it again and retry")
                return _replace(path, data, after=0 if before is None else before.st_mtime_ns)
        except OSError as error:
            raise _unavailable("write", path, error) from error

    def list(self, prefix: str) -> "list[ObjectEntry]":
        """Walk the folder; hidden files are not objects."""
        entries: list[ObjectEntry] = []
        try:
            if self._must_exist and not self._root.exists():
                raise LakeUnavailable(
                    f"the folder {self._root} does not exist; check {LAKE_SETTING}, or run `rag-assets backfill`"
                )
            for folder, _, names in os.walk(self._root / prefix, onerror=_unless_absent):
                for path in (Path(folder, name) for name in names if not name.startswith(".")):
                    with contextlib.suppress(FileNotFoundError):  # deleted since the listing
                        stat = path.stat()
                        key = path.relative_to(self._root).as_posix()
                        entries.append(ObjectEntry(key, file_etag(stat), stat.st_size))
        except OSError as error:
            raise _unavailable("list", self._root / prefix, error) from error
        return entries

    def delete(self, key: str) -> None:
        """Delete the file if it exists."""
        try:
            (self._root / key).unlink(missing_ok=True)
        except OSError as error:
            raise _unavailable("delete", self._root / key, error) from error


class S3ObjectStore:
    """Objects in a bucket, by obstore."""

    def __init__(self, store: "S3Store", uri: str) -> None:
        self._store = store
        self._uri = uri

    def get(self, key: str) -> StoredObject | None:
        """Get the object; a missing bucket is an error."""
        with self._named_errors(f"read {key}"):
            import obstore

            try:
                result = obstore.get(self._store, key)
            except FileNotFoundError as error:
                if _s3_code(error) == "NoSuchBucket":
                    raise
                return None
            return StoredObject(bytes(result.bytes()), _required_etag(result.meta["e_tag"]))

    def put(self, key: str, data: bytes, *, expect: str = ANY) -> str:
        """Put the object, on a condition unless `expect` is `ANY`."""
        import obstore

        with self._named_errors(f"write {key}"):
            if expect == ANY:
                return _required_etag(obstore.put(self._store, key, data)["e_tag"])
            return self._put_if(key, data, expect)

    def _put_if(self, key: str, data: bytes, expect: str) -> str:
        """Write conditionally, and distinguish a lost response from a lost race.

        obstore retries such a write after an error response, and then conflicts with itself if the first attempt was
        applied; after a dropped connection it does not retry. Therefore every write stores a unique id, which shows
        after any failure who won. Comparing bytes would not: another writer may have written the same ones.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

        # obstore raises TypeError for "version": None
        mode: Literal["create"] | UpdateVersion = "create" if expect == ABSENT else {"e_tag": expect}
        write = {_WRITE: uuid.uuid4().hex}

        def put() -> str:
            try:
                result = obstore.put(self._store, key, data, attributes=write, mode=mode, use_multipart=False)
                return _required_etag(result["e_tag"])
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                if isinstance(error, FileNotFoundError) and (expect == ABSENT or _s3_code(error) == "NoSuchBucket"):
                    raise
                if (etag := self._etag_of(key, write[_WRITE])) is not None:
                    return etag
                raise WriteConflict(
                    f"{key} was changed by another process meanwhile; read it again and retry"
                ) from error
            except GenericError as error:
                if (etag := self._etag_of(key, write[_WRITE])) is not None:
                    return etag
                if _s3_code(error):  # an error response, which obstore has already retried
                    raise
                raise _NotApplied from error

        try:
            return with_retries(lambda error: isinstance(error, _NotApplied), tries=_TRIES, first=_FIRST_PAUSE)(put)
        except _NotApplied as error:
            raise (error.__cause__ or error) from None

    def _etag_of(self, key: str, write: str) -> str | None:
        """Return the etag of the object if it was written by the write with this id."""
        import obstore

        try:
            result = obstore.get(self._store, key)
        except FileNotFoundError:
            return None
        return _required_etag(result.meta["e_tag"]) if result.attributes.get(_WRITE) == write else None

    def list(self, prefix: str) -> "list[ObjectEntry]":
        """List the objects page by page."""
        from obstore.exceptions import GenericError

        with self._named_errors(f"list {prefix}/"):
            try:
                return self._list(prefix)
            except GenericError:  # the connection dropped during a page, which obstore does not retry
                return self._list(prefix)

    def _list(self, prefix: str) -> "list[ObjectEntry]":
        import obstore

        return [
            ObjectEntry(entry["path"], _required_etag(entry["e_tag"]), entry["size"])
            for page in obstore.list(self._store, prefix=prefix + "/")
            for entry in page
        ]

    def delete(self, key: str) -> None:
        """Delete the object if it exists; a missing bucket is an error."""
        import obstore

        with self._named_errors(f"delete {key}"):
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError as error:
                if _s3_code(error) == "NoSuchBucket":
                    raise

    @contextlib.contextmanager
    def _named_errors(self, what: str) -> Generator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            reason = _s3_code(error) or first_line(error)
            raise LakeUnavailable(
                f"cannot {what} in {self._uri}: {reason}; check RAG_LAKE_URI and the AWS_* variables"
            ) from error


class _NotApplied(Exception):
    """A write that got no response and was not applied."""


def _s3_code(error: BaseException) -> str | None:
    """Return the error code of an S3 server, such as ``NoSuchBucket``, which obstore has only in its message."""
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return None if found is None else found[1]


def _required_etag(etag: str | None) -> str:
    if not etag:
        raise LakeUnavailable("the object store returns no etags, which conditional writes need; use another store")
    return etag


def file_etag(stat: os.stat_result) -> str:
    """Return the etag of a file: size, modification time and inode."""
    return f"{stat.st_size:x}-{stat.st_mtime_ns:x}-{stat.st_ino:x}"


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    import fcntl

    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unavailable(what: str, path: Path, error: OSError) -> LakeUnavailable:
    return LakeUnavailable(f"cannot {what} {path}: {error.strerror}; check {LAKE_SETTING}, a folder or s3:// URI")


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _replace(path: Path, data: bytes, *, after: int) -> str:
    """Replace `path` atomically; the new modification time is later than `after` (ns), so that etags never repeat.

    Otherwise the third of three writes within one tick of the file system's clock could get the first one's etag,
    because inodes are reused.
    """
    # A fixed name, safe under the folder's lock, overwrites what a killed writer left behind.
    temporary = path.parent / f".write-{path.name}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if os.fstat(file.fileno()).st_mtime_ns <= after:
                os.utime(file.fileno(), ns=(after + 1, after + 1))
            etag = file_etag(os.fstat(file.fileno()))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return etag
