"""Find rows by id: scalar indexes for large tables, and filters that split a table into ranges of ids.

Without an index, a filter by ids reads the whole column. That is faster for a small table, but takes most of a run for
a large one, so a table gets its indexes once it has grown.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from rag_assets.storage.lake import KEEP_ALL_VERSIONS, Table, row_count, small_fragments
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, QUARANTINE, RAW_DOCUMENTS
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import SHARDS

ID_INDEX_ROWS = 5_000
"""Rows at which a table gets its id indexes, and unindexed rows at which they are rebuilt."""

ID_COLUMNS = {
    RAW_DOCUMENTS: ("doc_id", "object_id"),
    QUARANTINE: ("object_id",),
    CHUNKS: ("doc_id", "embed_hash"),
    EMBEDDINGS: ("embed_hash",),
    SHARDS: ("doc_id",),
}
"""The columns by which each stage's rows are looked up."""
RANGE_ROWS = 16_384
"""Rows compared at once; bounds the memory of comparing whole tables."""
_SMALL_FRAGMENTS = 100


def ensure_id_indexes(writer: ShardWriter, stage: str, fingerprint: str = "") -> bool:
    """Build the indexes that the stage's table is missing, and rebuild outdated ones; return whether it did."""
    table = writer.table(stage, fingerprint)
    if table is None or table.count_rows() < ID_INDEX_ROWS:
        return False
    if all(0 <= _left_out(table, column) < ID_INDEX_ROWS for column in ID_COLUMNS[stage]):
        return False
    writer.maintain(stage, lambda table: _rebuild(table, stage), fingerprint=fingerprint)
    return True


def index_ids(table: Table, column: str) -> None:
    """Build the index of a column of ids, in one segment."""
    from lancedb.index import BTree

    # Only filters use it: merges must not, see `lake.replace_rows`.
    table.create_index(column, config=BTree(), replace=True)


def id_bounds(rows: int) -> list[str]:
    """Return the bounds that split so many rows into ranges of about `RANGE_ROWS`; empty for few rows.

    Ids are hex digits of hashes, so they are evenly distributed.
    """
    count = -(-rows // RANGE_ROWS)
    return [f"{2**32 * number // count:08x}" for number in range(1, count)]


def document_filters(doc_ids: Sequence[str] | None, *tables: Table | None) -> Iterable[str | None]:
    """Return filters of the documents to compare in the tables, by bounded ranges; `doc_ids` None means all."""
    if doc_ids is not None:
        return [sql_in("doc_id", doc_ids)] if doc_ids else []
    return id_ranges("doc_id", max(map(row_count, tables)))


def id_ranges(column: str, rows: int) -> Iterator[str | None]:
    """Yield filters that split a table of so many rows at `id_bounds`, in order; None for a single range."""
    for low, high in pairwise(["", *id_bounds(rows), ""]):
        above = [f"{column} >= '{low}'"] if low else []
        below = [f"{column} < '{high}'"] if high else []
        yield " AND ".join(above + below) or None


def _left_out(table: Table, column: str) -> int:
    """Return the number of rows that the column's index does not cover; -1 without an index."""
    for index in table.list_indices():
        if index.columns == [column]:
            stats = table.index_stats(index.name)
            return -1 if stats is None else int(stats.num_unindexed_rows)
    return -1


def _rebuild(table: Table, stage: str) -> None:
    if small_fragments(table) > _SMALL_FRAGMENTS:
        # A first run leaves one file per batch; every later read of the table would open them all.
        table.optimize(cleanup_older_than=KEEP_ALL_VERSIONS)
    for column in ID_COLUMNS[stage]:
        index_ids(table, column)
