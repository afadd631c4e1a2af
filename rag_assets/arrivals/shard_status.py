"""The state of every shard, for commands and the check `no_shard_left_behind`: the listing beside the catalog."""

from collections.abc import Mapping
from dataclasses import dataclass

from rag_assets.arrivals.listing import published_listing_digests, sweep
from rag_assets.sources.base import Source
from rag_assets.sources.listing_digest import listing_digest
from rag_serving.lake.catalog import Snapshot
from rag_serving.lake.shards import Shard


@dataclass(frozen=True)
class ShardStates:
    """The source and the lake as they are now, by shard."""

    listed: Mapping[Shard, str]
    """Digests of what the source lists."""
    published: Mapping[Shard, str]
    """Digests of what the published versions were made from; empty where another embedder made them."""
    held: Mapping[Shard, str]
    """Shards held at their version, and by whom."""
    broken: Mapping[str, str]
    """Catalog objects that do not validate, and why."""
    objects: int
    outside: int
    outside_examples: tuple[str, ...]


def survey(source: Source, snapshot: Snapshot, fingerprint: str | None) -> ShardStates:
    """List the whole source and compare it with the catalog; `fingerprint` is the configured embedder's.

    Raises `SourceUnavailable`.
    """
    seen = sweep(source, seconds=float("inf"))
    held = {shard: entry.hold.by for shard, entry in snapshot.entries.items() if entry.hold is not None}
    published = published_listing_digests(snapshot.entries, fingerprint)
    # A shard whose objects are all gone is listed as empty, unless that is what is published already.
    empty = listing_digest(())
    listed = {**dict.fromkeys(published, empty), **seen.digests}
    return ShardStates(listed, published, held, snapshot.broken, seen.objects, seen.outside, seen.outside_examples)
