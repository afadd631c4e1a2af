"""The company index in Dagster: the asset, and the sensor that keeps it up to date."""

import dataclasses
from typing import Any

import dagster as dg

from rag_assets.defs.asset_template import asset_template
from rag_assets.defs.jobs import AssetJob
from rag_assets.defs.resources import PipelineParam
from rag_assets.runs.failures import named_failures
from rag_assets.runs.names import Names
from rag_assets.runs.status import ACTIVE
from rag_assets.settings import PipelineSettings
from rag_assets.stages.company_index import acquire_company_index, stale_shards, sync_company_index
from rag_serving.lake.company_index import COMPANY


def _pool(names: Names) -> str:
    """One run at a time: two would only wait for each other."""
    return names.job("company_index")


@asset_template(
    all_partitions_of=("published",),
    partitioned=False,
    kinds={"lancedb"},
    pool=_pool,
    code_version="1",
    description="One table for each embedding model over the published rows of all shards, for questions over many "
    "shards. Updated shard by shard; shards whose copy is out of date are searched directly.",
)
def company_index(context: dg.AssetExecutionContext, pipeline: PipelineParam) -> dg.MaterializeResult[Any]:
    lake = pipeline.lake()
    with (
        named_failures(),
        acquire_company_index(
            lake,
            f"run {context.run.run_id}",
            seconds=pipeline.settings.lease_seconds,
            wait=pipeline.settings.lease_wait,
        ) as lease,
    ):
        report = sync_company_index(
            lake,
            lease,
            pipeline.catalog().snapshot(),
            vector_index_rows=pipeline.settings.vector_index_rows,
            pin_seconds=pipeline.settings.reader_pin_seconds,
            log=context.log.info,
        )
        behind = stale_shards(pipeline.catalog().snapshot())
    metadata = dataclasses.asdict(report)
    return dg.MaterializeResult(
        metadata={
            **metadata,
            "seconds": round(report.seconds, 3),
            "versions": dg.JsonMetadataValue(report.versions),
            "behind": len(behind),
            "uri": f"{pipeline.settings.lake_uri}/{COMPANY}",
            "dagster/row_count": report.rows,
        }
    )


def build_company_sensor(settings: PipelineSettings, names: Names, job: AssetJob) -> dg.SensorDefinition:
    @dg.sensor(
        name=names.job("company_index_follows"),
        job=job,
        minimum_interval_seconds=settings.company_interval,
        description="Requests one run of company_index when it is out of date and no run of it is active.",
    )
    def company_index_follows(
        context: dg.SensorEvaluationContext, pipeline: PipelineParam
    ) -> dg.RunRequest | dg.SkipReason:
        behind = stale_shards(pipeline.catalog().snapshot())
        if not behind:
            return dg.SkipReason("the company index holds what is published")
        if context.instance.get_runs(filters=dg.RunsFilter(job_name=job.name, statuses=ACTIVE), limit=1):
            return dg.SkipReason(f"{len(behind)} shards behind; a run is under way")
        context.log.info("%d shards behind, such as %s", len(behind), ", ".join(behind[:3]))
        return dg.RunRequest()

    return company_index_follows
