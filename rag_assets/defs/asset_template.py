"""How an asset is declared before the deployment's names are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from rag_assets.runs.failures import step_retries
from rag_assets.runs.names import Names


@dataclass(frozen=True)
class AssetTemplate:
    """An asset before the deployment's names are known."""

    compute: Callable[..., Any]
    upstream: tuple[str, ...]
    whole: tuple[str, ...]
    """Upstream assets that are read as a whole: one that is not partitioned, or all partitions."""
    partitioned: bool
    options: Mapping[str, Any]

    def build(self, names: Names) -> dg.AssetsDefinition:
        deps = [dg.AssetDep(names.asset(name)) for name in self.upstream]
        everything = dg.AllPartitionMapping()
        deps += [dg.AssetDep(names.asset(name), partition_mapping=everything) for name in self.whole]
        options = {name: value(names) if callable(value) else value for name, value in self.options.items()}
        decorate: Any = dg.asset  # its overloads know no options by name
        return decorate(
            key=names.asset(self.compute.__name__),
            deps=deps,
            partitions_def=names.partitions if self.partitioned else None,
            group_name=names.group,
            owners=list(names.owners),
            retry_policy=step_retries,
            **options,
        )(self.compute)


def asset(
    *upstream: str, whole: tuple[str, ...] = (), partitioned: bool = True, **options: Any
) -> Callable[[Callable[..., Any]], AssetTemplate]:
    """Declare an asset and those that it reads, by their names without a prefix."""
    return lambda compute: AssetTemplate(compute, upstream, whole, partitioned, options)
