"""Running the pipeline in tests: through Dagster in this process, on a lake that already holds the exported model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from rag_assets.defs.build import build_definitions
from rag_assets.defs.jobs import INDEX_SHARD
from rag_assets.defs.partitions import add_shards
from rag_assets.defs.resources import PipelineResource
from rag_assets.embedding import warm_chunker, warm_embedder, warm_identity
from rag_assets.settings import PipelineSettings
from rag_serving.embedding import MODELS
from rag_serving.objects import open_objects
from rag_serving.shards import Shard


def seed_model(model_lake: str, lake_uri: str) -> None:
    """Copy the exported model of one lake into another, which is a thousand times quicker than exporting it."""
    origin, target = open_objects(model_lake), open_objects(lake_uri)
    entries = sorted(origin.list(MODELS), key=lambda entry: "by-name" in entry.key)  # the pointer last
    for entry in entries:
        stored = origin.get(entry.key)
        assert stored is not None
        target.put(entry.key, stored.data)


def settings_for(source_uri: str, lake_uri: str, **overrides: object) -> PipelineSettings:
    """Settings of a test's pipeline; nothing is read from the environment but what is not given here."""
    values = {"source_uri": source_uri, "lake_uri": lake_uri, "lease_seconds": 5.0, "lease_wait": 10.0, **overrides}
    return PipelineSettings.model_validate(values)


def run_shard(
    instance: dg.DagsterInstance, settings: PipelineSettings, key: str, tags: Mapping[str, str] | None = None
) -> dg.ExecuteInProcessResult:
    """One run of `index_shard` for one shard; look at `.success`."""
    add_shards(instance, [Shard.parse(key)])
    job = build_definitions(settings).resolve_job_def(INDEX_SHARD)
    return job.execute_in_process(
        partition_key=key,
        instance=instance,
        raise_on_error=False,
        tags=dict(tags or {}),
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """What the UI shows of a failed run."""
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.user_failure_data is not None:
            return event.step_failure_data.user_failure_data.description or ""
    for event in result.all_events:
        if event.is_failure:
            error = getattr(event.event_specific_data, "error", None)
            return str(error) if error is not None else (event.message or "")
    return ""


def listed_shards(settings: PipelineSettings) -> list[Shard]:
    """The shards that the source has now."""
    from rag_assets.arrivals import sweep

    pipeline = PipelineResource.from_settings(settings)
    return sorted(sweep(pipeline.source(), seconds=60).digests)


@contextmanager
def warm_caches_cleared() -> Iterator[None]:
    """For tests whose lake is another one under the same URI: forget the models that this process keeps warm."""
    try:
        yield
    finally:
        for cached in (warm_identity, warm_embedder, warm_chunker):
            cached.cache_clear()


os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
