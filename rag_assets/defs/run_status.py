"""Questions to the Dagster instance: which shards have a run, and how runs ended."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from rag_assets.arrivals.pending import Pending
from rag_assets.defs.run_tags import PARTITION_TAG
from rag_serving.errors import InvalidShardName
from rag_serving.lake.shards import Shard

_RUN_KEY_TAG = "dagster/run_key"

PARTITIONS = "shard"

ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def active_shards(instance: dg.DagsterInstance) -> frozenset[Shard]:
    """Shards with a run queued or under way, by any job."""
    return frozenset(_shards_of(instance.get_runs(filters=dg.RunsFilter(statuses=ACTIVE))))


def _shards_of(runs: Sequence[dg.DagsterRun]) -> Iterator[Shard]:
    for run in runs:
        try:
            yield Shard.parse(run.tags.get(PARTITION_TAG, ""))
        except InvalidShardName:  # a run of something else
            continue


def known_shards(instance: dg.DagsterInstance) -> list[Shard]:
    """The shards that are partitions."""
    found: list[Shard] = []
    for key in instance.get_dynamic_partitions(PARTITIONS):
        try:
            found.append(Shard.parse(key))
        except InvalidShardName:  # made by hand
            continue
    return found


@dataclass(frozen=True)
class Runs:
    """How things stand with the runs asked for, and with those of others."""

    active: frozenset[Shard]
    succeeded: frozenset[str]
    """Run keys."""


def runs_of(instance: dg.DagsterInstance, pending: Pending) -> Runs:
    """Return the state of every run that the pending shards wait for.

    Retries, the daemon's as well as a person's, carry the tags of the run that they repeat, the run key among them.
    """
    active = set(active_shards(instance))
    succeeded: set[str] = set()
    for shard, item in pending.items():
        if item.requested is None or shard in active:
            continue
        runs = instance.get_runs(filters=dg.RunsFilter(tags={_RUN_KEY_TAG: item.requested.run_key}))
        statuses = {run.status for run in runs}
        if dg.DagsterRunStatus.SUCCESS in statuses:
            succeeded.add(item.requested.run_key)
        elif statuses & set(ACTIVE):  # queued since the first look
            active.add(shard)
    return Runs(frozenset(active), frozenset(succeeded))
