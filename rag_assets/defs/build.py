"""Build the `Definitions` of the pipeline: for this code location, for another project, and for tests."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster_aws.s3 import S3Resource
from pydantic import Field

from rag_assets.arrivals.events.feed import open_feed
from rag_assets.defs.asset_checks import build_asset_checks
from rag_assets.defs.assets import ASSETS, build_source_objects
from rag_assets.defs.company_index import build_company_sensor, company_index
from rag_assets.defs.jobs import build_asset_jobs
from rag_assets.defs.maintenance import build_maintenance_job, build_maintenance_schedules, build_standing_check
from rag_assets.defs.resources import pipeline_resource, shard_writer
from rag_assets.defs.schedules import build_reconcile_schedule
from rag_assets.defs.sensors import build_arrivals_sensor
from rag_assets.pipeline import Pipeline
from rag_assets.runs.names import INDEX_SHARD, REFRESH, WATCH, Names
from rag_assets.settings import PipelineSettings
from rag_serving.requirements import require_posix


def build_definitions(
    settings: PipelineSettings | None = None, resource_overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """Return all definitions; settings default to the environment."""
    require_posix()
    settings = settings or PipelineSettings.from_env()
    names = Names.of(settings)
    jobs = build_asset_jobs(names)
    maintain = build_maintenance_job(names)
    resources: dict[str, Any] = {
        # Credentials, region and endpoint come from the AWS_* variables. The client retries with backoff and jitter;
        # the retries of steps cover longer outages.
        "pipeline": pipeline_resource(Pipeline(settings, S3Resource(max_attempts=5).get_client)),
        "shard_writer": shard_writer,
    }
    if settings.arrivals != "listing":
        resources["arrivals_feed"] = open_feed(settings)
    return dg.Definitions(
        assets=[build_source_objects(names), *(asset.build(names) for asset in (*ASSETS, company_index))],
        asset_checks=[*build_asset_checks(names), build_standing_check(names)],
        jobs=[*jobs.values(), maintain],
        sensors=[
            build_arrivals_sensor(settings, names, jobs[INDEX_SHARD]),
            build_company_sensor(settings, names, jobs[REFRESH]),
        ],
        schedules=[
            build_reconcile_schedule(settings, names, jobs[INDEX_SHARD]),
            *build_maintenance_schedules(settings, names, maintain, jobs[WATCH]),
        ],
        resources={**resources, **(resource_overrides or {})},
        executor=dg.in_process_executor,  # a process per step costs more than the steps
    )


@dg.definitions
def pipeline() -> dg.Definitions:
    """Return the pipeline of this code location, with settings from the environment."""
    return build_definitions()


class RagShardsComponent(dg.Component, dg.Model, dg.Resolvable):
    """The whole pipeline as a component of another dg project. Unset attributes default to the RAG_* variables."""

    source_uri: str | None = Field(None, description="folder or s3://bucket/prefix where documents arrive")
    lake_uri: str | None = Field(None, description="folder or s3://bucket/prefix of the lake")
    asset_prefix: str | None = Field(None, description="prefix of asset keys, jobs and partitions, such as prod/eu")
    settings: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="other settings by their lower-case names without RAG_"
    )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the component's definitions."""
        named = {"source_uri": self.source_uri, "lake_uri": self.lake_uri, "asset_prefix": self.asset_prefix}
        given = {name: value for name, value in named.items() if value is not None}
        return build_definitions(PipelineSettings.from_env(**self.settings, **given))
