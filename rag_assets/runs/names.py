"""What this deployment calls its Dagster objects, so that several lakes can share one Dagster instance."""

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
    """Names built from the settings. Without a prefix every object has its plain name."""

    prefix: tuple[str, ...] = ()
    partition_set: str = "shard"
    group: str = "index"
    owners: tuple[str, ...] = ("team:search-platform",)
    location: str = "rag_assets"

    @classmethod
    def of(cls, settings: PipelineSettings) -> Self:
        prefix = tuple((settings.asset_prefix or "").split("/")) if settings.asset_prefix else ()
        return cls(
            prefix,
            settings.partition_set or "_".join([*prefix, "shard"]),
            settings.asset_group,
            tuple(owner.strip() for owner in settings.asset_owners.split(",") if owner.strip()),
            settings.code_location,
        )

    def asset(self, name: str) -> dg.AssetKey:
        return dg.AssetKey([*self.prefix, name])

    def job(self, name: str) -> str:
        """Return the name of a job, sensor, schedule or pool."""
        return "_".join([*self.prefix, name])

    def op(self, asset: str) -> str:
        """Return what run configuration calls the asset's step."""
        return "__".join([*self.prefix, asset])

    @cached_property
    def partitions(self) -> dg.DynamicPartitionsDefinition:
        """The one partition set: a shard is a partition, and appears with its first document."""
        return dg.DynamicPartitionsDefinition(name=self.partition_set)

    def add_shards(self, instance: dg.DagsterInstance, shards: Iterable[Shard]) -> None:
        """Add the shards that are not partitions yet."""
        known = set(instance.get_dynamic_partitions(self.partition_set))
        new = sorted({shard.key for shard in shards} - known)
        if new:
            instance.add_dynamic_partitions(self.partition_set, new)
