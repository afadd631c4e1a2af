"""The company index in Dagster: the asset, its job, and the sensor that has it follow what is published."""

import dataclasses
from typing import Any

import dagster as dg

from rag_assets.defs.assets import GROUP, OWNERS, published
from rag_assets.defs.failures import named_failures, step_retries
from rag_assets.defs.resources import PipelineResource
from rag_assets.defs.run_status import ACTIVE
from rag_assets.settings import PipelineSettings
from rag_assets.stages.company_index import acquire_company_index, stale_shards, sync_company_index
from rag_serving.lake.company_index import COMPANY

REFRESH = "refresh_company_index"
POOL = "company_index"


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"lancedb"},
    deps=[dg.AssetDep(published, partition_mapping=dg.AllPartitionMapping())],
    retry_policy=step_retries,
    pool=POOL,
    code_version="1",
    description="One table for each embedding model over the published rows of all shards, for questions over many "
    "shards. Brought after what is published shard by shard; whatever it does not hold yet is searched in the shard.",
)
def company_index(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult[Any]:
    lake = pipeline.lake()
    with (
        named_failures(),
        acquire_company_index(
            lake, f"run {context.run.run_id}", seconds=pipeline.lease_seconds, wait=pipeline.lease_wait
        ) as lease,
    ):
        report = sync_company_index(
            lake,
            lease,
            pipeline.catalog().snapshot(),
            vector_index_rows=pipeline.vector_index_rows,
            pin_seconds=pipeline.reader_pin_seconds,
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
            "uri": f"{pipeline.lake_uri}/{COMPANY}",
            "dagster/row_count": report.rows,
        }
    )


refresh_company_index = dg.define_asset_job(
    REFRESH,
    selection=dg.AssetSelection.assets(company_index),
    description="Bring the company index to what is published. Safe to run again at any time.",
)


def build_company_sensor(settings: PipelineSettings) -> dg.SensorDefinition:
    @dg.sensor(
        name="company_index_follows",
        job=refresh_company_index,
        minimum_interval_seconds=settings.company_interval,
        description="Asks for one run of company_index when it does not hold what is published, and none is under way.",
    )
    def company_index_follows(
        context: dg.SensorEvaluationContext, pipeline: PipelineResource
    ) -> dg.RunRequest | dg.SkipReason:
        behind = stale_shards(pipeline.catalog().snapshot())
        if not behind:
            return dg.SkipReason("the company index holds what is published")
        if context.instance.get_runs(filters=dg.RunsFilter(job_name=REFRESH, statuses=ACTIVE), limit=1):
            return dg.SkipReason(f"{len(behind)} shards behind; a run is under way")
        context.log.info("%d shards behind, such as %s", len(behind), ", ".join(behind[:3]))
        return dg.RunRequest()

    return company_index_follows
