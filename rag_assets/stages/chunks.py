"""The step from `raw_documents` to `chunks`: cut the documents whose content or chunker changed, and only those.

A chunk's id is made from its document, the text that is embedded and which occurrence of that text it is, so that a
paragraph put in above does not rename what follows.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rag_assets.chunking.passage import Chunker
from rag_assets.extraction.document import Block, BlockKind, ExtractedDocument
from rag_assets.storage.id_indexes import dirty_filters, ensure_id_indexes
from rag_assets.storage.lake import Log, columns, row_count, scan
from rag_assets.storage.schemas import CHUNK_SCHEMA, CHUNKS, RAW_DOCUMENTS
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.sql import sql_in

if TYPE_CHECKING:
    from lancedb.table import Table

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


def sync_chunks(writer: ShardWriter, chunker: Chunker, log: Log) -> ChunkingReport:
    """Bring `chunks` of the shard to what `raw_documents` holds."""
    started = time.monotonic()
    report = ChunkingReport()
    _keep_schema(writer)
    if writer.progress.chunker != chunker.version:
        writer.mark_dirty(None)
    for where in dirty_filters(writer, RAW_DOCUMENTS, CHUNKS):
        _cut(writer, chunker, where, report, log)
    if writer.progress.chunker != chunker.version:
        writer.update_progress(chunker=chunker.version)
    ensure_id_indexes(writer, CHUNKS)
    documents, table = writer.table(RAW_DOCUMENTS), writer.table(CHUNKS)
    report.documents_unchanged = row_count(documents) - report.documents_chunked
    report.chunks = row_count(table)
    report.seconds = time.monotonic() - started
    return report


def _keep_schema(writer: ShardWriter) -> None:
    """Empty a table of an older schema, as the next version: its documents are cut again."""
    table = writer.table(CHUNKS)
    if table is not None and not table.schema.equals(CHUNK_SCHEMA, check_metadata=False):
        writer.mark_dirty(None)
        writer.overwrite(CHUNKS, CHUNK_SCHEMA)


def _cut(writer: ShardWriter, chunker: Chunker, where: str | None, report: ChunkingReport, log: Log) -> None:
    """Bring the chunks of some documents to what `raw_documents` holds of them."""
    wanted = _content_hashes(writer.table(RAW_DOCUMENTS), where)
    have = _chunked(writer.table(CHUNKS), where)
    todo = [
        doc_id
        for doc_id, content in wanted.items()
        if doc_id not in have or have[doc_id] != _Chunked(content, chunker.version, repeated=False)
    ]
    gone = [doc_id for doc_id in have if doc_id not in wanted]
    # A merge would leave a row that is there twice where it is.
    repeated = [doc_id for doc_id, known in have.items() if known.repeated]
    report.documents_deleted += len(gone)
    if todo or gone:
        writer.ensure(CHUNKS, CHUNK_SCHEMA)
        writer.delete(CHUNKS, "doc_id", sorted({*gone, *repeated}))
    documents = writer.table(RAW_DOCUMENTS)
    names = ["doc_id", "title", "type", "text", "blocks", "content_hash"]
    for start in range(0, len(todo), _BATCH_DOCUMENTS):
        batch = todo[start : start + _BATCH_DOCUMENTS]
        rows = [
            row
            for records in scan(documents, names, where=sql_in("doc_id", batch))
            for record in records.to_pylist()
            for row in _rows(record, chunker)
        ]
        writer.replace(
            CHUNKS,
            pa.Table.from_pylist(rows, schema=CHUNK_SCHEMA),
            key="chunk_id",
            owner="doc_id",
            owners=batch,
            fresh=not any(doc_id in have for doc_id in batch),
        )
        report.documents_chunked += len(batch)
        report.chunks_written += len(rows)
        report.tokens_written += sum(row["tokens"] for row in rows)
        log(f"{writer.shard}: {report.documents_chunked} documents cut into {report.chunks_written} chunks")


@dataclass(frozen=True, slots=True)
class _Chunked:
    """What the chunks of a document were made of, and by what; `repeated` if an id is there more than once."""

    content_hash: str
    chunker: str
    repeated: bool


def _content_hashes(table: Table | None, where: str | None) -> dict[str, str]:
    names = ["doc_id", "content_hash"]
    return {doc_id: content for batch in scan(table, names, where=where) for doc_id, content in columns(batch, *names)}


def _chunked(table: Table | None, where: str | None) -> dict[str, _Chunked]:
    names = ["doc_id", "chunk_id", "content_hash", "chunker"]
    found: dict[str, _Chunked] = {}
    seen: set[str] = set()
    for batch in scan(table, names, where=where):
        for doc_id, chunk_id, content, chunker in columns(batch, *names):
            known = found.get(doc_id)
            repeated = chunk_id in seen or (known is not None and known.repeated)
            seen.add(chunk_id)
            found[doc_id] = _Chunked(content, chunker, repeated)
    return found


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
    # By what is embedded, so that a row whose vector is another has another id.
    ids = chunk_ids(record["doc_id"], [passage.embedded_text for passage in passages])
    return [
        {
            "chunk_id": chunk_id,
            "doc_id": record["doc_id"],
            "ordinal": ordinal,
            "text": passage.text,
            "context": passage.context,
            "embed_hash": embed_hash(passage.embedded_text),
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
