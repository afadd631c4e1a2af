"""The schedule that reconciles every shard with the source, in case the sensor missed a change."""

from collections.abc import Iterator

import dagster as dg

from rag_assets.defs.jobs import AssetJob
from rag_assets.defs.resources import PipelineParam
from rag_assets.runs.names import Names
from rag_assets.runs.tags import WHOLE_TAG
from rag_assets.settings import PipelineSettings
from rag_assets.sources.base import has_documents


def build_reconcile_schedule(settings: PipelineSettings, names: Names, job: AssetJob) -> dg.ScheduleDefinition:
    """Return the schedule `reconcile`."""

    @dg.schedule(
        name=names.job("reconcile"),
        job=job,
        cron_schedule=settings.reconcile_cron,
        execution_timezone="UTC",
        description="Runs every shard that has documents in the source or is already known. The runs compare and check "
        "whole tables instead of known changes only. Runs of unchanged shards fetch, embed and write nothing.",
    )
    def reconcile(context: dg.ScheduleEvaluationContext, pipeline: PipelineParam) -> Iterator[dg.RunRequest]:
        source = pipeline.source()
        known = set(context.instance.get_dynamic_partitions(names.partition_set))
        # Only list the folders: a tick is too short to list a large bucket, and would miss its last shards.
        new = [shard for shard in source.shards() if shard.key not in known and has_documents(source, shard)]
        names.add_shards(context.instance, new)
        at = context.scheduled_execution_time.isoformat()
        for key in sorted(context.instance.get_dynamic_partitions(names.partition_set)):
            yield dg.RunRequest(run_key=f"{at}/{key}", partition_key=key, tags={WHOLE_TAG: "true"})

    return reconcile
