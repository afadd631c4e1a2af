"""Build the full-text and vector indexes of a search table, and update them with its rows."""

from collections import Counter

from rag_assets.storage.id_indexes import ID_INDEX_ROWS, index_ids
from rag_assets.storage.lake import KEEP_ALL_VERSIONS, Table, column_values, small_fragments
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.search.words import LONGEST
from rag_serving.lake.tables import FINGERPRINT, SHARDS

BATCH_CHUNKS = 4096
UNINDEXED_ROWS = 512
"""Unindexed rows that a search may have to scan; above, the index is updated before publishing."""
WORDS_REBUILT_ROWS = 5_000
"""Rows up to which the full-text index is built again instead; that takes about 20 microseconds of CPU time per row."""
_SMALL_FRAGMENTS = 20
"""Files at which a table is compacted, besides those of its first run (one per batch)."""


def table_fingerprint(table: Table) -> str:
    """Return the fingerprint of the table's embedder; empty if its schema has none."""
    return (table.schema.metadata or {}).get(FINGERPRINT, b"").decode(errors="replace")


def chunks_by_language(table: Table) -> dict[str, int]:
    """Return the number of rows by language (empty if unknown), most first."""
    counted = Counter[str](column_values(table, "language"))
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def unindexed_rows(table: Table) -> int:
    """Return the number of rows outside the index that covers the fewest."""
    stats = [table.index_stats(index.name) for index in table.list_indices()]
    return max((int(stat.num_unindexed_rows) for stat in stats if stat is not None), default=0)


def keep_indexes(writer: ShardWriter, table: Table, rows: int, vector_index_rows: int, *, changed: bool = True) -> bool:
    """Create missing indexes, and add new rows to them once there are many; return whether it compacted.

    The full-text index of a small table is built again after every change. Otherwise its scores would depend on the
    history of the table, because replaced rows still count in its statistics.
    """
    if rows == 0:
        return False
    indexed = {column for index in table.list_indices() for column in index.columns}
    if "words" not in indexed or (changed and rows <= WORDS_REBUILT_ROWS):
        writer.maintain(SHARDS, index_words)
    if "vector" not in indexed and rows >= vector_index_rows:
        writer.maintain(SHARDS, index_vectors)
    if "doc_id" not in indexed and rows >= ID_INDEX_ROWS:
        writer.maintain(SHARDS, lambda table: index_ids(table, "doc_id"))
    if unindexed_rows(table) > UNINDEXED_ROWS or small_fragments(table) > _SMALL_FRAGMENTS + rows // BATCH_CHUNKS:
        writer.maintain(SHARDS, lambda table: table.optimize(cleanup_older_than=KEEP_ALL_VERSIONS))
        return True
    return False


def index_words(table: Table) -> None:
    """Build the full-text index of words that `rag_serving.lake.search.words` has prepared."""
    from lancedb.index import FTS

    config = FTS(
        base_tokenizer="whitespace",
        with_position=False,
        lower_case=False,
        stem=False,
        remove_stop_words=False,
        ascii_folding=False,
        max_token_length=LONGEST,
    )
    table.create_index("words", config=config, replace=True)


def index_vectors(table: Table) -> None:
    """Build the vector index."""
    from lancedb.index import IvfRq

    table.create_index("vector", config=IvfRq(distance_type="cosine", num_bits=4), replace=True)
