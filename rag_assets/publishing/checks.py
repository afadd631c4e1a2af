"""Checks of a built search table: rows, coverage of documents, vectors.

Retrieval is judged in `evaluation`; `publish` runs both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rag_assets.evaluation.records import read_record, update_record
from rag_assets.storage.id_indexes import id_ranges
from rag_assets.storage.lake import Lake, columns, read, row_count, scan, values
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, RAW_DOCUMENTS
from rag_assets.storage.search_indexes import UNINDEXED_ROWS, table_fingerprint, unindexed_rows
from rag_serving.lake.catalog_entry import read_catalog_entry
from rag_serving.lake.embedders.base import Embedder, EmbedderIdentity
from rag_serving.lake.shards import Shard
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import SHARDS

if TYPE_CHECKING:
    from lancedb.table import Table

_SAMPLED_VECTORS = 1000
_COMPARED_ROWS = 32
"""Rows of a new table whose vectors are compared with those that `embeddings` has of their texts."""
_EMBEDDED_ROWS = 8
"""Those whose texts are embedded again: a tenth of a second here, one call where the model is behind an API."""
_SAME_TEXT = 0.98
"""Least cosine of two vectors of one text. Batches, precisions and runtimes of one model agree to 0.999, an API's model
from day to day nearly so; two different passages come this near only if they say the same."""
_TEXTS_AT_ONCE = 64
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found; no problems means that it passed."""

    problems: tuple[str, ...]
    documents: int = 0
    chunks: int = 0


def check_rows(lake: Lake, shard: Shard, doc_ids: Sequence[str] | None = None) -> CheckResult:
    """Whether the table holds exactly the documents read and the chunks cut, each once.

    With `doc_ids`, ids are compared for those documents alone, and for the rest the numbers of rows.
    """
    raw, cut, table = lake.open(RAW_DOCUMENTS, shard), lake.open(CHUNKS, shard), lake.open(SHARDS, shard)
    counted: Counter[str] = Counter()
    if doc_ids is None:
        ranges = id_ranges("doc_id", max(row_count(raw), row_count(cut), row_count(table)))
    else:
        ranges = [sql_in("doc_id", doc_ids)] if doc_ids else []
    for where in ranges:
        documents = _ids(raw, "doc_id", where)
        chunks = _ids(cut, "chunk_id", where)
        rows = _ids(table, "chunk_id", where)
        counted["documents more than once"] += documents.total() - len(documents)
        counted["chunks cut more than once"] += chunks.total() - len(chunks)
        counted["chunk ids more than once"] += rows.total() - len(rows)
        counted["chunks missing from the table"] += len(chunks.keys() - rows.keys())
        counted["rows in the table that are no chunk"] += len(rows.keys() - chunks.keys())
        counted["documents on one side only"] += len(documents.keys() ^ _ids(table, "doc_id", where).keys())
    counted["rows more or less than there are chunks"] = abs(row_count(cut) - row_count(table))
    problems = tuple(f"{count} {what}" for what, count in counted.items() if count)
    return CheckResult(problems, row_count(raw), row_count(table))


def check_coverage(lake: Lake, shard: Shard, doc_ids: Sequence[str] | None = None) -> CheckResult:
    """Whether the passages of each document hold all of its text but white space, and were cut from that text.

    `rows_reconcile` cannot tell: it takes what was cut for granted. With `doc_ids`, only those documents are read.
    """
    raw, cut = lake.open(RAW_DOCUMENTS, shard), lake.open(CHUNKS, shard)
    documents = 0
    lost: list[tuple[str, int]] = []
    if doc_ids is None:
        ranges = id_ranges("doc_id", max(row_count(raw), row_count(cut)))
    else:
        ranges = [sql_in("doc_id", doc_ids)] if doc_ids else []
    for where in ranges:
        spans = _spans(cut, where)
        for batch in _texts(raw, where):
            for doc_id, key, text, content in columns(batch, "doc_id", "key", "text", "content_hash"):
                documents += 1
                missing = uncovered(text, sorted(spans.get((doc_id, content), ())))
                if missing:
                    lost.append((key, missing))
    if not lost:
        return CheckResult((), documents, row_count(cut))
    named = ", ".join(f"{key} ({missing} characters)" for key, missing in sorted(lost)[:_MOST_NAMED])
    return CheckResult((f"text of {len(lost)} documents is in no passage: {named}",), documents, row_count(cut))


def uncovered(text: str, spans: Iterable[tuple[int, int]]) -> int:
    """Characters of the text, white space not counted, outside the spans, which come in the order of their starts."""
    lost = end = 0
    for start, stop in spans:
        if start > end:
            lost += len("".join(text[end:start].split()))
        end = max(end, stop)
    return lost + len("".join(text[end:].split()))


def check_vectors(
    lake: Lake,
    shard: Shard,
    identity: EmbedderIdentity,
    load: Callable[[], Embedder] | None = None,
    doc_ids: Sequence[str] | None = None,
) -> CheckResult:
    """Whether the vectors are of the configured embedder and of unit length (a sample), and the indexes cover them.

    Of a table that is not what is published, a few rows are compared with `chunks` and `embeddings`, and with `load`
    some of their texts embedded again: at least half of them of the documents `doc_ids`, where any are named.
    """
    table = lake.open(SHARDS, shard)
    if table is None:
        return CheckResult(("the shard has no table",))
    problems: list[str] = []
    found = table_fingerprint(table)
    if found != identity.fingerprint:
        problems.append(f"vectors of embedder {found or 'unknown'}, not of {identity.fingerprint}")
    sampled: list[Any] = table.search().select(["vector"]).limit(_SAMPLED_VECTORS).to_arrow()["vector"].to_pylist()
    sample = np.asarray(sampled, dtype=np.float32).reshape(len(sampled), -1 if sampled else identity.dimensions)
    lengths = np.linalg.norm(sample, axis=1)
    wrong = int((np.abs(lengths - 1) > 0.02).sum()) if identity.normalized else 0
    if wrong:
        problems.append(f"{wrong} of {len(sample)} sampled vectors are not of unit length")
    outside = unindexed_rows(table)
    if outside > UNINDEXED_ROWS:
        problems.append(f"{outside} rows outside an index, {UNINDEXED_ROWS} at most")
    if not problems and not _is_sampled(lake, shard, table.version):
        problems += _sample_problems(lake, shard, table, identity, load, doc_ids or ())
        if not problems and load is not None:
            update_record(lake, shard, lambda record: record.model_copy(update={"vectors_sampled": table.version}))
    return CheckResult(tuple(problems), chunks=table.count_rows())


def _is_sampled(lake: Lake, shard: Shard, version: int) -> bool:
    """Whether that version of the table is published, or its sample was found good already."""
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
    if not rows or cut is None or embeddings is None:  # `check_rows` has more to say of that
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
        problems.append(f"{texts} of {len(rows)} sampled rows have another text than their chunk")
    strange = sum(row["vector"] != vectors.get(chunks[row["chunk_id"]]["embed_hash"]) for row in rows)
    if strange:
        problems.append(f"{strange} of {len(rows)} sampled rows have another vector than embeddings has of their text")
    if rows and load is not None and not problems:
        # The shorter half of twice as many costs a third, and shows a mix-up as well.
        shortest = sorted(rows[: 2 * _EMBEDDED_ROWS], key=lambda row: len(row["text"]))[:_EMBEDDED_ROWS]
        embedded = [chunks[row["chunk_id"]]["context"] + row["text"] for row in shortest]
        lowest = _lowest_cosine(load(), embedded, [row["vector"] for row in shortest])
        if lowest < _SAME_TEXT:
            problems.append(f"a sampled vector is not that of its text (cosine {lowest:.3f}, {_SAME_TEXT} at least)")
    return problems


def _lowest_cosine(embedder: Embedder, texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> float:
    """Compare the vectors with those of their texts, embedded again."""
    anew = embedder.embed_documents(texts)
    have = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(anew, axis=1) * np.linalg.norm(have, axis=1)
    return float(((anew * have).sum(axis=1) / np.maximum(lengths, 1e-9)).min())


def _sampled_rows(table: Table, doc_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Some rows, the same of the same version: those of a few of the documents in turn with others from everywhere."""
    names = ["chunk_id", "doc_id", "text", "vector"]
    count = min(_COMPARED_ROWS, table.count_rows())
    offsets = [table.count_rows() * number // count for number in range(count)]
    if not offsets:
        return []
    everywhere: list[dict[str, Any]] = table.take_offsets(offsets).select(names).to_arrow().to_pylist()
    # The first are embedded, and must not all be of the oldest rows.
    everywhere.sort(key=lambda row: row["chunk_id"])
    some = sorted(doc_ids)[:: max(1, len(doc_ids) // _EMBEDDED_ROWS)][:_EMBEDDED_ROWS]
    touched: dict[str, dict[str, Any]] = {}
    for row in sorted(read(table, names, where=sql_in("doc_id", some)).to_pylist(), key=lambda row: row["chunk_id"]):
        touched.setdefault(row["doc_id"], row)
    mixed = [row for pair in zip_longest(touched.values(), everywhere) for row in pair if row is not None]
    return list({row["chunk_id"]: row for row in mixed}.values())[:_COMPARED_ROWS]


def _ids(table: Table | None, column: str, where: str | None) -> Counter[str]:
    counted: Counter[str] = Counter()
    for batch in scan(table, [column], where=where):
        counted.update(values(batch, column))
    return counted


def _spans(chunks: Table | None, where: str | None) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Where the chunks of documents begin and end, by document and by the text that they were cut from."""
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
    names = ["doc_id", "content_hash", "start", "end"]
    for batch in scan(chunks, names, where=where):
        for doc_id, content, start, end in columns(batch, *names):
            spans.setdefault((doc_id, content), []).append((start, end))
    return spans


def _texts(documents: Table | None, where: str | None) -> Iterator[pa.RecordBatch]:
    """Few at a time: a text may be as long as a book."""
    if documents is None:
        return
    query = documents.search().select(["doc_id", "key", "text", "content_hash"])
    yield from (query if where is None else query.where(where)).to_batches(_TEXTS_AT_ONCE)
