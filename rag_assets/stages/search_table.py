"""The step from `chunks` and `embeddings` to the shard's search table: replace what changed and update the indexes."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from rag_assets.errors import ChecksFailed
from rag_assets.extraction.registry import title_of_key
from rag_assets.storage.batches import batches
from rag_assets.storage.content_digest import ContentDigest, cited_row, cited_rows
from rag_assets.storage.id_indexes import document_filters
from rag_assets.storage.lake import Log, Table, columns, read, row_count, table_bytes, values
from rag_assets.storage.schemas import CHUNK_SCHEMA, CHUNKS, EMBEDDINGS, RAW_DOCUMENTS
from rag_assets.storage.search_indexes import BATCH_CHUNKS, keep_indexes, table_fingerprint, unindexed_rows
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.lake.search.words import DEFAULT_LANGUAGE, indexed_words
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import SHARDS, shard_schema

_BATCH_DOCUMENTS = 4096


@dataclass(slots=True)
class IndexingReport:
    """What a run of the step did; `rows`, `documents`, `version` and `bytes` describe the table afterwards."""

    documents_replaced: int = 0
    documents_deleted: int = 0
    rows_written: int = 0
    rows: int = 0
    documents: int = 0
    version: int = 0
    bytes: int = 0
    unindexed_rows: int = 0
    optimized: bool = False
    seconds: float = 0.0


def sync_shard(writer: ShardWriter, identity: EmbedderIdentity, vector_index_rows: int, log: Log) -> IndexingReport:
    """Update the shard's table to match `chunks` and `embeddings`; raise `ChecksFailed` if a vector is missing."""
    started = time.monotonic()
    report = IndexingReport()
    table = _table(writer, identity)
    if not writer.progress.content_digest:
        writer.mark_dirty(None)
    dirty = writer.dirty
    digest = ContentDigest(identity.fingerprint, None if dirty is None else writer.progress.content_digest)
    if dirty is None:
        digest.change((), cited_rows(table))
    for where in document_filters(dirty, writer.table(CHUNKS), table):
        _sync_documents(writer, table, identity, where, digest, report, log)
    writer.update_progress(content_digest=str(digest), fingerprint=identity.fingerprint)
    report.rows = table.count_rows()
    changed = bool(report.documents_replaced or report.documents_deleted)
    report.optimized = keep_indexes(writer, table, report.rows, vector_index_rows, changed=changed)
    report.documents = row_count(writer.table(RAW_DOCUMENTS))
    report.version = table.version
    report.bytes = table_bytes(table)
    report.unindexed_rows = unindexed_rows(table)
    report.seconds = time.monotonic() - started
    return report


def _sync_documents(
    writer: ShardWriter,
    table: Table,
    identity: EmbedderIdentity,
    where: str | None,
    digest: ContentDigest,
    report: IndexingReport,
    log: Log,
) -> None:
    """Update the rows of the documents that match the filter."""
    wanted = _wanted(writer, where)
    have = _have(table, where)
    todo = [
        doc_id
        for doc_id, document in wanted.items()
        if doc_id not in have or have[doc_id].signature != document.signature
    ]
    gone = [doc_id for doc_id in have if doc_id not in wanted]
    # A merge would not remove duplicate rows.
    repeated = [doc_id for doc_id, document in have.items() if len(set(document.chunk_ids)) < len(document.chunk_ids)]
    report.documents_deleted += len(gone)
    for batch in batches(sorted({*gone, *repeated}), _BATCH_DOCUMENTS):
        digest.change((row for doc_id in batch for row in have.pop(doc_id).cited), ())
        writer.delete(SHARDS, "doc_id", batch, content_digest=str(digest))
    chunks_of = {doc_id: len(document.chunk_ids) for doc_id, document in wanted.items()}
    for batch in batches(todo, _BATCH_DOCUMENTS, weigh=chunks_of.__getitem__, most_weight=BATCH_CHUNKS):
        rows = _rows(writer, identity, batch)
        known = [doc_id for doc_id in batch if doc_id in have]
        digest.change(
            (row for doc_id in known for row in have[doc_id].cited),
            (row for doc_id in batch for row in wanted[doc_id].cited),
        )
        writer.replace(
            SHARDS,
            rows,
            key="chunk_id",
            owner="doc_id",
            owners=batch,
            fresh=not known,
            content_digest=str(digest),
        )
        report.documents_replaced += len(batch)
        report.rows_written += rows.num_rows
        log(f"{writer.shard}: {report.documents_replaced} documents written to the table ({report.rows_written} rows)")


def _table(writer: ShardWriter, identity: EmbedderIdentity) -> Table:
    schema = shard_schema(identity.dimensions, identity.fingerprint)
    table = writer.ensure(SHARDS, schema)
    if not table.schema.equals(schema, check_metadata=False) or table_fingerprint(table) != identity.fingerprint:
        # A table never mixes vectors of two embedders; readers keep using the published version.
        writer.mark_dirty(None)
        return writer.overwrite(SHARDS, schema)
    if writer.progress.fingerprint != identity.fingerprint:
        writer.mark_dirty(None)
    return table


@dataclass(frozen=True, slots=True)
class _Document:
    """A document's chunk ids in order, its rows as answers cite them, and a hash of every fact that its rows repeat."""

    chunk_ids: tuple[str, ...]
    cited: tuple[str, ...]
    signature: str


_FACTS = ["doc_id", "source", "title", "content_hash", "etag", "modified_at", "stale"]


def _wanted(writer: ShardWriter, where: str | None) -> dict[str, _Document]:
    documents, chunks = writer.table(RAW_DOCUMENTS), writer.table(CHUNKS)
    if documents is None or chunks is None:
        return {}
    facts = {row["doc_id"]: row for row in read(documents, _FACTS, where=where).to_pylist()}
    rows = read(chunks, ["doc_id", "ordinal", "chunk_id"], where=where)
    return {
        doc_id: _document(facts[doc_id], ordered)
        for doc_id, ordered in _chunks_by_document(rows).items()
        if doc_id in facts
    }


def _have(table: Table, where: str | None) -> dict[str, _Document]:
    rows = read(table, [*_FACTS, "ordinal", "chunk_id"], where=where)
    first = {row["doc_id"]: row for row in rows.select(_FACTS).to_pylist()}
    return {doc_id: _document(first[doc_id], ordered) for doc_id, ordered in _chunks_by_document(rows).items()}


def _chunks_by_document(rows: pa.Table) -> dict[str, list[tuple[int, str]]]:
    grouped: dict[str, list[tuple[int, str]]] = {}
    for doc_id, ordinal, chunk_id in columns(rows, "doc_id", "ordinal", "chunk_id"):
        grouped.setdefault(doc_id, []).append((ordinal, chunk_id))
    return grouped


def _document(facts: dict[str, Any], chunks: list[tuple[int, str]]) -> _Document:
    ordered = tuple(chunk_id for _, chunk_id in sorted(chunks))
    stated = [facts["modified_at"].isoformat() if name == "modified_at" else str(facts[name]) for name in _FACTS]
    cited = tuple(cited_row(chunk_id, facts["source"], facts["title"]) for chunk_id in ordered)
    return _Document(ordered, cited, hashlib.sha256("\0".join((*stated, *ordered)).encode()).hexdigest())


def _rows(writer: ShardWriter, identity: EmbedderIdentity, doc_ids: list[str]) -> pa.Table:
    shard = writer.shard
    documents, chunks = writer.table(RAW_DOCUMENTS), writer.table(CHUNKS)
    embeddings = writer.table(EMBEDDINGS, identity.fingerprint)
    if documents is None or chunks is None or embeddings is None:
        raise ChecksFailed(f"shard {shard} has no chunks or vectors yet; materialize chunks and embeddings first")
    where = sql_in("doc_id", doc_ids)
    named = ["doc_id", "source", "key", "part", "type", "title", "etag", "modified_at", "stale"]
    facts = read(documents, named, where=where)
    names = [name for name in CHUNK_SCHEMA.names if name not in ("context", "embed_hash", "chunker")]
    parts = read(chunks, [*names, "embed_hash"], where=where)
    hashes: list[str] = values(parts, "embed_hash")
    vectors = read(embeddings, ["embed_hash", "vector"], where=sql_in("embed_hash", sorted(set(hashes))))
    at = {hashed: row for row, hashed in enumerate(values(vectors, "embed_hash"))}
    lacking = sum(hashed not in at for hashed in hashes)
    if lacking:
        raise ChecksFailed(f"{lacking} chunks of shard {shard} have no vector; materialize embeddings first")
    document_at = {doc_id: row for row, doc_id in enumerate(values(facts, "doc_id"))}
    document_rows = pa.array([document_at[doc_id] for doc_id in values(parts, "doc_id")], pa.int64())
    vector_rows = pa.array([at[hashed] for hashed in hashes], pa.int64())
    count = parts.num_rows
    arrays: dict[str, Any] = {name: parts[name] for name in names}
    arrays |= {
        name: facts[name].take(document_rows) for name in ("source", "type", "title", "etag", "modified_at", "stale")
    }
    paths = [
        key.removeprefix(f"{shard.key}/") + (f"#{part}" if part else "") for key, part in columns(facts, "key", "part")
    ]
    arrays["path"] = pa.array(paths, pa.string()).take(document_rows)
    arrays["words"] = pa.array(_words(arrays), pa.string())
    arrays["vector"] = vectors["vector"].take(vector_rows)
    arrays["region"] = pa.array([shard.region] * count, pa.string())
    arrays["department"] = pa.array([shard.department] * count, pa.string())
    arrays["indexed_at"] = pa.array([datetime.now(UTC)] * count, pa.timestamp("us", tz="UTC"))
    schema = shard_schema(identity.dimensions, identity.fingerprint)
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _words(arrays: dict[str, Any]) -> Iterator[str]:
    """Yield what the full-text index stores for each row: its text and the names that it belongs to."""
    named = ("path", "title", "heading_path", "table_header", "text", "language")
    rows = zip(*(arrays[name].to_pylist() for name in named), strict=True)
    for path, title, headings, header, text, language in rows:
        names = dict.fromkeys((path.rpartition("/")[2], title_of_key(path), title, *headings, header))
        yield indexed_words([*names, text], language or DEFAULT_LANGUAGE)
