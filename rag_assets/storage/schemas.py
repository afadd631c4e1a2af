"""Names and Arrow schemas of the pipeline's tables, and the ids of documents."""

import hashlib

import pyarrow as pa

RAW_DOCUMENTS = "raw_documents"
QUARANTINE = "quarantine"
CHUNKS = "chunks"
EMBEDDINGS = "embeddings"

_TIME = pa.timestamp("us", tz="UTC")

BLOCKS = pa.list_(
    pa.struct(
        [
            pa.field("kind", pa.string(), nullable=False),
            pa.field("start", pa.int32(), nullable=False),
            pa.field("end", pa.int32(), nullable=False),
            pa.field("level", pa.int8(), nullable=False),
            pa.field("page", pa.int32()),
        ]
    )
)

RAW_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("modified_at", _TIME, nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("blocks", BLOCKS, nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("extractor", pa.string(), nullable=False),
        pa.field("extracted_at", _TIME, nullable=False),
        pa.field("stale", pa.bool_(), nullable=False),
    ]
)

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("extractor", pa.string(), nullable=False),
        pa.field("first_seen", _TIME, nullable=False),
        pa.field("last_seen", _TIME, nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("retry", pa.bool_(), nullable=False),
    ]
)

CHUNK_SCHEMA = pa.schema(
    [
        pa.field("chunk_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("context", pa.string(), nullable=False),
        pa.field("embed_hash", pa.string(), nullable=False),
        pa.field("heading_path", pa.list_(pa.string()), nullable=False),
        pa.field("page", pa.int32()),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("chunker", pa.string(), nullable=False),
    ]
)


def embedding_schema(dimensions: int) -> pa.Schema:
    """Return the schema of `embeddings`: a vector per hash of the embedded text."""
    return pa.schema(
        [
            pa.field("embed_hash", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False),
        ]
    )


def document_id(key: str, part: str = "") -> str:
    """Return the id (32 hex digits) of the document of a source object, or of an attachment (`part`) of one."""
    named = f"{key}\0{part}" if part else key
    return hashlib.sha256(named.encode()).hexdigest()[:32]
