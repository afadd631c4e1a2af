"""Declare the pipeline's assets before the deployment's prefix (`RAG_ASSET_PREFIX`) is known.

Declare your own assets with `dg.asset`: Dagster does not load templates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from rag_assets.runs.failures import step_retries
from rag_assets.runs.names import Names


@dataclass(frozen=True)
class AssetTemplate:
    """An asset's function and options; `build` adds prefix, partitions, group and owners."""

    compute: Callable[..., Any]
    upstream: tuple[str, ...]
    all_partitions_of: tuple[str, ...]
    partitioned: bool
    options: Mapping[str, Any]

    def build(self, names: Names) -> dg.AssetsDefinition:
        """Return the asset under the deployment's names."""
        deps = [dg.AssetDep(names.asset(name)) for name in self.upstream]
        everything = dg.AllPartitionMapping()
        deps += [dg.AssetDep(names.asset(name), partition_mapping=everything) for name in self.all_partitions_of]
        options = {name: value(names) if callable(value) else value for name, value in self.options.items()}
        decorate: Any = dg.asset  # its overloads do not accept **options
        return decorate(
            key=names.asset(self.compute.__name__),
            deps=deps,
            partitions_def=names.partitions if self.partitioned else None,
            group_name=names.group,
            owners=list(names.owners),
            retry_policy=step_retries,
            **options,
        )(self.compute)


def asset_template(
    *upstream: str, all_partitions_of: tuple[str, ...] = (), partitioned: bool = True, **options: Any
) -> Callable[[Callable[..., Any]], AssetTemplate]:
    """Declare an asset and the assets that it reads, by their names without the prefix.

    A partition reads the same partition of `upstream` and every partition of `all_partitions_of`. An option that is a
    function is called with the deployment's `Names`.
    """
    return lambda compute: AssetTemplate(compute, upstream, all_partitions_of, partitioned, options)
