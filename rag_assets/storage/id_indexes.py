"""Finding a few rows by their ids: the scalar indexes of large tables, and whole tables a range of ids at a time.

A filter by ids reads the whole column where there is no index. That is quicker than an index in a small table and the
bulk of a run's time in a large one, so a table gets its indexes when it has grown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from rag_assets.storage.lake import KEEP_VERSIONS, row_count, small_fragments
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, QUARANTINE, RAW_DOCUMENTS
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import SHARDS

if TYPE_CHECKING:
    from lancedb.table import Table

ID_INDEX_ROWS = 5_000
"""Rows from which a table gets indexes of its ids, and rows beyond them from which they are made anew."""

ID_COLUMNS = {
    RAW_DOCUMENTS: ("doc_id", "object_id"),
    QUARANTINE: ("object_id",),
    CHUNKS: ("doc_id", "embed_hash"),
    EMBEDDINGS: ("embed_hash",),
    SHARDS: ("doc_id",),
}
"""The columns by which rows of each stage's table are asked for."""
RANGE_ROWS = 16_384
"""Rows of a table that are compared at once: what bounds the memory of comparing whole tables."""
_SMALL_FRAGMENTS = 100


def ensure_id_indexes(writer: ShardWriter, stage: str, fingerprint: str = "") -> bool:
    """Give the stage's table the indexes that it is due, and make worn ones anew; whether anything was made."""
    table = writer.table(stage, fingerprint)
    if table is None or table.count_rows() < ID_INDEX_ROWS:
        return False
    if all(0 <= _left_out(table, column) < ID_INDEX_ROWS for column in ID_COLUMNS[stage]):
        return False
    writer.maintain(stage, lambda table: _rebuild(table, stage), fingerprint=fingerprint)
    return True


def index_ids(table: Table, column: str) -> None:
    """Make the index of a column of ids anew, in one segment."""
    from lancedb.index import BTree

    # Only filters use it: merges must not, see `ShardWriter.replace`.
    table.create_index(column, config=BTree(), replace=True)


def id_bounds(rows: int) -> list[str]:
    """Where to part so many rows, so that about `RANGE_ROWS` lie between two bounds; none for few rows.

    Ids are the hex digits of hashes, and so spread evenly.
    """
    count = -(-rows // RANGE_ROWS)
    return [f"{2**32 * number // count:08x}" for number in range(1, count)]


def dirty_filters(writer: ShardWriter, *stages: str) -> Iterable[str | None]:
    """Return filters of the documents that a step must compare, each of few enough to do at once."""
    if writer.dirty is not None:
        return [sql_in("doc_id", writer.dirty)] if writer.dirty else []
    return id_ranges("doc_id", max(row_count(writer.table(stage)) for stage in stages))


def id_ranges(column: str, rows: int) -> Iterator[str | None]:
    """Filters that part a table of so many rows at `id_bounds` of a column, in order; None for the whole table."""
    for low, high in pairwise(["", *id_bounds(rows), ""]):
        above = [f"{column} >= '{low}'"] if low else []
        below = [f"{column} < '{high}'"] if high else []
        yield " AND ".join(above + below) or None


def _left_out(table: Table, column: str) -> int:
    """Rows that the column's index does not cover; -1 without an index."""
    for index in table.list_indices():
        if index.columns == [column]:
            stats = table.index_stats(index.name)
            return -1 if stats is None else int(stats.num_unindexed_rows)
    return -1


def _rebuild(table: Table, stage: str) -> None:
    if small_fragments(table) > _SMALL_FRAGMENTS:
        # The many batches of a first run: every later look at the table would open all their files.
        table.optimize(cleanup_older_than=KEEP_VERSIONS)
    for column in ID_COLUMNS[stage]:
        index_ids(table, column)
