"""The step from `raw_documents` to `chunks`: cut only the documents whose content or chunker changed.

A chunk's id depends on its document, the embedded text and the number of that text's occurrence, so a paragraph
inserted above does not change the ids below.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rag_assets.chunking.passage import Chunker
from rag_assets.extraction.document import Block, BlockKind, ExtractedDocument, has_words
from rag_assets.extraction.language import detect_language
from rag_assets.extraction.registry import title_of_key
from rag_assets.storage.batches import batches
from rag_assets.storage.id_indexes import document_filters, ensure_id_indexes
from rag_assets.storage.lake import Log, Table, row_count, rows_of, scan
from rag_assets.storage.schemas import CHUNK_SCHEMA, CHUNKS, RAW_DOCUMENTS
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.sql import sql_in

_BATCH_DOCUMENTS = 200


@dataclass(slots=True)
class ChunkingReport:
    """What a run of the step did; `chunks` counts the rows afterwards."""

    documents_chunked: int = 0
    documents_unchanged: int = 0
    documents_deleted: int = 0
    chunks_written: int = 0
    tokens_written: int = 0
    chunks: int = 0
    seconds: float = 0.0


def sync_chunks(writer: ShardWriter, chunker: Chunker, log: Log) -> ChunkingReport:
    """Update the shard's `chunks` to match its `raw_documents`."""
    started = time.monotonic()
    report = ChunkingReport()
    _keep_schema(writer)
    if writer.progress.chunker != chunker.version:
        writer.mark_dirty(None)
    for where in document_filters(writer.dirty, writer.table(RAW_DOCUMENTS), writer.table(CHUNKS)):
        _cut(writer, chunker, where, report, log)
    if writer.progress.chunker != chunker.version:
        writer.update_progress(chunker=chunker.version)
    ensure_id_indexes(writer, CHUNKS)
    report.documents_unchanged = row_count(writer.table(RAW_DOCUMENTS)) - report.documents_chunked
    report.chunks = row_count(writer.table(CHUNKS))
    report.seconds = time.monotonic() - started
    return report


def _keep_schema(writer: ShardWriter) -> None:
    """Replace a table of an older schema by an empty one, so that its documents are cut again."""
    table = writer.table(CHUNKS)
    if table is not None and not table.schema.equals(CHUNK_SCHEMA, check_metadata=False):
        writer.mark_dirty(None)
        writer.overwrite(CHUNKS, CHUNK_SCHEMA)


def _cut(writer: ShardWriter, chunker: Chunker, where: str | None, report: ChunkingReport, log: Log) -> None:
    """Update the chunks of the documents that match the filter."""
    wanted: dict[str, str] = dict(rows_of(writer.table(RAW_DOCUMENTS), "doc_id", "content_hash", where=where))
    have = _chunked(writer.table(CHUNKS), where)
    todo = [
        doc_id
        for doc_id, content in wanted.items()
        if doc_id not in have or have[doc_id] != _Chunked(content, chunker.version, repeated=False)
    ]
    gone = [doc_id for doc_id in have if doc_id not in wanted]
    # A merge would not remove duplicate rows.
    repeated = [doc_id for doc_id, known in have.items() if known.repeated]
    report.documents_deleted += len(gone)
    if todo or gone:
        writer.ensure(CHUNKS, CHUNK_SCHEMA)
        writer.delete(CHUNKS, "doc_id", sorted({*gone, *repeated}))
    documents = writer.table(RAW_DOCUMENTS)
    names = ["doc_id", "key", "part", "title", "type", "text", "blocks", "content_hash"]
    for batch in batches(todo, _BATCH_DOCUMENTS):
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
    """The content and the chunker that a document's chunks were made from; `repeated` if a chunk id is duplicated."""

    content_hash: str
    chunker: str
    repeated: bool


def _chunked(table: Table | None, where: str | None) -> dict[str, _Chunked]:
    found: dict[str, _Chunked] = {}
    seen: set[str] = set()
    for doc_id, chunk_id, *facts in rows_of(table, "doc_id", "chunk_id", "content_hash", "chunker", where=where):
        known = found.get(doc_id)
        repeated = chunk_id in seen or (known is not None and known.repeated)
        seen.add(chunk_id)
        found[doc_id] = _Chunked(*facts, repeated=repeated)
    return found


def _rows(record: dict[str, Any], chunker: Chunker) -> list[dict[str, Any]]:
    document = ExtractedDocument(
        text=record["text"],
        title=record["title"],
        media_type=record["type"],
        blocks=tuple(
            Block(BlockKind(b["kind"]), b["start"], b["end"], b["level"], b["page"]) for b in record["blocks"]
        ),
        name=title_of_key(record["part"] or record["key"]),
    )
    language = detect_language(document.text)
    # Rules, bullets and the like find nothing.
    passages = [passage for passage in chunker.chunk(document) if has_words(passage.text)]
    # Hash the embedded text, so that a row with another vector has another id.
    ids = chunk_ids(record["doc_id"], [passage.embedded_text for passage in passages])
    return [
        {
            "chunk_id": chunk_id,
            "doc_id": record["doc_id"],
            "ordinal": ordinal,
            "text": passage.text,
            "context": passage.context,
            "table_header": passage.table_header,
            "language": language,
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
    """Return an id of 32 hex digits for each text, unique within the document."""
    seen: Counter[str] = Counter()
    ids: list[str] = []
    for text in texts:
        hashed = hashlib.sha256(text.encode()).hexdigest()
        ids.append(hashlib.sha256(f"{doc_id}\0{hashed}\0{seen[hashed]}".encode()).hexdigest()[:32])
        seen[hashed] += 1
    return ids


def embed_hash(embedded_text: str) -> str:
    """Return the key of a text's vector: 32 hex digits."""
    return hashlib.sha256(embedded_text.encode()).hexdigest()[:32]
