"""An S3 bucket as the source of documents."""

from __future__ import annotations

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
                if (shard := shard_of_folders(region, department)) is not None:
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

        def read() -> FetchedObject:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            data = answer["Body"].read()
            return FetchedObject(data, answer["ETag"].strip('"'), answer["LastModified"].astimezone(UTC))

        return with_retries(lambda error: isinstance(error, BotoCoreError), tries=_BODY_TRIES)(read)

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
    return first_line(error)
