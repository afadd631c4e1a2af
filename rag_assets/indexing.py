"""The step from `chunks` and `embeddings` to the shard's table: replace what differs, keep the indexes covering it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from rag_assets.errors import ChecksFailed
from rag_assets.ingestion import Log
from rag_assets.lake import (
    CHUNKS,
    EMBEDDINGS,
    RAW_DOCUMENTS,
    Lake,
    columns,
    commit_replacement,
    delete_rows,
    read,
    values,
)
from rag_assets.lease import Lease
from rag_serving.embedding import EmbedderIdentity
from rag_serving.shards import Shard
from rag_serving.tables import FINGERPRINT, SHARDS, shard_schema, sql_in

if TYPE_CHECKING:
    from lancedb.table import Table

_BATCH_CHUNKS = 4096
_BATCH_DOCUMENTS = 1000
UNINDEXED_ROWS = 512
"""Rows beyond an index that a search may have to scan; more, and the index is brought up to date before publishing."""
_SMALL_FRAGMENTS = 20
_NEVER = timedelta(days=36_500)  # old versions are not this step's to delete: a reader may be on one


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


def sync_shard(
    lake: Lake, shard: Shard, lease: Lease, identity: EmbedderIdentity, vector_index_rows: int, log: Log
) -> IndexingReport:
    """Bring the shard's table to what `chunks` and `embeddings` hold; raises `ChecksFailed` for a missing vector."""
    started = time.monotonic()
    report = IndexingReport()
    table = _table(lake, shard, identity, lease)
    wanted = _wanted(lake, shard)
    have = _have(table)
    todo = [doc_id for doc_id, signature in wanted.items() if have.get(doc_id) != signature]
    gone = [doc_id for doc_id in have if doc_id not in wanted]
    if gone:
        report.documents_deleted = len(gone)
        delete_rows(table, lease, "doc_id", gone)
    for batch in _batches(todo, wanted):
        rows = _rows(lake, shard, identity, batch)
        commit_replacement(
            table,
            lease,
            rows,
            key="chunk_id",
            owner="doc_id",
            owners=batch,
            fresh=not any(doc_id in have for doc_id in batch),
        )
        report.documents_replaced += len(batch)
        report.rows_written += rows.num_rows
        log(f"{shard}: {report.documents_replaced} of {len(todo)} documents in the table ({report.rows_written} rows)")
    rows_now = table.count_rows()
    report.optimized = _keep_indexes(table, rows_now, vector_index_rows, lease)
    report.rows = rows_now
    report.documents = len(wanted)
    report.version = table.version
    report.bytes = _stats(table)["total_bytes"]
    report.unindexed_rows = unindexed_rows(table)
    report.seconds = time.monotonic() - started
    return report


def table_fingerprint(table: Table) -> str:
    """The embedder whose vectors the table holds; empty when the table does not say."""
    return (table.schema.metadata or {}).get(FINGERPRINT, b"").decode(errors="replace")


def unindexed_rows(table: Table) -> int:
    """The most rows that any index of the table leaves out."""
    stats = [table.index_stats(index.name) for index in table.list_indices()]
    return max((int(stat.num_unindexed_rows) for stat in stats if stat is not None), default=0)


def _stats(table: Table) -> dict[str, Any]:
    return cast("dict[str, Any]", table.stats())  # declared as an object, but a dictionary


def _table(lake: Lake, shard: Shard, identity: EmbedderIdentity, lease: Lease) -> Table:
    schema = shard_schema(identity.dimensions, identity.fingerprint)
    table = lake.open(SHARDS, shard)
    lease.check()
    if table is None:
        return lake.ensure(SHARDS, shard, schema)
    if table_fingerprint(table) != identity.fingerprint:
        # Vectors of two embedders never share a table; the published version stays readable meanwhile.
        return lake.overwrite(SHARDS, shard, schema)
    return table


def _wanted(lake: Lake, shard: Shard) -> dict[str, str]:
    documents, chunks = lake.open(RAW_DOCUMENTS, shard), lake.open(CHUNKS, shard)
    if documents is None or chunks is None:
        return {}
    columns = ["doc_id", "content_hash", "etag", "modified_at"]
    facts = {row["doc_id"]: row for row in read(documents, columns).to_pylist()}
    rows = read(chunks, ["doc_id", "ordinal", "chunk_id"])
    return {
        doc_id: _signature(facts[doc_id], ordered)
        for doc_id, ordered in _chunks_by_document(rows).items()
        if doc_id in facts
    }


def _have(table: Table) -> dict[str, str]:
    rows = read(table, ["doc_id", "ordinal", "chunk_id", "content_hash", "etag", "modified_at"])
    first = {row["doc_id"]: row for row in rows.select(["doc_id", "content_hash", "etag", "modified_at"]).to_pylist()}
    return {doc_id: _signature(first[doc_id], ordered) for doc_id, ordered in _chunks_by_document(rows).items()}


def _chunks_by_document(rows: pa.Table) -> dict[str, list[tuple[int, str]]]:
    grouped: dict[str, list[tuple[int, str]]] = {}
    for doc_id, ordinal, chunk_id in columns(rows, "doc_id", "ordinal", "chunk_id"):
        grouped.setdefault(doc_id, []).append((ordinal, chunk_id))
    return grouped


def _signature(facts: dict[str, Any], chunks: list[tuple[int, str]]) -> str:
    ordered = ",".join(chunk_id for _, chunk_id in sorted(chunks))
    text = f"{facts['content_hash']}|{facts['etag']}|{facts['modified_at'].isoformat()}|{len(chunks)}|{ordered}"
    return f"{len(chunks)}:{hashlib.sha256(text.encode()).hexdigest()}"


def _batches(todo: list[str], wanted: dict[str, str]) -> Iterator[list[str]]:
    batch: list[str] = []
    chunks = 0
    for doc_id in todo:
        count = int(wanted[doc_id].partition(":")[0])
        if batch and (chunks + count > _BATCH_CHUNKS or len(batch) == _BATCH_DOCUMENTS):
            yield batch
            batch, chunks = [], 0
        batch.append(doc_id)
        chunks += count
    if batch:
        yield batch


def _rows(lake: Lake, shard: Shard, identity: EmbedderIdentity, doc_ids: list[str]) -> pa.Table:
    documents, chunks = lake.open(RAW_DOCUMENTS, shard), lake.open(CHUNKS, shard)
    embeddings = lake.open(EMBEDDINGS, shard, fingerprint=identity.fingerprint)
    if documents is None or chunks is None or embeddings is None:
        raise ChecksFailed(f"shard {shard} has no chunks or vectors yet; materialize chunks and embeddings first")
    where = sql_in("doc_id", doc_ids)
    facts = read(documents, ["doc_id", "source", "type", "title", "etag", "modified_at"], where=where)
    names = ("chunk_id", "doc_id", "ordinal", "text", "heading_path", "page", "start", "end", "tokens", "content_hash")
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
    arrays |= {name: facts[name].take(document_rows) for name in ("source", "type", "title", "etag", "modified_at")}
    arrays["vector"] = vectors["vector"].take(vector_rows)
    arrays["region"] = pa.array([shard.region] * count, pa.string())
    arrays["department"] = pa.array([shard.department] * count, pa.string())
    arrays["indexed_at"] = pa.array([datetime.now(UTC)] * count, pa.timestamp("us", tz="UTC"))
    schema = shard_schema(identity.dimensions, identity.fingerprint)
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _keep_indexes(table: Table, rows: int, vector_index_rows: int, lease: Lease) -> bool:
    """Create the indexes that are due and fold new rows in when too many lie outside; whether it compacted."""
    from lancedb.index import FTS, IvfRq

    if rows == 0:
        return False
    indexed = {column for index in table.list_indices() for column in index.columns}
    if "text" not in indexed:
        lease.check()
        # The ICU tokenizer finds words in Chinese and Japanese too, and still stems English.
        table.create_index("text", config=FTS(base_tokenizer="icu", with_position=False))
    if "vector" not in indexed and rows >= vector_index_rows:
        lease.check()
        table.create_index("vector", config=IvfRq(distance_type="cosine", num_bits=4))
    small = _stats(table)["fragment_stats"]["num_small_fragments"]
    if unindexed_rows(table) > UNINDEXED_ROWS or small > _SMALL_FRAGMENTS:
        lease.check()
        table.optimize(cleanup_older_than=_NEVER)
        return True
    return False
