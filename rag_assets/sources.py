"""Where documents arrive: a folder or an S3 bucket, listed page by page and fetched object by object.

Keys are relative to the source's root, so ``london/people/leave.md`` is the same document in both. A listing that
fails raises; it never looks like an empty one.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from rag_assets.errors import SourceRefused, SourceUnavailable
from rag_serving.errors import InvalidShardName, SettingsError
from rag_serving.objects import file_etag, folder_path, is_s3, split_s3
from rag_serving.shards import Shard

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef


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


def _shard(region: str, department: str) -> Shard | None:
    """That shard, unless its names cannot be those of one, or hide it."""
    return shard_of(f"{region}/{department}/document")


def open_source(uri: str | None, client: S3Client | None = None) -> Source:
    """The source that `RAG_SOURCE_URI` names. `client` is needed for ``s3://`` only."""
    if uri is None:
        raise SettingsError("RAG_SOURCE_URI is not set; name the folder or s3://bucket/prefix where documents arrive")
    if is_s3(uri):
        if client is None:
            import boto3
            from botocore.config import Config

            # As often and in the same way as the client that Dagster's resource makes.
            client = boto3.client("s3", config=Config(retries={"max_attempts": 5, "mode": "standard"}))
        bucket, prefix = split_s3(uri)
        return S3Source(client, bucket, prefix)
    return FolderSource(folder_path(uri))


class FolderSource:
    """A folder laid out like the bucket. The etag of a file is its size, modification time and inode."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        if not self._root.is_dir():
            raise SourceRefused(f"the source folder {self._root} does not exist; check RAG_SOURCE_URI")
        start = self._root / prefix.rpartition("/")[0]
        try:
            page: list[SourceObject] = []
            within = start.relative_to(self._root).as_posix()
            for path, key in _walk(str(start), "" if within == "." else f"{within}/"):
                if not key.startswith(prefix) or key.encode() <= start_after.encode():
                    continue
                try:
                    stat = os.stat(path)  # noqa: PTH116  # a Path for each of many files takes longer than the look
                except FileNotFoundError:  # deleted since its folder was read
                    continue
                page.append(SourceObject(key, file_etag(stat), stat.st_size, _time(stat.st_mtime)))
                if len(page) == 1000:
                    yield page
                    page = []
            if page:
                yield page
        except OSError as error:
            raise SourceUnavailable(f"cannot list {error.filename}: {error.strerror}; check RAG_SOURCE_URI") from error

    def shards(self) -> Iterator[Shard]:
        if not self._root.is_dir():
            raise SourceRefused(f"the source folder {self._root} does not exist; check RAG_SOURCE_URI")
        try:
            for region in _folders(self._root):
                for department in _folders(self._root / region):
                    if (shard := _shard(region, department)) is not None:
                        yield shard
        except OSError as error:
            raise SourceUnavailable(f"cannot list {error.filename}: {error.strerror}; check RAG_SOURCE_URI") from error

    def head(self, key: str) -> SourceObject | None:
        path = self._root / key
        if path.relative_to(self._root).as_posix() != key:  # `a//b` would be a second name of the file `a/b`
            return None
        try:
            if not self._root.is_dir():
                raise SourceRefused(f"the source folder {self._root} does not exist; check RAG_SOURCE_URI")
            folders = path.parents[: len(path.relative_to(self._root).parts) - 1]
            if any(folder.is_symlink() for folder in folders):  # which the listing does not follow
                return None
            stat = path.lstat()
        except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a NUL, which no name has
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise SourceUnavailable(f"cannot look at {path}: {error.strerror}; check RAG_SOURCE_URI") from error
        if not S_ISREG(stat.st_mode):
            return None
        return SourceObject(key, file_etag(stat), stat.st_size, _time(stat.st_mtime))

    def fetch(self, key: str) -> FetchedObject:
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
        return (self._root / key).as_uri()


def _walk(folder: str, key: str) -> Iterator[tuple[str, str]]:
    """Files below `folder` with their keys, which begin with `key`, in the order of the keys' bytes, as S3 lists.

    Links are not followed out.
    """
    if not os.path.isdir(folder):  # noqa: PTH112
        return
    names: list[bytes] = []  # a folder may hold very many
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
        except UnicodeDecodeError:  # a name that is not UTF-8 cannot be a key, nor be part of one
            continue
        path = f"{folder}/{name}"
        if name.endswith("/"):
            yield from _walk(path.removesuffix("/"), key + name)
        else:
            yield path, key + name


def _folders(folder: Path) -> list[str]:
    """Names of the folders in it, in the order of their bytes."""
    with os.scandir(folder) as found:
        return sorted((entry.name for entry in found if entry.is_dir(follow_symlinks=False)), key=os.fsencode)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


_BODY_TRIES = 4


class S3Source:
    """A bucket, or a prefix of one. boto3 retries what is transient; what it gives up on is named here."""

    def __init__(self, client: S3Client, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        for answer in self._answers(prefix, {"StartAfter": self._prefix + start_after} if start_after else {}):
            page = [
                SourceObject(
                    key=entry["Key"].removeprefix(self._prefix),
                    etag=entry["ETag"].strip('"'),
                    size=entry["Size"],
                    modified_at=entry["LastModified"].astimezone(UTC),
                )
                for entry in answer.get("Contents", [])
                if "Key" in entry and "ETag" in entry and "Size" in entry and "LastModified" in entry
            ]
            if page:
                yield page

    def shards(self) -> Iterator[Shard]:
        for region in self._folders(""):
            for department in self._folders(f"{region}/"):
                if (shard := _shard(region, department)) is not None:
                    yield shard

    def _folders(self, prefix: str) -> Iterator[str]:
        """What stands between the prefix and the next slash, in keys that have one."""
        for answer in self._answers(prefix, {"Delimiter": "/"}):
            for found in answer.get("CommonPrefixes", []):
                yield found.get("Prefix", "").removeprefix(self._prefix + prefix).removesuffix("/")

    def _answers(self, prefix: str, options: Mapping[str, Any]) -> Iterator[ListObjectsV2OutputTypeDef]:
        """Pages of a listing as S3 answers them."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            for answer in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix, **options
            ):
                yield answer
                if answer.get("IsTruncated") and not answer.get("NextContinuationToken"):
                    # The paginator would end here, and what was left out would look deleted.
                    raise SourceUnavailable(
                        f"cannot list s3://{self._bucket}/{self._prefix}: a page says that more follows, but not "
                        "how to ask for it"
                    )
        except (BotoCoreError, ClientError) as error:
            raise _error_class(error)(
                f"cannot list s3://{self._bucket}/{self._prefix}: {_reason(error)}; check RAG_SOURCE_URI and the AWS_* "
                "variables (key, secret, region, AWS_ENDPOINT_URL)"
            ) from error

    def head(self, key: str) -> SourceObject | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as error:
            # An answer to HEAD has no body, so a missing bucket and a missing key look alike.
            if error.response.get("Error", {}).get("Code", "") in ("404", "NoSuchKey", "NotFound"):
                self._require_bucket()
                return None
            raise _error_class(error)(f"cannot look at {self.uri(key)}: {_reason(error)}") from error
        except BotoCoreError as error:
            raise SourceUnavailable(f"cannot look at {self.uri(key)}: {_reason(error)}") from error
        return SourceObject(
            key, answer["ETag"].strip('"'), answer["ContentLength"], answer["LastModified"].astimezone(UTC)
        )

    def _require_bucket(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.head_bucket(Bucket=self._bucket)
        except (BotoCoreError, ClientError) as error:
            raise _error_class(error)(
                f"cannot reach the bucket s3://{self._bucket}: {_reason(error)}; check RAG_SOURCE_URI"
            ) from error

    def fetch(self, key: str) -> FetchedObject:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return self._read(key)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404", "NotFound"):
                raise ObjectGone(key) from error
            if code in ("AccessDenied", "InvalidObjectState", "403"):
                raise ObjectUnreadable(f"{key}: {code}") from error
            raise _error_class(error)(f"cannot fetch {self.uri(key)}: {_reason(error)}") from error
        except BotoCoreError as error:
            raise SourceUnavailable(f"cannot fetch {self.uri(key)}: {_reason(error)}") from error

    def _read(self, key: str) -> FetchedObject:
        """One whole object. boto3 notices a body that ends early, but retries nothing once the answer has begun."""
        from botocore.exceptions import BotoCoreError

        for last in (*[False] * (_BODY_TRIES - 1), True):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            try:
                data = answer["Body"].read()
            except BotoCoreError:
                if last:
                    raise
                time.sleep(random.uniform(0.1, 0.5))  # noqa: S311
            else:
                return FetchedObject(data, answer["ETag"].strip('"'), answer["LastModified"].astimezone(UTC))
        raise AssertionError("the last try returns or raises")

    def uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{quote(self._prefix + key, safe='/ -_.&+()@')}"


_REFUSALS = frozenset(
    {
        *("403", "404", "AccessDenied", "AllAccessDisabled", "AuthorizationHeaderMalformed", "ExpiredToken"),
        *("InvalidAccessKeyId", "InvalidBucketName", "InvalidToken", "NoSuchBucket", "PermanentRedirect"),
        *("SignatureDoesNotMatch",),
    }
)


def _error_class(error: Exception) -> type[SourceUnavailable]:
    from botocore.exceptions import (
        ClientError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )

    if isinstance(error, ClientError):
        refused = error.response.get("Error", {}).get("Code", "") in _REFUSALS
    else:
        refused = isinstance(error, NoCredentialsError | PartialCredentialsError | ParamValidationError)
    return SourceRefused if refused else SourceUnavailable


def _reason(error: Exception) -> str:
    response: Any = getattr(error, "response", None)
    if response:
        return f"{response['Error'].get('Code', 'error')} ({response['Error'].get('Message', '')[:120]})"
    return str(error).splitlines()[0][:200]
