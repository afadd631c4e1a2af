"""The resources of the assets: the pipeline with the run's heartbeat, and the writer of the run's shard."""

from collections.abc import Generator

import dagster as dg

from rag_assets.pipeline import Pipeline
from rag_assets.runs.cancellation import interrupted_if_canceled
from rag_assets.runs.tags import LAKE_TAG, PARTITION_TAG, PIPELINE_RESOURCE, WHOLE_TAG, flag
from rag_assets.storage.heartbeat import keep_heartbeat
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.object_store import absolute_uri
from rag_serving.lake.shards import Shard

PipelineParam = dg.ResourceParam[Pipeline]
"""Type of the parameter by which assets, checks, sensors and schedules request the pipeline."""


def pipeline_resource(pipeline: Pipeline) -> dg.ResourceDefinition:
    """Return the resource that hands out the pipeline."""

    @dg.resource(description=PIPELINE_RESOURCE)
    def resource(context: dg.InitResourceContext) -> Generator[Pipeline]:
        run, instance = context.run, context.instance
        if run is None or instance is None:  # a sensor or schedule
            yield pipeline
            return
        instance.add_run_tags(run.run_id, {LAKE_TAG: absolute_uri(pipeline.settings.lake_uri)})
        with (
            keep_heartbeat(pipeline.lake().objects, run.run_id),
            interrupted_if_canceled(instance, run.run_id, context.log),
        ):
            yield pipeline

    return resource


@dg.resource(
    required_resource_keys={"pipeline"},
    description="Writes to the run's shard. Holds its lease for the whole run, or for each step that has a process of "
    "its own.",
)
def shard_writer(context: dg.InitResourceContext) -> Generator[ShardWriter]:
    """Yield the writer of the run's shard."""
    pipeline: Pipeline = context.resources.pipeline
    run = context.run
    key = run.tags.get(PARTITION_TAG) if run is not None else None
    if run is None or key is None:
        raise dg.DagsterInvariantViolationError(
            "a run of this asset indexes one shard: select one partition (region/department), or start a backfill"
        )
    with pipeline.writer(Shard.parse(key), holder=f"run {run.run_id}", whole=flag(run.tags, WHOLE_TAG)) as writer:
        if writer.rolled_back and context.log is not None:
            context.log.warning("rolled back unfinished writes to %s", ", ".join(writer.rolled_back))
        yield writer
