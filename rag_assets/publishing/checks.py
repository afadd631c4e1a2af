"""Checks of a built search table: its rows, the coverage of documents, its vectors and languages.

The checks of retrieval are in `evaluation`; `publish` runs both.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from rag_assets.evaluation.records import read_record, update_record
from rag_assets.options import MULTILINGUAL_MODEL
from rag_assets.storage.id_indexes import document_filters
from rag_assets.storage.lake import Lake, Table, column_values, read, row_count, rows_of
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, RAW_DOCUMENTS
from rag_assets.storage.search_indexes import UNINDEXED_ROWS, chunks_by_language, table_fingerprint, unindexed_rows
from rag_serving.lake.catalog_entry import read_catalog_entry
from rag_serving.lake.embedders.base import Embedder, EmbedderIdentity
from rag_serving.lake.shards import Shard
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import SHARDS

_SAMPLED_VECTORS = 1000
_COMPARED_ROWS = 32
"""Rows of a new table whose vectors are compared with those in `embeddings`."""
_EMBEDDED_ROWS = 8
"""Rows whose texts are embedded again: 0.1 s for a local model, one call for a hosted one."""
_SAME_TEXT = 0.98
"""Minimum cosine between two vectors of one text. Batches, precisions and runtimes of one model agree to 0.999, and a
hosted model almost so from day to day; different passages only reach it if they mean the same."""
_TEXTS_AT_ONCE = 64
_MOST_NAMED = 20
_MOST_LANGUAGES = 5


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check; it passed if there are no problems."""

    problems: tuple[str, ...]
    documents: int = 0
    chunks: int = 0


def check_rows(lake: Lake, shard: Shard, doc_ids: Sequence[str] | None = None) -> CheckResult:
    """Check that the table holds exactly the current documents and chunks, each once.

    With `doc_ids`, ids are compared for those documents only; otherwise for all. Row counts are always compared.
    """
    raw, cut, table = lake.open(RAW_DOCUMENTS, shard), lake.open(CHUNKS, shard), lake.open(SHARDS, shard)
    counted: Counter[str] = Counter()
    for where in document_filters(doc_ids, raw, cut, table):
        documents = Counter(column_values(raw, "doc_id", where=where))
        chunks = Counter(column_values(cut, "chunk_id", where=where))
        rows = Counter(column_values(table, "chunk_id", where=where))
        indexed = set(column_values(table, "doc_id", where=where))
        counted["duplicate documents"] += documents.total() - len(documents)
        counted["duplicate chunks"] += chunks.total() - len(chunks)
        counted["duplicate chunk ids in the table"] += rows.total() - len(rows)
        counted["chunks missing from the table"] += len(chunks.keys() - rows.keys())
        counted["rows in the table without a chunk"] += len(rows.keys() - chunks.keys())
        counted["documents missing from the table or from raw_documents"] += len(documents.keys() ^ indexed)
    problems = [f"{count} {what}" for what, count in counted.items() if count]
    difference = abs(row_count(cut) - row_count(table))
    if difference:
        problems.append(f"row count differs from chunk count by {difference}")
    return CheckResult(tuple(problems), row_count(raw), row_count(table))


def check_coverage(lake: Lake, shard: Shard, doc_ids: Sequence[str] | None = None) -> CheckResult:
    """Check that the passages of each document were cut from its current text and cover all words of it.

    `check_rows` cannot detect lost text: it compares with the passages. With `doc_ids`, only those documents are read.
    """
    raw, cut = lake.open(RAW_DOCUMENTS, shard), lake.open(CHUNKS, shard)
    documents = 0
    lost: list[tuple[str, int]] = []
    names = ("doc_id", "key", "text", "content_hash")
    for where in document_filters(doc_ids, raw, cut):
        spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for doc_id, content, start, end in rows_of(cut, "doc_id", "content_hash", "start", "end", where=where):
            spans.setdefault((doc_id, content), []).append((start, end))
        # A few at a time: a text may be as long as a book.
        for doc_id, key, text, content in rows_of(raw, *names, where=where, batch_rows=_TEXTS_AT_ONCE):
            documents += 1
            missing = uncovered(text, sorted(spans.get((doc_id, content), ())))
            if missing:
                lost.append((key, missing))
    named = ", ".join(f"{key} ({missing} characters)" for key, missing in sorted(lost)[:_MOST_NAMED])
    problems = (f"text of {len(lost)} documents is in no passage: {named}",) if lost else ()
    return CheckResult(problems, documents, row_count(cut))


def uncovered(text: str, spans: Iterable[tuple[int, int]]) -> int:
    """Count the letters and digits outside the spans, which are sorted by their starts."""
    lost = end = 0
    for start, stop in spans:
        if start > end:
            lost += sum(map(str.isalnum, text[end:start]))
        end = max(end, stop)
    return lost + sum(map(str.isalnum, text[end:]))


def check_languages(lake: Lake, shard: Shard, identity: EmbedderIdentity) -> tuple[dict[str, int], str | None]:
    """Return the chunks by language, and a problem if the embedding model does not read the languages of most."""
    table = lake.open(SHARDS, shard)
    languages = {} if table is None else chunks_by_language(table)
    read = identity.reads
    unread = {} if read is None else {name: count for name, count in languages.items() if name and name not in read}
    if 2 * sum(unread.values()) <= sum(languages.values()):
        return languages, None
    named = ", ".join(sorted(unread, key=lambda name: -unread[name])[:_MOST_LANGUAGES])
    return languages, (
        f"{sum(unread.values())} of {sum(languages.values())} passages are in languages (ISO 639-1: {named}) that the "
        f"embedding model {identity.model} does not read; they are found by words only. Install rag-shards[torch], set "
        f"RAG_EMBEDDING_MODEL to a multilingual model such as {MULTILINGUAL_MODEL}, and run rag-assets backfill"
    )


def check_vectors(
    lake: Lake,
    shard: Shard,
    identity: EmbedderIdentity,
    load: Callable[[], Embedder] | None = None,
    doc_ids: Sequence[str] | None = None,
) -> CheckResult:
    """Check that the vectors come from the configured embedder, have unit length (sampled), and are indexed.

    If the head is not published yet, a sample of rows is compared with `chunks` and `embeddings`; with `load`, some of
    their texts are embedded again. At least half of the sample comes from the documents `doc_ids`, if there are any.
    """
    table = lake.open(SHARDS, shard)
    if table is None:
        return CheckResult(("the shard has no table",))
    problems: list[str] = []
    found = table_fingerprint(table)
    if found != identity.fingerprint:
        problems.append(f"vectors come from embedder {found or 'unknown'} instead of {identity.fingerprint}")
    sampled: list[Any] = table.search().select(["vector"]).limit(_SAMPLED_VECTORS).to_arrow()["vector"].to_pylist()
    sample = np.asarray(sampled, dtype=np.float32).reshape(len(sampled), -1 if sampled else identity.dimensions)
    lengths = np.linalg.norm(sample, axis=1)
    wrong = int((np.abs(lengths - 1) > 0.02).sum()) if identity.normalized else 0
    if wrong:
        problems.append(f"{wrong} of {len(sample)} sampled vectors do not have unit length")
    outside = unindexed_rows(table)
    if outside > UNINDEXED_ROWS:
        problems.append(f"{outside} rows are not indexed (limit {UNINDEXED_ROWS})")
    if not problems and not _is_sampled(lake, shard, table.version):
        problems += _sample_problems(lake, shard, table, identity, load, doc_ids or ())
        if not problems and load is not None:
            update_record(lake, shard, lambda record: record.model_copy(update={"vectors_sampled": table.version}))
    return CheckResult(tuple(problems), chunks=table.count_rows())


def _is_sampled(lake: Lake, shard: Shard, version: int) -> bool:
    """Return whether the version is published, or passed this check before."""
    found = read_catalog_entry(lake.objects, shard)
    if found is not None and found[0].current.version == version:
        return True
    return read_record(lake, shard).vectors_sampled == version


def _sample_problems(
    lake: Lake,
    shard: Shard,
    table: Table,
    identity: EmbedderIdentity,
    load: Callable[[], Embedder] | None,
    doc_ids: Sequence[str],
) -> list[str]:
    cut, embeddings = lake.open(CHUNKS, shard), lake.open(EMBEDDINGS, shard, fingerprint=identity.fingerprint)
    rows = _sampled_rows(table, doc_ids)
    if not rows or cut is None or embeddings is None:  # `check_rows` reports that
        return []
    where = sql_in("doc_id", {row["doc_id"] for row in rows})
    where += f" AND {sql_in('chunk_id', [row['chunk_id'] for row in rows])}"
    names = ["chunk_id", "embed_hash", "context", "text"]
    chunks = {row["chunk_id"]: row for row in read(cut, names, where=where).to_pylist()}
    rows = [row for row in rows if row["chunk_id"] in chunks]
    hashes = {chunks[row["chunk_id"]]["embed_hash"] for row in rows}
    found = read(embeddings, ["embed_hash", "vector"], where=sql_in("embed_hash", hashes)).to_pylist()
    vectors = {row["embed_hash"]: row["vector"] for row in found}
    problems: list[str] = []
    texts = sum(row["text"] != chunks[row["chunk_id"]]["text"] for row in rows)
    if texts:
        problems.append(f"{texts} of {len(rows)} sampled rows differ in text from their chunk")
    strange = sum(row["vector"] != vectors.get(chunks[row["chunk_id"]]["embed_hash"]) for row in rows)
    if strange:
        problems.append(f"{strange} of {len(rows)} sampled rows differ in vector from embeddings")
    if rows and load is not None and not problems:
        # The shorter half of twice as many rows costs a third, and reveals mixed-up vectors just as well.
        shortest = sorted(rows[: 2 * _EMBEDDED_ROWS], key=lambda row: len(row["text"]))[:_EMBEDDED_ROWS]
        embedded = [chunks[row["chunk_id"]]["context"] + row["text"] for row in shortest]
        lowest = _lowest_cosine(load(), embedded, [row["vector"] for row in shortest])
        if lowest < _SAME_TEXT:
            problems.append(f"a sampled vector does not match its text (cosine {lowest:.3f}, minimum {_SAME_TEXT})")
    return problems


def _lowest_cosine(embedder: Embedder, texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> float:
    """Embed the texts again and return the lowest cosine with the stored vectors."""
    fresh = embedder.embed_documents(texts)
    stored = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(fresh, axis=1) * np.linalg.norm(stored, axis=1)
    return float(((fresh * stored).sum(axis=1) / np.maximum(lengths, 1e-9)).min())


def _sampled_rows(table: Table, doc_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the same sample for the same version: rows of a few of the documents alternate with rows of the rest."""
    names = ["chunk_id", "doc_id", "text", "vector"]
    count = min(_COMPARED_ROWS, table.count_rows())
    offsets = [table.count_rows() * number // count for number in range(count)]
    if not offsets:
        return []
    everywhere: list[dict[str, Any]] = table.take_offsets(offsets).select(names).to_arrow().to_pylist()
    # The first rows are embedded again; they must not all be the oldest ones.
    everywhere.sort(key=lambda row: row["chunk_id"])
    some = sorted(doc_ids)[:: max(1, len(doc_ids) // _EMBEDDED_ROWS)][:_EMBEDDED_ROWS]
    touched: dict[str, dict[str, Any]] = {}
    for row in sorted(read(table, names, where=sql_in("doc_id", some)).to_pylist(), key=lambda row: row["chunk_id"]):
        touched.setdefault(row["doc_id"], row)
    mixed = [row for pair in zip_longest(touched.values(), everywhere) for row in pair if row is not None]
    return list({row["chunk_id"]: row for row in mixed}.values())[:_COMPARED_ROWS]
