"""Stop serving a shard that the source no longer has."""

from rag_assets.errors import ShardNotGone
from rag_assets.sources.base import Source, has_documents
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.catalog_entry import CatalogEntry, catalog_key, read_catalog_entry


def retire(writer: ShardWriter, source: Source) -> CatalogEntry | None:
    """Delete the shard's catalog entry and return it; None if there is none.

    Raises `ShardNotGone` if the source has documents of the shard, which would be published again, or
    `SourceUnavailable` if it cannot be listed.
    """
    if has_documents(source, writer.shard):
        raise ShardNotGone(
            f"the source has documents of {writer.shard}; remove them first, or they are published again"
        )
    found = read_catalog_entry(writer.lake.objects, writer.shard)
    if found is None:
        return None
    writer.lease.check()
    writer.lake.objects.delete(catalog_key(writer.shard))
    return found[0]
