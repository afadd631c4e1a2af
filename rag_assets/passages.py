"""The step from `raw_documents` to `chunks`: cut the documents whose content or chunker changed, and only those.

A chunk's id is made from its document, its text and which occurrence of that text it is, so that a paragraph put in
above does not rename what follows.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rag_assets.chunking import Chunker
from rag_assets.extraction import Block, BlockKind, ExtractedDocument
from rag_assets.ingestion import Log
from rag_assets.lake import (
    CHUNK_SCHEMA,
    CHUNKS,
    RAW_DOCUMENTS,
    Lake,
    columns,
    commit_replacement,
    delete_rows,
    read,
    scan,
)
from rag_assets.lease import Lease
from rag_serving.shards import Shard
from rag_serving.tables import sql_in

_BATCH_DOCUMENTS = 200


@dataclass(slots=True)
class ChunkingReport:
    """What a run of the step did. `chunks` counts what the table holds afterwards."""

    documents_chunked: int = 0
    documents_unchanged: int = 0
    documents_deleted: int = 0
    chunks_written: int = 0
    tokens_written: int = 0
    chunks: int = 0
    seconds: float = 0.0


def sync_chunks(lake: Lake, shard: Shard, lease: Lease, chunker: Chunker, log: Log) -> ChunkingReport:
    """Bring `chunks` of the shard to what `raw_documents` holds."""
    started = time.monotonic()
    report = ChunkingReport()
    wanted = _content_hashes(lake, RAW_DOCUMENTS, shard)
    have = _content_hashes(lake, CHUNKS, shard, chunker.version)
    todo = [doc_id for doc_id, content in wanted.items() if have.get(doc_id) != content]
    gone = [doc_id for doc_id in have if doc_id not in wanted]
    report.documents_unchanged = len(wanted) - len(todo)
    report.documents_deleted = len(gone)
    if not todo and not gone:
        report.chunks = _count(lake, shard)
        report.seconds = time.monotonic() - started
        return report
    table = lake.ensure(CHUNKS, shard, CHUNK_SCHEMA)
    if gone:
        delete_rows(table, lease, "doc_id", gone)
    documents = lake.open(RAW_DOCUMENTS, shard)
    names = ["doc_id", "title", "type", "text", "blocks", "content_hash"]
    for start in range(0, len(todo), _BATCH_DOCUMENTS):
        batch = todo[start : start + _BATCH_DOCUMENTS]
        rows = [
            row
            for records in scan(documents, names, where=sql_in("doc_id", batch))
            for record in records.to_pylist()
            for row in _rows(record, chunker)
        ]
        commit_replacement(
            table,
            lease,
            pa.Table.from_pylist(rows, schema=CHUNK_SCHEMA),
            key="chunk_id",
            owner="doc_id",
            owners=batch,
            fresh=not any(doc_id in have for doc_id in batch),
        )
        report.documents_chunked += len(batch)
        report.chunks_written += len(rows)
        report.tokens_written += sum(row["tokens"] for row in rows)
        log(f"{shard}: {report.documents_chunked} of {len(todo)} documents cut into {report.chunks_written} chunks")
    report.chunks = _count(lake, shard)
    report.seconds = time.monotonic() - started
    return report


def _count(lake: Lake, shard: Shard) -> int:
    table = lake.open(CHUNKS, shard)
    return 0 if table is None else table.count_rows()


def _content_hashes(lake: Lake, stage: str, shard: Shard, chunker: str | None = None) -> dict[str, str]:
    """Content hash by document; with `chunker`, the hash is empty for documents cut by another one."""
    table = lake.open(stage, shard)
    if table is None:
        return {}
    if chunker is None:
        return dict(columns(read(table, ["doc_id", "content_hash"]), "doc_id", "content_hash"))
    rows = read(table, ["doc_id", "content_hash", "chunker"])
    return {
        doc: content if by == chunker else "" for doc, content, by in columns(rows, "doc_id", "content_hash", "chunker")
    }


def _rows(record: dict[str, Any], chunker: Chunker) -> list[dict[str, Any]]:
    document = ExtractedDocument(
        text=record["text"],
        title=record["title"],
        media_type=record["type"],
        blocks=tuple(
            Block(BlockKind(b["kind"]), b["start"], b["end"], b["level"], b["page"]) for b in record["blocks"]
        ),
    )
    passages = chunker.chunk(document)
    ids = chunk_ids(record["doc_id"], [passage.text for passage in passages])
    return [
        {
            "chunk_id": chunk_id,
            "doc_id": record["doc_id"],
            "ordinal": ordinal,
            "text": passage.text,
            "embed_hash": embed_hash(passage.text),
            "heading_path": list(passage.heading_path),
            "page": passage.page,
            "start": passage.start,
            "end": passage.end,
            "tokens": passage.tokens,
            "content_hash": record["content_hash"],
            "chunker": chunker.version,
        }
        for ordinal, (chunk_id, passage) in enumerate(zip(ids, passages, strict=True))
    ]


def chunk_ids(doc_id: str, texts: Sequence[str]) -> list[str]:
    """One id of 32 hex digits per text, distinct within the document."""
    seen: Counter[str] = Counter()
    ids: list[str] = []
    for text in texts:
        hashed = hashlib.sha256(text.encode()).hexdigest()
        ids.append(hashlib.sha256(f"{doc_id}\0{hashed}\0{seen[hashed]}".encode()).hexdigest()[:32])
        seen[hashed] += 1
    return ids


def embed_hash(embedded_text: str) -> str:
    """Address of a text's vector under one embedder: 32 hex digits."""
    return hashlib.sha256(embedded_text.encode()).hexdigest()[:32]
