"""Queries to the Dagster instance: which shards have an active run, and how runs ended."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg

from rag_assets.arrivals.pending import Pending
from rag_assets.runs.names import INDEX_SHARD, SHARD_ASSETS, Names
from rag_assets.runs.tags import PARTITION_TAG
from rag_serving.errors import InvalidShardName
from rag_serving.lake.shards import Shard

_RUN_KEY_TAG = "dagster/run_key"

ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def active_shards(instance: dg.DagsterInstance, names: Names) -> frozenset[Shard]:
    """Return the shards with a queued or running run, by any job of this lake."""
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=ACTIVE))
    return frozenset(_shards(run.tags.get(PARTITION_TAG, "") for run in runs if not _is_of_another_lake(run, names)))


def known_shards(instance: dg.DagsterInstance, names: Names) -> list[Shard]:
    """Return the shards that are partitions."""
    return _shards(instance.get_dynamic_partitions(names.partition_set))


def failed_shards(instance: dg.DagsterInstance, names: Names, shards: Sequence[Shard]) -> set[Shard]:
    """Return the shards whose latest run failed before it published."""
    by_key = {shard.key: shard for shard in shards}
    failed: set[Shard] = set()
    for asset in SHARD_ASSETS:
        statuses = instance.get_status_by_partition(names.asset(asset), list(by_key), names.partitions) or {}
        failed |= {by_key[key] for key, status in statuses.items() if status is not None and status.name == "FAILED"}
    return failed


@dataclass(frozen=True)
class Runs:
    """Shards with an active run, requested or started by others, and the requested runs that succeeded."""

    active: frozenset[Shard]
    succeeded: frozenset[str]
    """Run keys."""


def runs_of(instance: dg.DagsterInstance, names: Names, pending: Pending) -> Runs:
    """Return the state of every run that the pending shards wait for.

    Retries by the daemon or a user carry the tags of the run that they repeat, including its run key.
    """
    active = set(active_shards(instance, names))
    succeeded: set[str] = set()
    for shard, item in pending.items():
        if item.requested is None or shard in active:
            continue
        runs = instance.get_runs(filters=dg.RunsFilter(tags={_RUN_KEY_TAG: item.requested.run_key}))
        statuses = {run.status for run in runs}
        if dg.DagsterRunStatus.SUCCESS in statuses:
            succeeded.add(item.requested.run_key)
        elif statuses & set(ACTIVE):  # queued since `active_shards` ran
            active.add(shard)
    return Runs(frozenset(active), frozenset(succeeded))


def _shards(keys: Iterable[str]) -> list[Shard]:
    found: list[Shard] = []
    for key in keys:
        try:
            found.append(Shard.parse(key))
        except InvalidShardName:  # another job's run, or a partition added by hand
            continue
    return found


def _is_of_another_lake(run: dg.DagsterRun, names: Names) -> bool:
    """Return whether the run's assets have another prefix; its lake may have a shard of the same name."""
    if run.asset_selection:
        return not any(names.asset(key.path[-1]) == key for key in run.asset_selection)
    return run.job_name.endswith(INDEX_SHARD) and run.job_name != names.job(INDEX_SHARD)
