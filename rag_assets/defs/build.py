"""Puts the Dagster objects together, for production and, with other settings or resources, for tests."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from rag_assets.arrivals.events.feed import open_feed
from rag_assets.defs.asset_checks import CHECKS
from rag_assets.defs.assets import SHARD_ASSETS, boundary_vectors, embedding_model, source_objects
from rag_assets.defs.company_index import build_company_sensor, company_index, refresh_company_index
from rag_assets.defs.failures import executor
from rag_assets.defs.jobs import export_model, index_shard
from rag_assets.defs.maintenance import (
    build_maintenance_schedule,
    build_watch_schedule,
    maintain,
    no_shard_left_behind,
    watch,
)
from rag_assets.defs.resources import PipelineResource, shard_writer
from rag_assets.defs.schedules import build_reconcile_schedule
from rag_assets.defs.sensors import build_arrivals_sensor
from rag_assets.settings import PipelineSettings


def build_definitions(
    settings: PipelineSettings | None = None, resource_overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """Everything in one `Definitions`; settings come from the environment unless given."""
    settings = settings or PipelineSettings.from_env()
    resources: dict[str, Any] = {
        "pipeline": PipelineResource.from_settings(settings),
        "shard_writer": shard_writer,
    }
    if settings.arrivals != "listing":
        resources["arrivals_feed"] = open_feed(settings)
    return dg.Definitions(
        assets=[source_objects, embedding_model, boundary_vectors, *SHARD_ASSETS, company_index],
        asset_checks=[*CHECKS, no_shard_left_behind],
        jobs=[index_shard, export_model, refresh_company_index, maintain, watch],
        sensors=[build_arrivals_sensor(settings), build_company_sensor(settings)],
        schedules=[
            build_reconcile_schedule(settings),
            build_maintenance_schedule(settings),
            build_watch_schedule(settings),
        ],
        resources={**resources, **(resource_overrides or {})},
        executor=executor(settings.executor),
    )
