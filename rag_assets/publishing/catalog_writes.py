"""Conditional writes of catalog entries.

The epoch in an entry rejects writers whose lease was taken over; `storage.fence` does the same for tables.
"""

from rag_assets.errors import LeaseLost
from rag_assets.storage.lake import Lake
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.errors import WriteConflict
from rag_serving.lake.catalog_entry import HISTORY_LENGTH, CatalogEntry, Publication, catalog_key, read_catalog_entry
from rag_serving.lake.object_store import ABSENT
from rag_serving.lake.shards import Shard


def reject_older_writers(lake: Lake, shard: Shard, epoch: int) -> None:
    """Write the epoch into the catalog object, so that a publish prepared under an older epoch fails."""
    found = read_catalog_entry(lake.objects, shard)
    if found is not None and found[0].epoch < epoch:
        _put(lake, shard, found[0].model_copy(update={"epoch": epoch}), expect=found[1])


def next_entry(writer: ShardWriter, entry: CatalogEntry | None, publication: Publication) -> CatalogEntry:
    """Return an entry that makes the publication current and moves the one before it to the history."""
    return CatalogEntry(
        format=1,
        region=writer.shard.region,
        department=writer.shard.department,
        table=writer.shard.table_name,
        epoch=writer.lease.epoch,
        current=publication,
        history=() if entry is None else (entry.current, *entry.history)[:HISTORY_LENGTH],
        hold=None,
    )


def put_entry(writer: ShardWriter, entry: CatalogEntry, found: tuple[CatalogEntry, str] | None) -> None:
    """Replace the catalog object that was found; raise `LeaseLost` if another writer changed it."""
    if found is not None and found[0].epoch > writer.lease.epoch:
        raise LeaseLost(f"shard {writer.shard} was published by a later writer; run it again")
    writer.lease.check()
    _put(writer.lake, writer.shard, entry, expect=ABSENT if found is None else found[1])


def _put(lake: Lake, shard: Shard, entry: CatalogEntry, *, expect: str) -> None:
    try:
        lake.objects.put(catalog_key(shard), entry.to_json(), expect=expect)
    except WriteConflict as error:
        raise LeaseLost(f"shard {shard} was published by another writer in the meantime; run it again") from error
