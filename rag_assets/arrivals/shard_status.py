"""The state of every shard in the source, the catalog and the leases, for commands and `no_shard_left_behind`."""

from collections.abc import Mapping
from dataclasses import dataclass

from rag_assets.arrivals.listing import published_listing_digests, sweep
from rag_assets.sources.base import Source
from rag_assets.sources.left_out import LeftOut
from rag_assets.sources.listing_digest import listing_digest
from rag_assets.storage.lease import writer_of
from rag_serving.errors import RagError
from rag_serving.lake.catalog import Snapshot
from rag_serving.lake.catalog_entry import read_catalog_entry
from rag_serving.lake.object_store import ObjectStore
from rag_serving.lake.shards import Shard


@dataclass(frozen=True)
class ShardStates:
    """The current state of the source and the lake, by shard."""

    listed: Mapping[Shard, str]
    """Digests of the listings."""
    published: Mapping[Shard, str]
    """Listing digests of the published versions; empty for those of another embedder."""
    held: Mapping[Shard, str]
    """Shards on hold, and who put them on hold."""
    broken: Mapping[str, str]
    """Keys of invalid catalog objects, and the reason."""
    objects: int
    left_out: LeftOut


@dataclass(frozen=True)
class OtherIndexers:
    """What others do with the lake since a survey of it; a `rag_assets.runs.bulk.Others`."""

    objects: ObjectStore
    states: ShardStates
    fingerprint: str | None
    """Fingerprint of the configured embedding model."""
    source_root: str

    def indexed(self, shard: Shard) -> bool:
        """Return whether the shard differed from its listing in the survey and no longer does."""
        listed = self.states.listed.get(shard)
        if listed == self.states.published.get(shard):
            return False
        try:
            entry = read_catalog_entry(self.objects, shard)
        except RagError:  # the shard's run reports it
            return False
        if entry is None:
            return False
        return published_listing_digests({shard: entry[0]}, self.fingerprint, self.source_root)[shard] == listed

    def are_writing(self, shard: Shard) -> bool:
        """Return whether somebody holds the shard's lease."""
        try:
            return writer_of(self.objects, shard) is not None
        except RagError:
            return False


def survey(source: Source, snapshot: Snapshot, fingerprint: str | None) -> ShardStates:
    """List the whole source and compare it with the catalog; `fingerprint` is the configured embedder's."""
    seen = sweep(source, seconds=float("inf"))
    held = {shard: entry.hold.by for shard, entry in snapshot.entries.items() if entry.hold is not None}
    published = published_listing_digests(snapshot.entries, fingerprint, source.uri(""))
    # A shard without objects has an empty listing, which differs from the published one unless that is empty too.
    empty = listing_digest(())
    listed = {**dict.fromkeys(published, empty), **seen.digests}
    return ShardStates(listed, published, held, snapshot.broken, seen.objects, seen.left_out)
