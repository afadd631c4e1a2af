"""Full-text and vector indexes of a search table: build them, and keep them covering its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_assets.storage.id_indexes import ID_INDEX_ROWS, index_ids
from rag_assets.storage.lake import KEEP_VERSIONS, small_fragments
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.tables import FINGERPRINT, SHARDS

if TYPE_CHECKING:
    from lancedb.table import Table

BATCH_CHUNKS = 4096
UNINDEXED_ROWS = 512
"""Rows beyond an index that a search may have to scan; more, and the index is brought up to date before publishing."""
_SMALL_FRAGMENTS = 20
"""Files beyond those that a first run leaves, one for a batch, from which the table is compacted."""


def table_fingerprint(table: Table) -> str:
    """The embedder whose vectors the table holds; empty when the table does not say."""
    return (table.schema.metadata or {}).get(FINGERPRINT, b"").decode(errors="replace")


def unindexed_rows(table: Table) -> int:
    """The most rows that any index of the table leaves out."""
    stats = [table.index_stats(index.name) for index in table.list_indices()]
    return max((int(stat.num_unindexed_rows) for stat in stats if stat is not None), default=0)


def keep_indexes(writer: ShardWriter, table: Table, rows: int, vector_index_rows: int) -> bool:
    """Create the indexes that are due and fold new rows in when too many lie outside; whether it compacted."""
    if rows == 0:
        return False
    indexed = {column for index in table.list_indices() for column in index.columns}
    if "text" not in indexed:
        writer.maintain(SHARDS, index_text)
    if "vector" not in indexed and rows >= vector_index_rows:
        writer.maintain(SHARDS, index_vectors)
    if "doc_id" not in indexed and rows >= ID_INDEX_ROWS:
        writer.maintain(SHARDS, lambda table: index_ids(table, "doc_id"))
    if unindexed_rows(table) > UNINDEXED_ROWS or small_fragments(table) > _SMALL_FRAGMENTS + rows // BATCH_CHUNKS:
        writer.maintain(SHARDS, lambda table: table.optimize(cleanup_older_than=KEEP_VERSIONS))
        return True
    return False


def index_text(table: Table) -> None:
    """Make the full-text index anew."""
    from lancedb.index import FTS

    # The ICU tokenizer finds words in Chinese and Japanese too, and still stems English.
    table.create_index("text", config=FTS(base_tokenizer="icu", with_position=False), replace=True)


def index_vectors(table: Table) -> None:
    """Make the vector index anew."""
    from lancedb.index import IvfRq

    table.create_index("vector", config=IvfRq(distance_type="cosine", num_bits=4), replace=True)
