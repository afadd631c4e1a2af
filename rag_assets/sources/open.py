"""Open the source that a URI names."""

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final

from rag_assets.sources.base import Source
from rag_assets.sources.folder import FolderSource
from rag_assets.sources.left_out import IgnoringSource
from rag_assets.sources.s3 import S3Source
from rag_serving.errors import SettingsError, first_line
from rag_serving.lake.object_store import folder_path, is_s3, split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SOURCES_GROUP: Final = "rag_shards.sources"
_SETTING = "RAG_SOURCE_URI"


def open_source(uri: str | None, client: "S3Client | None" = None, *, ignore: Sequence[str] = ()) -> Source:
    """Open the source of `RAG_SOURCE_URI`, in which names that match a pattern of `ignore` are left out.

    `client` is for ``s3://`` and defaults to boto3's. Other schemes are those of the entry points of `SOURCES_GROUP`,
    functions from a URI to a `Source`.
    """
    return IgnoringSource(_open(uri, client), ignore)


def _open(uri: str | None, client: "S3Client | None") -> Source:
    if uri is None:
        raise SettingsError(f"{_SETTING} is not set; set it to the folder or s3://bucket/prefix of the documents")
    if is_s3(uri):
        bucket, prefix = split_s3(uri, _SETTING)
        if client is None:
            import boto3
            from botocore.config import Config

            # boto3's default session would keep the first credentials that it found.
            config = Config(retries={"max_attempts": 5, "mode": "standard"})
            client = boto3.session.Session().client("s3", config=config)
        return S3Source(client, bucket, prefix)
    scheme, separator, _ = uri.partition("://")
    if separator and (installed := entry_points(group=SOURCES_GROUP, name=scheme)):
        return _open_installed(next(iter(installed)), uri)
    return FolderSource(folder_path(uri, _SETTING))


def _open_installed(entry_point: EntryPoint, uri: str) -> Source:
    try:
        opened = entry_point.load()
    except Exception as error:
        package = "an unknown package" if entry_point.dist is None else entry_point.dist.name
        raise SettingsError(
            f"{_SETTING}: the source plugin {entry_point.name} of {package} cannot be loaded ({first_line(error)}); "
            "update the package, or use a folder or s3://bucket/prefix"
        ) from error
    return opened(uri)
