"""A shard's run in Dagster: the metadata of each asset, and the checks that block a publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from rag_assets.defs.build import build_definitions
from rag_assets.models.export import find_exported
from rag_assets.options import PACKAGED_MODEL
from rag_assets.pipeline import Pipeline
from rag_assets.runs.tags import WHOLE_TAG
from rag_assets.settings import PipelineSettings
from rag_assets.storage.lake import Lake
from rag_assets.storage.schemas import CHUNKS, RAW_DOCUMENTS
from rag_serving.lake.embedders.base import MODELS
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS
from tests.pipelines import (
    failure_of,
    lake_state,
    metadata_of,
    publication,
    published_rows,
    run_shard,
    seed_model,
    settings_for,
    writer_of,
)
from tests.servers.roots import FolderRoot

LEAVE = b"# Parental leave\n\nParents take sixteen weeks.\n\n# Annual leave\n\nEverybody takes thirty days.\n"
CANTEEN = b"The canteen opens at eight."


@pytest.fixture(scope="module")
def lake(model_lake: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One lake for this file, so that its embedder is loaded once; every test uses its own shard."""
    lake = str(tmp_path_factory.mktemp("lake"))
    seed_model(model_lake, lake)
    return lake


@pytest.fixture
def source(tmp_path: Path) -> FolderRoot:
    folder = tmp_path / "source"
    folder.mkdir()
    return FolderRoot(folder)


@pytest.fixture
def settings(source: FolderRoot, lake: str) -> PipelineSettings:
    return settings_for(source.uri, lake)


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, str]]:
    return {
        evaluation.check_name: (evaluation.passed, evaluation.description or "")
        for evaluation in evaluations_of(result)
    }


def evaluations_of(result: dg.ExecuteInProcessResult) -> list[dg.AssetCheckEvaluation]:
    return [
        event.asset_check_evaluation_data
        for event in result.all_events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]


def started_steps(result: dg.ExecuteInProcessResult) -> set[str]:
    return {event.step_key or "" for event in result.all_events if event.is_step_start}


def run_asset(
    instance: dg.DagsterInstance, settings: PipelineSettings, shard: str, name: str
) -> dg.ExecuteInProcessResult:
    """Materialize one asset of the shard, like an operator in the UI."""
    return (
        build_definitions(settings)
        .resolve_job_def("index_shard")
        .execute_in_process(
            partition_key=shard,
            instance=instance,
            raise_on_error=False,
            asset_selection=[dg.AssetKey(name)],
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    )


def succeeded(result: dg.ExecuteInProcessResult) -> dg.ExecuteInProcessResult:
    assert result.success, failure_of(result)
    return result


def test_every_asset_of_a_run_reports_its_work_as_metadata(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    shard = "Oslo/metadata"
    documents = {"leave.md": LEAVE, "canteen.txt": CANTEEN, "photo.bin": bytes(range(256))}
    for name, data in documents.items():
        source.put(f"{shard}/{name}", data)
    metadata = metadata_of(succeeded(run_shard(instance, settings, shard)))

    assert set(metadata) == {"raw_documents", "chunks", "embeddings", "shards", "published"}
    for name in ("raw_documents", "chunks", "embeddings", "shards"):
        assert metadata[name]["seconds"] >= 0
    raw = metadata["raw_documents"]
    counts = ("listed", "added", "changed", "deleted", "unchanged", "documents", "quarantined", "newly_quarantined")
    assert [raw[name] for name in counts] == [3, 2, 0, 0, 0, 2, 1, 1]
    assert raw["stale"] == 0
    assert raw["bytes_fetched"] == sum(len(data) for data in documents.values())
    assert raw["quarantine_reasons"] == {"unsupported_type": 1}
    assert [record.data["document"] for record in raw["quarantine"].records] == [f"{shard}/photo.bin"]

    rows = published_rows(settings.lake_uri, shard)
    total = len(rows)
    tokens = sum(row["tokens"] for row in rows)
    chunked = metadata["chunks"]
    assert (chunked["documents_chunked"], chunked["chunks_written"], chunked["chunks"]) == (2, total, total)
    assert chunked["tokens_written"] == tokens
    embedded = metadata["embeddings"]
    assert (embedded["embedded"], embedded["reused"], embedded["dropped"], embedded["tokens"]) == (total, 0, 0, tokens)
    table = metadata["shards"]
    assert (table["rows"], table["rows_written"], table["documents"], table["documents_replaced"]) == (
        total,
        total,
        2,
        2,
    )
    assert table["bytes"] > 0
    current = publication(settings.lake_uri, shard)
    assert current is not None
    assert table["version"] == metadata["published"]["version"] == current.version
    assert (metadata["published"]["changed"], metadata["published"]["content_changed"]) == (True, True)
    assert (
        metadata["published"]["documents"],
        metadata["published"]["chunks"],
        metadata["published"]["quarantined"],
    ) == (
        2,
        total,
        1,
    )
    assert metadata["published"]["content_digest"] == current.content_digest
    assert {metadata[name]["fingerprint"] for name in ("embeddings", "shards", "published")} == {current.fingerprint}
    headlines = {name: metadata[name]["dagster/partition_row_count"] for name in metadata}
    assert headlines == {"raw_documents": 2, "chunks": total, "embeddings": total, "shards": total, "published": total}


def test_a_second_run_reports_that_nothing_changed(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    source.put("Oslo/again/leave.md", LEAVE)
    first = metadata_of(succeeded(run_shard(instance, settings, "Oslo/again")))
    second = metadata_of(succeeded(run_shard(instance, settings, "Oslo/again")))
    raw = second["raw_documents"]
    assert [raw[name] for name in ("added", "changed", "deleted", "unchanged", "bytes_fetched")] == [0, 0, 0, 1, 0]
    assert (second["chunks"]["documents_unchanged"], second["chunks"]["chunks_written"]) == (1, 0)
    assert (second["embeddings"]["embedded"], second["embeddings"]["vectors"]) == (0, first["embeddings"]["embedded"])
    assert (second["shards"]["rows_written"], second["shards"]["version"]) == (0, first["shards"]["version"])
    assert second["published"]["changed"] is False


def test_materializations_record_their_partition(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    source.put("Malmö/it & web/leave.md", LEAVE)
    succeeded(run_shard(instance, settings, "Malmö/it & web"))
    assert instance.get_materialized_partitions(dg.AssetKey("published")) == {"Malmö/it & web"}


def test_the_quarantine_check_warns_without_blocking_the_publish(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    source.put("Oslo/warned/canteen.txt", CANTEEN)
    source.put("Oslo/warned/photo.bin", bytes(range(256)))
    result = succeeded(run_shard(instance, settings, "Oslo/warned"))
    (warned,) = [found for found in evaluations_of(result) if found.check_name == "nothing_quarantined"]
    assert not warned.passed
    assert warned.severity == dg.AssetCheckSeverity.WARN
    assert (warned.description or "").startswith("1 document is quarantined; see rag-assets quarantine list ")
    assert checks_of(result)["rows_reconcile"] == (True, "sound")
    assert [row["text"] for row in published_rows(settings.lake_uri, "Oslo/warned")] == [CANTEEN.decode()]


def test_the_next_run_restores_rows_deleted_outside_the_pipeline(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    shard = "Oslo/tampered"
    source.put(f"{shard}/leave.md", LEAVE)
    source.put(f"{shard}/canteen.txt", CANTEEN)
    succeeded(run_shard(instance, settings, shard))
    before = published_rows(settings.lake_uri, shard)
    table = Lake(settings.lake_uri).open(SHARDS, Shard.parse(shard))
    assert table is not None
    table.delete("title = 'Parental leave'")
    assert table.count_rows() < len(before)
    assert published_rows(settings.lake_uri, shard) == before  # readers use the published version

    metadata = metadata_of(succeeded(run_shard(instance, settings, shard)))
    assert (metadata["published"]["changed"], metadata["published"]["content_changed"]) == (True, False)
    after = published_rows(settings.lake_uri, shard)
    assert [row["chunk_id"] for row in after] == [row["chunk_id"] for row in before]


def assert_not_published(result: dg.ExecuteInProcessResult, lake: str, shard: str, before: dict[str, Any]) -> None:
    assert not result.success
    assert "published" not in started_steps(result)
    assert publication(lake, shard) == before["publication"]
    assert published_rows(lake, shard) == before["rows"]


def test_a_duplicate_row_blocks_the_publish_until_whole_tables_are_compared(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    shard = "Oslo/doubled"
    source.put(f"{shard}/canteen.txt", CANTEEN)
    succeeded(run_shard(instance, settings, shard))
    before = {"publication": publication(settings.lake_uri, shard), "rows": published_rows(settings.lake_uri, shard)}
    with writer_of(settings.lake_uri, shard) as writer:
        table = writer.table(SHARDS)
        assert table is not None
        writer.append(SHARDS, table.to_arrow())

    source.put(f"{shard}/parking.txt", b"Parking is free.")
    result = run_shard(instance, settings, shard)
    assert_not_published(result, settings.lake_uri, shard, before)
    assert checks_of(result)["rows_reconcile"] == (False, "row count differs from chunk count by 1")

    succeeded(run_shard(instance, settings, shard, {WHOLE_TAG: "true"}))
    assert {row["text"] for row in published_rows(settings.lake_uri, shard)} == {
        CANTEEN.decode(),
        "Parking is free.",
    }


def test_a_vector_without_unit_length_blocks_the_publish(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    shard = "Oslo/stretched"
    source.put(f"{shard}/canteen.txt", CANTEEN)
    succeeded(run_shard(instance, settings, shard))
    before = {"publication": publication(settings.lake_uri, shard), "rows": published_rows(settings.lake_uri, shard)}
    with writer_of(settings.lake_uri, shard) as writer:
        (row,) = published_rows(settings.lake_uri, shard)
        writer.update(SHARDS, "true", {"vector": (3 * np.asarray(row["vector"])).tolist()})

    result = run_shard(instance, settings, shard)
    assert_not_published(result, settings.lake_uri, shard, before)
    assert checks_of(result)["vectors_sound"] == (False, "1 of 1 sampled vectors do not have unit length")


@pytest.mark.parametrize("stage", [RAW_DOCUMENTS, CHUNKS, SHARDS])
def test_the_next_run_rolls_back_writes_of_other_programs(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot, stage: str
) -> None:
    """Like the writes of a writer that slept past its lease and woke up."""
    shard = f"Oslo/foreign {stage.replace('_', ' ')}"
    source.put(f"{shard}/canteen.txt", CANTEEN)
    succeeded(run_shard(instance, settings, shard))
    before = published_rows(settings.lake_uri, shard)
    table = Lake(settings.lake_uri).open(stage, Shard.parse(shard))
    assert table is not None
    table.add(table.to_arrow())
    source.put(f"{shard}/parking.txt", b"Parking is free.")
    succeeded(run_shard(instance, settings, shard))
    after = published_rows(settings.lake_uri, shard)
    assert [row["chunk_id"] for row in before] == [row["chunk_id"] for row in after if "Parking" not in row["text"]]
    assert len(after) == 2


def test_the_error_for_a_run_without_a_partition_says_to_select_one(
    instance: dg.DagsterInstance, settings: PipelineSettings
) -> None:
    with pytest.raises(Exception, match="select one partition") as caught:
        dg.materialize(
            [asset for asset in build_definitions(settings).assets or () if isinstance(asset, dg.AssetsDefinition)],
            instance=instance,
            resources=build_definitions(settings).resources,
            selection="raw_documents",
        )
    assert "region/department" in str(caught.value)


@pytest.mark.parametrize("key", ["Oslo", "Oslo/people/deep", "Oslo/", "Oslo/a..b", "Os\nlo/people"])
def test_a_partition_that_is_not_a_valid_shard_fails_and_writes_nothing(
    instance: dg.DagsterInstance, settings: PipelineSettings, lake: str, key: str
) -> None:
    """Dagster accepts any text as a dynamic partition key."""
    before = {path for path in Path(lake).rglob("*") if path.is_file()}
    instance.add_dynamic_partitions("shard", [key])
    result = (
        build_definitions(settings)
        .resolve_job_def("index_shard")
        .execute_in_process(
            partition_key=key,
            instance=instance,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    )
    assert not result.success
    assert "InvalidShardName" in failure_of(result)
    assert {path for path in Path(lake).rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("distilled_before")
def test_exporting_the_embedding_model_again_gives_the_same_fingerprint(
    instance: dg.DagsterInstance, settings: PipelineSettings, model_lake: str, tmp_path: Path
) -> None:
    """A second export from the weights has the same fingerprint: it depends on the content and not on the time."""
    lake = str(tmp_path / "lake")
    definitions = build_definitions(settings.model_copy(update={"lake_uri": lake}))
    result = definitions.resolve_job_def("export_model").execute_in_process(
        instance=instance,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    metadata = metadata_of(succeeded(result))["embedding_model"]
    expected = find_exported(open_object_store(model_lake), PACKAGED_MODEL)
    assert expected is not None
    assert metadata["fingerprint"] == expected.fingerprint
    assert find_exported(open_object_store(lake), PACKAGED_MODEL) == expected
    assert (metadata["model"], metadata["dimensions"], metadata["window_tokens"]) == (PACKAGED_MODEL, 384, 256)
    assert metadata["lowest_probe_cosine"] > 0.999
    assert metadata["bytes"] > 10_000_000
    assert metadata["uri"] == f"{lake}/{MODELS}/{expected.fingerprint}"
    pipeline = Pipeline(settings.model_copy(update={"lake_uri": lake}))
    assert pipeline.identity() == expected


def test_assets_can_be_materialized_one_by_one(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    shard = "Oslo/step by step"
    source.put(f"{shard}/canteen.txt", CANTEEN)
    instance.add_dynamic_partitions("shard", [shard])
    for name in ("raw_documents", "chunks", "embeddings", "shards", "published"):
        assert lake_state(settings.lake_uri, shard)["catalog"] is None
        assert set(metadata_of(succeeded(run_asset(instance, settings, shard, name)))) == {name}
    assert [row["text"] for row in published_rows(settings.lake_uri, shard)] == [CANTEEN.decode()]
