"""The sensor that turns arrivals into runs: a thin shell over `rag_assets.arrivals`."""

import time
from collections.abc import Iterator, Sequence

import dagster as dg

from rag_assets.arrivals import Cursor, decide, sweep
from rag_assets.defs.assets import source_objects
from rag_assets.defs.jobs import index_shard
from rag_assets.defs.partitions import shard_partitions
from rag_assets.defs.resources import PARTITION_TAG, PipelineResource
from rag_assets.settings import PipelineSettings
from rag_serving.errors import InvalidShardName
from rag_serving.shards import Shard

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


def build_arrivals_sensor(settings: PipelineSettings) -> dg.SensorDefinition:
    @dg.sensor(
        name="s3_arrivals",
        job=index_shard,
        minimum_interval_seconds=settings.arrivals_interval,
        description="Lists the source, and asks for one run of every shard whose listing differs from the one that its "
        "published version was made from. New regions and departments become partitions by themselves.",
    )
    def s3_arrivals(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
        cursor = Cursor.loads(context.cursor)
        # The listing comes first: a run that ends meanwhile is then judged by a listing older than its publish.
        seen = sweep(pipeline.source(), start_after=cursor.resume_after, seconds=settings.arrivals_tick_seconds)
        active = active_shards(context.instance)
        snapshot = pipeline.catalog().snapshot()
        decision = decide(
            seen,
            {shard: entry.seen_source_digest for shard, entry in snapshot.entries.items()},
            active,
            cursor,
            now=time.time(),
            max_requests=settings.arrivals_max_runs,
        )
        known = set(context.instance.get_dynamic_partitions(shard_partitions.name or ""))
        new = sorted({request.shard.key for request in decision.requests} - known)
        summary = (
            f"{seen.objects} objects in {len(seen.digests)} shards; {decision.dirty} dirty, "
            f"{len(decision.requests)} asked for, {decision.waiting} waiting"
            + (
                f"; {seen.outside} keys outside region/department/, such as {seen.outside_examples}"
                if seen.outside
                else ""
            )
            + ("; the sweep goes on in the next tick" if seen.resume_after else "")
        )
        context.log.info(summary)
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(run_key=request.run_key, partition_key=request.shard.key) for request in decision.requests
            ],
            skip_reason=None if decision.requests else summary,
            cursor=decision.cursor.dumps(),
            dynamic_partitions_requests=[shard_partitions.build_add_request(new)] if new else [],
            asset_events=[
                dg.AssetObservation(
                    source_objects.key,
                    partition=request.shard.key,
                    metadata={"source_digest": request.digest},
                    tags={"dagster/data_version": request.digest},
                )
                for request in decision.requests
            ],
        )

    return s3_arrivals
