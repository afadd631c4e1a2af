"""How the shards stand: what the source lists, what is published, and which of Dagster's runs failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from rag_assets.arrivals.listing import published_listing_digests, sweep
from rag_assets.defs.partitions import shard_partitions
from rag_assets.defs.resources import PipelineResource
from rag_assets.sources.listing_digest import listing_digest
from rag_serving.lake.shards import Shard


@dataclass(frozen=True)
class State:
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


def survey(pipeline: PipelineResource) -> State:
    """List the whole source and read the catalog. Raises `SourceUnavailable`, `LakeUnavailable`, `SettingsError`."""
    seen = sweep(pipeline.source(), seconds=float("inf"))
    snapshot = pipeline.catalog().snapshot()
    entries = snapshot.entries
    held = {shard: entry.hold.by for shard, entry in entries.items() if entry.hold is not None}
    published = published_listing_digests(entries, pipeline.fingerprint())
    # A shard whose objects are all gone is listed as empty, unless that is what is published already.
    empty = listing_digest(())
    listed = {**dict.fromkeys(published, empty), **seen.digests}
    return State(listed, published, held, snapshot.broken, seen.objects, seen.outside, seen.outside_examples)


def failed_shards(instance: dg.DagsterInstance, shards: Sequence[Shard]) -> set[Shard]:
    """Those whose latest run failed before it published."""
    by_key = {shard.key: shard for shard in shards}
    failed: set[Shard] = set()
    for asset in ("raw_documents", "chunks", "embeddings", "shards", "published"):
        statuses = instance.get_status_by_partition(dg.AssetKey(asset), list(by_key), shard_partitions) or {}
        failed |= {by_key[key] for key, status in statuses.items() if status is not None and status.name == "FAILED"}
    return failed
