"""An S3 bucket as the source of documents."""

import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rag_assets.errors import SourceRefused, SourceUnavailable
from rag_assets.sources.base import FetchedObject, ObjectGone, ObjectUnreadable, SourceObject, shard_of_folders
from rag_serving.errors import first_line
from rag_serving.lake.retries import with_retries
from rag_serving.lake.shards import Shard

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

_BODY_TRIES = 4
_GZIP = b"\x1f\x8b"
_MOST_DECODED_BYTES = 256 * 2**20
_PLAIN = "/ -_.&+()@,:'"
"""Characters of keys that URIs for people show as they are."""


class S3Source:
    """A bucket, or a prefix of one. boto3 retries transient failures; this class names those that remain."""

    def __init__(self, client: "S3Client", bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        """Yield pages of the objects whose key starts with `prefix`."""
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
        """Yield the shards whose prefix has objects."""
        for region in self._folders(""):
            for department in self._folders(f"{region}/"):
                if (shard := shard_of_folders(region, department)) is not None:
                    yield shard

    def _folders(self, prefix: str) -> Iterator[str]:
        """Yield the names between the prefix and the next slash of keys."""
        for answer in self._answers(prefix, {"Delimiter": "/"}):
            for found in answer.get("CommonPrefixes", []):
                yield found.get("Prefix", "").removeprefix(self._prefix + prefix).removesuffix("/")

    def _answers(self, prefix: str, options: Mapping[str, Any]) -> "Iterator[ListObjectsV2OutputTypeDef]":
        """Yield the responses of a paginated listing."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            for answer in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix, **options
            ):
                yield answer
                if answer.get("IsTruncated") and not answer.get("NextContinuationToken"):
                    # The paginator would stop here, and the remaining objects would look deleted.
                    raise SourceUnavailable(
                        f"cannot list s3://{self._bucket}/{self._prefix}: the server sent a truncated page without a "
                        "continuation token"
                    )
        except (BotoCoreError, ClientError) as error:
            raise _error_class(error)(
                f"cannot list s3://{self._bucket}/{self._prefix}: {_reason(error)}; check RAG_SOURCE_URI and the AWS_* "
                "variables (key, secret, region, AWS_ENDPOINT_URL)"
            ) from error

    def head(self, key: str) -> SourceObject | None:
        """Return the entry of one object; None if it does not exist."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as error:
            # A HEAD response has no body, so a missing bucket and a missing key look alike.
            if _code(error) in _MISSING:
                self._require_bucket()
                return None
            return self._listed(key)
        except BotoCoreError as error:
            raise _error_class(error)(f"cannot stat {self.uri(key)}: {_reason(error)}") from error
        return SourceObject(
            key, answer["ETag"].strip('"'), answer["ContentLength"], answer["LastModified"].astimezone(UTC)
        )

    def _listed(self, key: str) -> SourceObject | None:
        """Return the entry of an object that does not answer a HEAD request; the listing is one of the bucket."""
        first = next(self.pages(key), None)
        return next((entry for entry in first or () if entry.key == key), None)

    def _require_bucket(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.head_bucket(Bucket=self._bucket)
        except (BotoCoreError, ClientError) as error:
            raise _error_class(error)(
                f"cannot reach the bucket s3://{self._bucket}: {_reason(error)}; check RAG_SOURCE_URI"
            ) from error

    def fetch(self, key: str) -> FetchedObject:
        """Read an object.

        An error is that of the object alone if the bucket answers and the error is none of credentials or throttling.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return self._read(key)
        except (BotoCoreError, ClientError) as error:
            if _code(error) in _MISSING:
                raise ObjectGone(key) from error
            if _code(error) in _REFUSALS - _OF_ONE_OBJECT or _is_throttled(error):
                raise _error_class(error)(f"cannot fetch {self.uri(key)}: {_reason(error)}") from error
            next(self.pages(), None)  # raises if the bucket does not answer either
            raise ObjectUnreadable(f"{key}: {_reason(error)}") from error

    def _read(self, key: str) -> FetchedObject:
        """Read one object. boto3 detects a truncated body, but does not retry once the response has begun."""
        from botocore.exceptions import BotoCoreError

        def read() -> FetchedObject:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            data = answer["Body"].read()
            encoding = answer.get("ContentEncoding", "")
            etag, modified = answer["ETag"].strip('"'), answer["LastModified"].astimezone(UTC)
            return FetchedObject(_decoded(key, data, encoding), etag, modified, stored_bytes=len(data))

        return with_retries(lambda error: isinstance(error, BotoCoreError), tries=_BODY_TRIES)(read)

    def uri(self, key: str) -> str:
        """Return the object's ``s3://`` URI."""
        return f"s3://{self._bucket}/{quote(self._prefix + key, safe=_PLAIN)}"


def _decoded(key: str, data: bytes, encoding: str) -> bytes:
    """Return what a browser would get of an object with this Content-Encoding; other encodings are left as they are."""
    if encoding.strip().lower() != "gzip" or not data.startswith(_GZIP):
        return data
    inflating = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        found = inflating.decompress(data, _MOST_DECODED_BYTES)
    except zlib.error as error:
        raise ObjectUnreadable(f"{key}: its Content-Encoding is gzip, but it is damaged ({error})") from error
    if not inflating.eof:
        problem = "is truncated" if len(found) < _MOST_DECODED_BYTES else f"has more than {_MOST_DECODED_BYTES} bytes"
        raise ObjectUnreadable(f"{key}: its Content-Encoding is gzip, and it {problem}")
    return found


_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_OF_ONE_OBJECT = frozenset({"403", "AccessDenied", "AllAccessDisabled"})
_REFUSALS = frozenset(
    {
        *("403", "404", "AccessDenied", "AllAccessDisabled", "AuthorizationHeaderMalformed", "ExpiredToken"),
        *("InvalidAccessKeyId", "InvalidBucketName", "InvalidToken", "NoSuchBucket", "PermanentRedirect"),
        *("SignatureDoesNotMatch",),
    }
)


def _error_class(error: Exception) -> type[SourceUnavailable]:
    from botocore.exceptions import NoCredentialsError, ParamValidationError, PartialCredentialsError

    hopeless = isinstance(error, NoCredentialsError | PartialCredentialsError | ParamValidationError)
    return SourceRefused if hopeless or _code(error) in _REFUSALS else SourceUnavailable


def _is_throttled(error: Exception) -> bool:
    code = _code(error)
    return code in ("503", "SlowDown", "ServiceUnavailable", "RequestLimitExceeded") or "Throttl" in code


def _code(error: Exception) -> str:
    """Return the error code of a `ClientError`; empty for errors of the client itself."""
    response: Any = getattr(error, "response", None) or {}
    return response.get("Error", {}).get("Code", "")


def _reason(error: Exception) -> str:
    response: Any = getattr(error, "response", None)
    if response:
        return f"{response['Error'].get('Code', 'error')} ({response['Error'].get('Message', '')[:120]})"
    return first_line(error)
