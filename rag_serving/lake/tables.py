"""The tables of the read contract: schema, location in the lake, connections. Filters are built in `sql`."""

import asyncio
import os
import tempfile
from typing import TYPE_CHECKING

import pyarrow as pa

from rag_serving.concurrency.thread_priority import with_low_priority
from rag_serving.lake.object_store import RETRY_SECONDS, folder_path, is_s3, s3_options

if TYPE_CHECKING:
    import lancedb

SHARDS = "shards"
"""Folder of the lake with one table per shard."""

FINGERPRINT = b"rag.fingerprint"
"""Key of the schema metadata that names the embedder of a table's vectors."""

TABLE_FORMAT = 3
"""Version of `shard_schema` and of the words in it; shards published with an older one are indexed again. 2 added
`path`, 3 added `words`, `language` and `table_header`."""


def shard_schema(dimensions: int, fingerprint: str) -> pa.Schema:
    """Return the schema of a shard's table. A row is a chunk; ``text == document.text[start:end]`` in characters.

    `words` is what the full-text index stores (see `search.words`). `path` is the object's key below
    ``region/department/``, followed by ``#name`` for an attachment of a message. `language` is the document's (ISO
    639-1), empty if unknown. If the passage is a later piece of a table, `table_header` is the table's first row.
    `stale` marks passages of a document whose newer version could not be read.
    """
    return pa.schema(
        [
            pa.field("chunk_id", pa.string(), nullable=False),
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("ordinal", pa.int32(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("words", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("type", pa.string(), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("heading_path", pa.list_(pa.string())),
            pa.field("table_header", pa.string(), nullable=False),
            pa.field("language", pa.string(), nullable=False),
            pa.field("page", pa.int32()),
            pa.field("start", pa.int32(), nullable=False),
            pa.field("end", pa.int32(), nullable=False),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("region", pa.string(), nullable=False),
            pa.field("department", pa.string(), nullable=False),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("etag", pa.string(), nullable=False),
            pa.field("modified_at", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("indexed_at", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("stale", pa.bool_(), nullable=False),
        ],
        metadata={FINGERPRINT: fingerprint.encode()},
    )


def database_uri(lake_uri: str, folder: str) -> str:
    """Return the URI of the tables in a folder of the lake; local paths become absolute."""
    if is_s3(lake_uri):
        return f"{lake_uri.rstrip('/')}/{folder}"
    return str(folder_path(lake_uri) / folder)


def storage_options(lake_uri: str) -> dict[str, str] | None:
    """Return the options that LanceDB needs beyond the AWS_* variables it reads itself; None for a local folder."""
    if not is_s3(lake_uri):
        return None
    # Lance's default of three retries (repeated up to three times when S3 throttles), but not its limit of 3 minutes.
    retries = {"client_max_retries": "3", "client_retry_timeout": str(RETRY_SECONDS)}
    return {**s3_options(os.environ), **retries}


async def connect_async(
    lake_uri: str, folder: str, session: "lancedb.Session | None" = None
) -> "lancedb.AsyncConnection":
    """Connect to the tables in a folder of the lake; connections of one session share its caches."""
    import lancedb

    return await lancedb.connect_async(
        database_uri(lake_uri, folder), storage_options=storage_options(lake_uri), session=session
    )


def start_tables() -> None:
    """Make LanceDB start its threads with low priority; has no effect once they are running."""

    async def touch(folder: str) -> None:
        import lancedb

        await lancedb.connect_async(folder)

    with tempfile.TemporaryDirectory(prefix="rag-tables-") as folder:
        with_low_priority(lambda: asyncio.run(touch(folder)))
