"""The step from `chunks` to `embeddings`: vectors by content, so that no text of a shard is ever embedded twice."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from rag_assets.storage.id_indexes import ensure_id_indexes
from rag_assets.storage.lake import Log, columns, row_count, scan, values
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, embedding_schema
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.embedders.base import Embedder, EmbedderIdentity
from rag_serving.lake.sql import sql_in

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from lancedb.table import Table

_WINDOW_TOKENS = 100_000
"""Tokens of the texts that are sorted by length together: enough for batches without padding, little enough to commit
often and to hold in memory."""
_WINDOW_TEXTS = 2_048
"""Texts of a window at most: of short ones, 100,000 tokens would be tens of megabytes of vectors."""
_AHEAD = 2
"""Windows embedded at once: the streams go on with one while the other is tokenised, and a third is written."""
_FILTERED = 2000
"""Up to so many missing texts are asked for by name; more are found in one pass over the table."""


@dataclass(slots=True)
class EmbeddingReport:
    """What a run of the step did. `vectors` counts what the table holds afterwards."""

    embedded: int = 0
    reused: int = 0
    """Distinct texts of the documents looked at that had a vector already."""
    dropped: int = 0
    vectors: int = 0
    tokens: int = 0
    seconds: float = 0.0


def sync_embeddings(
    writer: ShardWriter, identity: EmbedderIdentity, load: Callable[[], Embedder], log: Log
) -> EmbeddingReport:
    """Bring `embeddings` of the shard to one vector for every distinct text in `chunks`.

    Vectors that no chunk needs any more are dropped when whole tables are compared. `load` gives the embedder of that
    identity; it is called only when something must be embedded.
    """
    started = time.monotonic()
    report = EmbeddingReport()
    fingerprint = identity.fingerprint
    if writer.progress.fingerprint != fingerprint:
        writer.mark_dirty(None)
    dirty = writer.dirty
    chunks, table = writer.table(CHUNKS), writer.table(EMBEDDINGS, fingerprint)
    wanted = set(_hashes(chunks, None if dirty is None else sql_in("doc_id", dirty)))
    found = _hashes(table, None if dirty is None else sql_in("embed_hash", sorted(wanted)))
    repeated = {hashed for hashed, times in found.items() if times > 1}
    missing = wanted - (found.keys() - repeated)
    report.reused = len(wanted) - len(missing)
    unused = {*repeated, *(found.keys() - wanted)}
    if unused:
        report.dropped = len(unused)
        writer.delete(EMBEDDINGS, "embed_hash", sorted(unused), fingerprint=fingerprint)
    count = len(missing)
    del wanted, found, repeated, unused  # of a large shard, tens of megabytes for as long as it is embedded
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
    table = writer.table(EMBEDDINGS, fingerprint)
    report.vectors = row_count(table)
    report.seconds = time.monotonic() - started
    return report


def _hashes(table: Table | None, where: str | None) -> Counter[str]:
    counted: Counter[str] = Counter()
    for batch in scan(table, ["embed_hash"], where=where):
        counted.update(values(batch, "embed_hash"))
    return counted


def vector_array(vectors: npt.NDArray[np.float32]) -> pa.Array[Any]:
    """A matrix of shape ``(rows, dimensions)`` as an Arrow column, without a copy."""
    flat: Any = pa.array(vectors.ravel())
    return cast("pa.Array[Any]", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))


@dataclass(frozen=True, slots=True)
class Window:
    """Texts that are embedded together, with the addresses of their vectors and the sum of their tokens."""

    hashes: list[str]
    texts: list[str]
    tokens: int


def embedded(embedder: Embedder, windows: Iterable[Window]) -> Iterator[tuple[Window, npt.NDArray[np.float32]]]:
    """Each window with its vectors, in order, while the next are read and embedded already."""
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
    """The texts of the missing vectors, each once; empties `missing`."""
    where = sql_in("embed_hash", sorted(missing)) if len(missing) <= _FILTERED else None
    window = Window([], [], 0)
    names = ["embed_hash", "context", "text", "tokens"]
    for batch in scan(chunks, names, where=where):
        for hashed, context, text, tokens in columns(batch, *names):
            if hashed not in missing:
                continue
            missing.discard(hashed)
            window.hashes.append(hashed)
            window.texts.append(context + text)
            window = replace(window, tokens=window.tokens + tokens)
            if window.tokens >= _WINDOW_TOKENS or len(window.hashes) == _WINDOW_TEXTS:
                yield window
                window = Window([], [], 0)
    if window.hashes:
        yield window
