"""Roll a shard back to an older published version, and release it again."""

from datetime import UTC, datetime

from rag_assets.errors import VersionNotKept
from rag_assets.publishing.catalog_writes import next_entry, put_entry
from rag_assets.publishing.retention import kept_versions
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.catalog_entry import CatalogEntry, Hold, read_catalog_entry
from rag_serving.lake.tables import SHARDS


def rollback(writer: ShardWriter, *, by: str, to: int | None = None) -> CatalogEntry:
    """Make an older published version current, and hold the shard there until it is released.

    `to` is a version of the history; None: the last one before the current. Raises `VersionNotKept`.
    """
    found = read_catalog_entry(writer.lake.objects, writer.shard)
    table = writer.table(SHARDS)
    if found is None or table is None:
        raise VersionNotKept(f"shard {writer.shard} was never published; there is nothing to roll back to")
    entry = found[0]
    kept = kept_versions(table)
    candidates = [old for old in entry.history if old.version in kept and old.version != entry.current.version]
    chosen = next((old for old in candidates if to is None or old.version == to), None)
    if chosen is None:
        versions = ", ".join(map(str, sorted({old.version for old in candidates})))
        wanted = "an older version" if to is None else f"version {to}"
        raise VersionNotKept(
            f"shard {writer.shard} (now at version {entry.current.version}) keeps "
            + (f"versions {versions} to go back to, not {wanted}" if versions else "no older version to go back to")
        )
    now = datetime.now(UTC)
    again = chosen.model_copy(update={"published_at": now, "published_by": by})
    hold = Hold(by=by, since=now, built_source_digest=writer.progress.source_digest)
    rolled = next_entry(writer, entry, again).model_copy(update={"hold": hold})
    put_entry(writer, rolled, found)
    return rolled


def release(writer: ShardWriter) -> CatalogEntry | None:
    """Let runs publish again; return None if the shard is not on hold. The next run publishes what was built since."""
    found = read_catalog_entry(writer.lake.objects, writer.shard)
    if found is None or found[0].hold is None:
        return None
    released = found[0].model_copy(update={"hold": None, "epoch": writer.lease.epoch})
    put_entry(writer, released, found)
    return released
