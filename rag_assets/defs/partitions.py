"""The one partition definition: a shard is a partition, and appears by itself with its first document."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from rag_serving.lake.shards import Shard

shard_partitions = dg.DynamicPartitionsDefinition(name="shard")


def add_shards(instance: dg.DagsterInstance, shards: Iterable[Shard]) -> list[Shard]:
    """Make partitions of the shards that are none yet, and return those. Names are valid by construction of `Shard`."""
    known = set(instance.get_dynamic_partitions("shard"))
    new = sorted(shard for shard in shards if shard.key not in known)
    if new:
        instance.add_dynamic_partitions("shard", [shard.key for shard in new])
    return new
