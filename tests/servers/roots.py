"""Where tests put documents: a folder and a bucket behind one small interface."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class SourceRoot(Protocol):
    """Where documents arrive in a test. Keys are relative to `uri`."""

    @property
    def uri(self) -> str:
        """Return the value for `RAG_SOURCE_URI`."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Add or replace a document."""
        ...

    def delete(self, key: str) -> None:
        """Remove a document."""
        ...


@dataclass(frozen=True, slots=True)
class FolderRoot:
    """Documents as files."""

    folder: Path

    @property
    def uri(self) -> str:
        return str(self.folder)

    def put(self, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def delete(self, key: str) -> None:
        (self.folder / key).unlink()


@dataclass(frozen=True, slots=True)
class BucketRoot:
    """Documents as objects below a prefix, so that code that forgets the prefix fails."""

    client: S3Client
    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}", Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")
