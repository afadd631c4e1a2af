"""Names and Arrow schemas of the pipeline's tables, and the ids of documents."""

import hashlib
from typing import Any

import pyarrow as pa

RAW_DOCUMENTS = "raw_documents"
QUARANTINE = "quarantine"
CHUNKS = "chunks"
EMBEDDINGS = "embeddings"

_TIME = pa.timestamp("us", tz="UTC")


def _required(kind: pa.DataType, *names: str) -> "list[pa.Field[Any]]":
    return [pa.field(name, kind, nullable=False) for name in names]


BLOCKS = pa.list_(
    pa.struct(
        [
            *_required(pa.string(), "kind"),
            *_required(pa.int32(), "start", "end"),
            *_required(pa.int8(), "level"),
            pa.field("page", pa.int32()),
        ]
    )
)

RAW_SCHEMA = pa.schema(
    [
        *_required(pa.string(), "doc_id", "object_id", "key", "part", "source", "etag"),
        *_required(pa.int64(), "size"),
        *_required(_TIME, "modified_at"),
        *_required(pa.string(), "type", "title", "text"),
        *_required(BLOCKS, "blocks"),
        *_required(pa.string(), "content_hash", "extractor"),
        *_required(_TIME, "extracted_at"),
        *_required(pa.bool_(), "stale"),
    ]
)

QUARANTINE_SCHEMA = pa.schema(
    [
        *_required(pa.string(), "doc_id", "object_id", "key", "part", "etag"),
        *_required(pa.int64(), "size"),
        *_required(pa.string(), "reason", "detail", "extractor"),
        *_required(_TIME, "first_seen", "last_seen"),
        *_required(pa.int32(), "attempts"),
        *_required(pa.bool_(), "retry"),
    ]
)

CHUNK_SCHEMA = pa.schema(
    [
        *_required(pa.string(), "chunk_id", "doc_id"),
        *_required(pa.int32(), "ordinal"),
        *_required(pa.string(), "text", "context", "table_header", "language", "embed_hash"),
        *_required(pa.list_(pa.string()), "heading_path"),
        pa.field("page", pa.int32()),
        *_required(pa.int32(), "start", "end", "tokens"),
        *_required(pa.string(), "content_hash", "chunker"),
    ]
)


def embedding_schema(dimensions: int) -> pa.Schema:
    """Return the schema of `embeddings`: a vector per hash of the embedded text."""
    return pa.schema(
        [
            *_required(pa.string(), "embed_hash"),
            *_required(pa.list_(pa.float32(), dimensions), "vector"),
        ]
    )


def document_id(key: str, part: str = "") -> str:
    """Return the id (32 hex digits) of the document of a source object, or of an attachment (`part`) of one."""
    named = f"{key}\0{part}" if part else key
    return hashlib.sha256(named.encode()).hexdigest()[:32]
