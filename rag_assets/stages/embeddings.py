"""The step from `chunks` to `embeddings`: vectors by content, so that no text of a shard is embedded twice."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rag_assets.storage.batches import batches
from rag_assets.storage.id_indexes import ensure_id_indexes
from rag_assets.storage.lake import Log, Table, column_values, row_count, rows_of
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, embedding_schema
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.embedders.base import Embedder, EmbedderIdentity
from rag_serving.lake.sql import sql_in

_WINDOW_TOKENS = 100_000
"""Tokens of the texts that are sorted by length together: enough to avoid padding, few enough to commit often."""
_WINDOW_TEXTS = 2_048
"""Most texts in a window: 100,000 tokens of short texts would have tens of megabytes of vectors."""
_AHEAD = 2
"""Windows embedded concurrently: inference continues while the next is tokenised and the last is written."""
_FILTERED = 2000
"""Up to this many missing texts are selected by a filter; more are found in one pass over the table."""


@dataclass(slots=True)
class EmbeddingReport:
    """What a run of the step did; `vectors` counts the rows afterwards."""

    embedded: int = 0
    reused: int = 0
    """Distinct texts of the compared documents that already had a vector."""
    dropped: int = 0
    vectors: int = 0
    tokens: int = 0
    seconds: float = 0.0


def sync_embeddings(
    writer: ShardWriter, identity: EmbedderIdentity, load: Callable[[], Embedder], log: Log
) -> EmbeddingReport:
    """Update the shard's `embeddings` to hold one vector for every distinct text in `chunks`.

    Unused vectors are dropped when whole tables are compared. `load` is called only if something must be embedded.
    """
    started = time.monotonic()
    report = EmbeddingReport()
    fingerprint = identity.fingerprint
    if writer.progress.fingerprint != fingerprint:
        writer.mark_dirty(None)
    dirty = writer.dirty
    chunks, table = writer.table(CHUNKS), writer.table(EMBEDDINGS, fingerprint)
    among = None if dirty is None else sql_in("doc_id", dirty)
    wanted: set[str] = set(column_values(chunks, "embed_hash", where=among))
    among = None if dirty is None else sql_in("embed_hash", sorted(wanted))
    found: Counter[str] = Counter(column_values(table, "embed_hash", where=among))
    repeated = {hashed for hashed, times in found.items() if times > 1}
    missing = wanted - (found.keys() - repeated)
    report.reused = len(wanted) - len(missing)
    unused = {*repeated, *(found.keys() - wanted)}
    if unused:
        report.dropped = len(unused)
        writer.delete(EMBEDDINGS, "embed_hash", sorted(unused), fingerprint=fingerprint)
    count = len(missing)
    del wanted, found, repeated, unused  # tens of megabytes for a large shard
    if missing:
        embedder = load()
        schema = embedding_schema(identity.dimensions)
        writer.ensure(EMBEDDINGS, schema, fingerprint)
        for window, vectors in embedded(embedder, _windows(chunks, missing)):
            rows = pa.Table.from_arrays([pa.array(window.hashes), vector_array(vectors)], schema=schema)
            writer.append(EMBEDDINGS, rows, fingerprint=fingerprint)
            report.embedded += len(window.hashes)
            report.tokens += window.tokens
            spent = time.monotonic() - started
            left = (count - report.embedded) * spent / report.embedded
            log(
                f"{writer.shard}: {report.embedded} of {count} chunks embedded "
                f"({report.embedded / spent:.0f}/s, {report.tokens / spent:.0f} tokens/s, {left:.0f} s left)"
            )
    ensure_id_indexes(writer, EMBEDDINGS, fingerprint)
    report.vectors = row_count(writer.table(EMBEDDINGS, fingerprint))
    report.seconds = time.monotonic() - started
    return report


def vector_array(vectors: npt.NDArray[np.float32]) -> "pa.Array[Any]":
    """Return a matrix of shape ``(rows, dimensions)`` as an Arrow column, without a copy."""
    flat: Any = pa.array(vectors.ravel())
    return cast("pa.Array[Any]", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))


@dataclass(frozen=True, slots=True)
class Window:
    """Texts that are embedded together, with the hashes of the texts and the sum of their tokens."""

    hashes: list[str]
    texts: list[str]
    tokens: int


def embedded(embedder: Embedder, windows: Iterable[Window]) -> Iterator[tuple[Window, npt.NDArray[np.float32]]]:
    """Yield each window with its vectors, in order, while the next ones are read and embedded."""
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="window") as threads:
        running: deque[tuple[Window, Future[npt.NDArray[np.float32]]]] = deque()
        try:
            for window in windows:
                running.append((window, threads.submit(embedder.embed_documents, window.texts)))
                if len(running) > _AHEAD:
                    done, vectors = running.popleft()
                    yield done, vectors.result()
            while running:
                done, vectors = running.popleft()
                yield done, vectors.result()
        finally:
            for _, vectors in running:
                vectors.cancel()


def _windows(chunks: Table | None, missing: set[str]) -> Iterator[Window]:
    """Yield the texts of the missing vectors, each once; empties `missing`."""
    where = sql_in("embed_hash", sorted(missing)) if len(missing) <= _FILTERED else None

    def texts() -> Iterator[tuple[str, str, int]]:
        for hashed, context, text, tokens in rows_of(chunks, "embed_hash", "context", "text", "tokens", where=where):
            if hashed in missing:
                missing.discard(hashed)
                yield hashed, context + text, tokens

    for batch in batches(texts(), _WINDOW_TEXTS, weigh=lambda text: text[2], most_weight=_WINDOW_TOKENS):
        yield Window([text[0] for text in batch], [text[1] for text in batch], sum(text[2] for text in batch))
