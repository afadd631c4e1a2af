"""The company index in Dagster: the asset, and the sensor that requests its runs."""

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
    """Return the pool that admits one run at a time: two would only wait for each other."""
    return names.job("company_index")


@asset_template(
    all_partitions_of=("published",),
    partitioned=False,
    kinds={"lancedb"},
    pool=_pool,
    code_version="1",
)
def company_index(context: dg.AssetExecutionContext, pipeline: PipelineParam) -> dg.MaterializeResult[Any]:
    """Copy the published rows of all shards into one table per embedding model, for questions over many shards.

    The index is updated shard by shard. Shards whose copy is out of date are searched directly.
    """
    lake, settings = pipeline.lake(), pipeline.settings
    holder = f"run {context.run.run_id}"
    with (
        named_failures(),
        acquire_company_index(lake, holder, seconds=settings.lease_seconds, wait=settings.lease_wait) as lease,
    ):
        report = sync_company_index(
            lake,
            lease,
            pipeline.catalog().snapshot(),
            vector_index_rows=settings.vector_index_rows,
            pin_seconds=settings.reader_pin_seconds,
            log=context.log.info,
        )
        behind = stale_shards(pipeline.catalog().snapshot())
    return dg.MaterializeResult(
        metadata={
            **dataclasses.asdict(report),
            "seconds": round(report.seconds, 3),
            "versions": dg.JsonMetadataValue(report.versions),
            "behind": len(behind),
            "uri": f"{settings.lake_uri}/{COMPANY}",
            "dagster/row_count": report.rows,
        }
    )


def build_company_sensor(settings: PipelineSettings, names: Names, job: AssetJob) -> dg.SensorDefinition:
    """Return the sensor `company_index_follows`."""

    @dg.sensor(
        name=names.job("company_index_follows"),
        job=job,
        minimum_interval_seconds=settings.company_interval,
        description="Requests a run of company_index if the index is out of date and no such run is active.",
    )
    def company_index_follows(
        context: dg.SensorEvaluationContext, pipeline: PipelineParam
    ) -> dg.RunRequest | dg.SkipReason:
        behind = stale_shards(pipeline.catalog().snapshot())
        if not behind:
            return dg.SkipReason("the company index is up to date")
        if context.instance.get_runs(filters=dg.RunsFilter(job_name=job.name, statuses=ACTIVE), limit=1):
            return dg.SkipReason(f"{len(behind)} shards behind; a run is already active")
        context.log.info("%d shards behind, such as %s", len(behind), ", ".join(behind[:3]))
        return dg.RunRequest()

    return company_index_follows
