"""Run the pipeline in tests: through Dagster in this process, on a lake that already has the exported model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
import numpy as np

from rag_assets.defs.build import build_definitions
from rag_assets.pipeline import Pipeline
from rag_assets.runs.names import INDEX_SHARD, Names
from rag_assets.settings import PipelineSettings
from rag_assets.sources.listing_digest import listing_digest
from rag_assets.stages.document_state import read_object_states
from rag_assets.storage.lake import Lake
from rag_assets.storage.lease import acquire_lease
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, QUARANTINE, RAW_DOCUMENTS
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.catalog_entry import Publication, catalog_key, read_catalog_entry
from rag_serving.lake.embedders.base import MODELS
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS


def seed_model(model_lake: str, lake_uri: str) -> None:
    """Copy the exported model from one lake to another, which is a thousand times faster than exporting it."""
    origin, target = open_object_store(model_lake), open_object_store(lake_uri)
    entries = sorted(origin.list(MODELS), key=lambda entry: "by-name" in entry.key)  # the pointer last
    for entry in entries:
        stored = origin.get(entry.key)
        assert stored is not None
        target.put(entry.key, stored.data)


def settings_for(source_uri: str, lake_uri: str, **overrides: object) -> PipelineSettings:
    """Return settings for a test's pipeline; only settings not given here come from the environment."""
    values = {"source_uri": source_uri, "lake_uri": lake_uri, "lease_seconds": 5.0, "lease_wait": 10.0, **overrides}
    return PipelineSettings.model_validate(values)


def run_shard(
    instance: dg.DagsterInstance,
    settings: PipelineSettings,
    key: str,
    tags: Mapping[str, str] | None = None,
    pipeline: Pipeline | None = None,
    *,
    keys: Sequence[str] = (),
    run_config: Mapping[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    """Run `index_shard` for one shard and return the result; check `.success`. `pipeline` replaces the default.

    With `keys`, run as a feed requests it: read only these objects.
    """
    Names().add_shards(instance, [Shard.parse(key)])
    resources = {} if pipeline is None else {"pipeline": pipeline}
    job = build_definitions(settings, resources).resolve_job_def(INDEX_SHARD)
    return job.execute_in_process(
        partition_key=key,
        instance=instance,
        raise_on_error=False,
        tags=dict(tags or {}),
        run_config={
            "ops": {"raw_documents": {"config": {"keys": list(keys)}}},
            **(run_config or {}),
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
    )


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """Return the failure message that the UI shows for a run."""
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.user_failure_data is not None:
            return event.step_failure_data.user_failure_data.description or ""
    for event in result.all_events:
        if event.is_failure:
            error = getattr(event.event_specific_data, "error", None)
            return str(error) if error is not None else (event.message or "")
    return ""


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """Return the metadata of each asset of a run, by asset and name."""
    return {
        event.asset_key.to_user_string(): {name: value.value for name, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }


def publication(lake_uri: str, key: str) -> Publication | None:
    """Return the shard's current publication, or None before its first publish."""
    found = read_catalog_entry(open_object_store(lake_uri), Shard.parse(key))
    return None if found is None else found[0].current


def published_rows(lake_uri: str, key: str) -> list[dict[str, Any]]:
    """Return the rows that readers of the shard see, ordered by document and position."""
    current = publication(lake_uri, key)
    assert current is not None, f"{key} was never published"
    table = Lake(lake_uri).open(SHARDS, Shard.parse(key))
    assert table is not None
    table.checkout(current.version)
    return sorted(table.to_arrow().to_pylist(), key=lambda row: (row["source"], row["ordinal"]))


def stage_rows(lake_uri: str, stage: str, key: str, fingerprint: str = "") -> list[dict[str, Any]]:
    """Return the rows of a stage's table of the shard; none if there is no table."""
    table = Lake(lake_uri).open(stage, Shard.parse(key), fingerprint=fingerprint)
    return [] if table is None else table.to_arrow().to_pylist()


def assert_same_tables(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Assert that two runs have equal rows, with vectors within 1e-3; only the indexing time may differ."""
    different = {"vector", "indexed_at"}
    assert [{k: v for k, v in row.items() if k not in different} for row in one] == [
        {k: v for k, v in row.items() if k not in different} for row in other
    ]
    if one:
        np.testing.assert_allclose([row["vector"] for row in one], [row["vector"] for row in other], atol=1e-3)


def lake_state(lake_uri: str, key: str) -> dict[str, object]:
    """Return all table versions and the catalog etag of the shard: equal exactly if nothing was written."""
    lake, shard = Lake(lake_uri), Shard.parse(key)
    current = publication(lake_uri, key)
    fingerprint = "" if current is None else current.fingerprint
    state: dict[str, object] = {}
    for stage in (RAW_DOCUMENTS, QUARANTINE, CHUNKS, EMBEDDINGS, SHARDS):
        table = lake.open(stage, shard, fingerprint=fingerprint if stage == EMBEDDINGS else "")
        state[stage] = None if table is None else table.version
    stored = lake.objects.get(catalog_key(shard))
    state["catalog"] = None if stored is None else stored.etag
    return state


@contextmanager
def writer_of(lake_uri: str, key: str) -> Iterator[ShardWriter]:
    """Open the shard's writer, for a test that changes tables like the pipeline."""
    lake, shard = Lake(lake_uri), Shard.parse(key)
    with acquire_lease(lake.objects, shard, "a test") as lease:
        yield ShardWriter(lake, shard, lease)


def stored_digest(lake: Lake, shard: Shard) -> str:
    """Return the listing digest of the objects in the tables; it equals the source's if nothing differs."""
    stored = read_object_states(lake.open(RAW_DOCUMENTS, shard), lake.open(QUARANTINE, shard), None).values()
    return listing_digest(known.entry for known in stored if known.seen[0])


def listed_shards(settings: PipelineSettings) -> list[Shard]:
    """Return the shards in the source."""
    from rag_assets.arrivals.listing import sweep

    pipeline = Pipeline(settings)
    return sorted(sweep(pipeline.source(), seconds=60).digests)


os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
