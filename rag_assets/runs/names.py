"""Names of the deployment's Dagster objects. A prefix lets several lakes share one Dagster instance."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import dagster as dg

from rag_assets.settings import PipelineSettings
from rag_serving.lake.shards import Shard

INDEX_SHARD = "index_shard"
EXPORT_MODEL = "export_model"
REFRESH = "refresh_company_index"
MAINTAIN = "maintain"
WATCH = "watch"
SHARD_ASSETS = ("raw_documents", "chunks", "embeddings", "shards", "published")


@dataclass(frozen=True)
class Names:
    """Names with the prefix of the settings, or plain names without one."""

    prefix: tuple[str, ...] = ()
    partition_set: str = "shard"
    group: str = "index"
    owners: tuple[str, ...] = ("team:search-platform",)

    @classmethod
    def of(cls, settings: PipelineSettings) -> Self:
        """Return the names that the settings ask for."""
        prefix = tuple((settings.asset_prefix or "").split("/")) if settings.asset_prefix else ()
        return cls(
            prefix,
            settings.partition_set or "_".join([*prefix, "shard"]),
            settings.asset_group,
            tuple(owner.strip() for owner in settings.asset_owners.split(",") if owner.strip()),
        )

    def asset(self, name: str) -> dg.AssetKey:
        """Return the key of an asset."""
        return dg.AssetKey([*self.prefix, name])

    def job(self, name: str) -> str:
        """Return the name of a job, sensor, schedule or pool."""
        return "_".join([*self.prefix, name])

    def op(self, asset: str) -> str:
        """Return the name of the asset's step in run configuration."""
        return "__".join([*self.prefix, asset])

    @cached_property
    def partitions(self) -> dg.DynamicPartitionsDefinition:
        """The partition set: each shard is a partition, added with its first document."""
        return dg.DynamicPartitionsDefinition(name=self.partition_set)

    def add_shards(self, instance: dg.DagsterInstance, shards: Iterable[Shard]) -> None:
        """Add a partition for each shard that has none."""
        known = set(instance.get_dynamic_partitions(self.partition_set))
        new = sorted({shard.key for shard in shards} - known)
        if new:
            instance.add_dynamic_partitions(self.partition_set, new)
