"""Bulk indexing in worker processes: one run per shard, and a process that dies affects no other shard."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from rag_assets.defs.build import build_definitions
from rag_assets.extraction.registry import ParsedObject
from rag_assets.pipeline import Pipeline
from rag_assets.runs.bulk import processes_for, run_here
from rag_assets.runs.sqlite_storage import WarmSqliteEventLogStorage, warm_instance
from rag_assets.settings import PipelineSettings
from rag_assets.stages.documents import Parse
from rag_assets.storage.lake import Lake
from rag_assets.storage.lease import acquire_lease
from rag_serving.lake.catalog import Catalog
from rag_serving.lake.embedders.base import Embedder
from rag_serving.lake.shards import Shard
from tests.pipelines import seed_model, settings_for


class DyingPipeline(Pipeline):
    """A pipeline whose process is killed when it reads a document with "kills" in it."""

    def parser(self) -> Parse:
        read = super().parser()

        def reads(data: bytes, key: str) -> ParsedObject:
            if b"kills" in data:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(data, key)

        return reads


class InterruptedPipeline(Pipeline):
    """A pipeline whose process is interrupted (Ctrl-C) while embedding."""

    def embedder(self) -> Embedder:
        os.kill(os.getpid(), signal.SIGINT)
        return super().embedder()


def definitions_that_are_interrupted(settings: PipelineSettings) -> dg.Definitions:
    """Build definitions with `InterruptedPipeline`."""
    return build_definitions(settings, {"pipeline": InterruptedPipeline(settings)})


def definitions_that_die(settings: PipelineSettings) -> dg.Definitions:
    """Build definitions with `DyingPipeline`; at module level, so that worker processes can import it."""
    return build_definitions(settings, {"pipeline": DyingPipeline(settings)})


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def settings(tmp_path: Path, model_lake: str) -> PipelineSettings:
    lake = str(tmp_path / "lake")
    seed_model(model_lake, lake)
    return settings_for(str(tmp_path / "source"), lake)


def put(settings: PipelineSettings, key: str, text: str) -> None:
    path = Path(str(settings.source_uri), key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def published(settings: PipelineSettings) -> set[str]:
    return {shard.key for shard in Catalog(Lake(settings.lake_uri).objects).snapshot().entries}


def test_worker_processes_index_every_shard_with_a_run_on_the_instance(
    instance: dg.DagsterInstance, settings: PipelineSettings
) -> None:
    shards = [Shard("oslo", f"d{number}") for number in range(5)]
    for shard in shards:
        put(settings, f"{shard.key}/a.txt", f"The {shard.department} canteen opens at eight.")
    reported: list[str | None] = []
    result = run_here(
        instance,
        settings,
        shards,
        tags={"a": "b"},
        at_once=2,
        build=build_definitions,
        done=lambda _, reason: reported.append(reason),
    )
    assert (sorted(result.succeeded), result.failed, reported) == (shards, {}, [None] * 5)
    assert (result.totals["added"], result.totals["embedded"], result.totals["published_documents"]) == (5, 5, 5)
    assert published(settings) == {shard.key for shard in shards}
    runs = instance.get_runs()
    assert sorted((run.tags["dagster/partition"], run.status.value, run.tags["a"]) for run in runs) == [
        (shard.key, "SUCCESS", "b") for shard in shards
    ]


def test_a_process_that_dies_fails_only_its_shard_and_is_replaced(
    instance: dg.DagsterInstance, settings: PipelineSettings
) -> None:
    shards = [Shard("oslo", f"d{number}") for number in range(4)]
    for shard in shards:
        put(settings, f"{shard.key}/a.txt", "This kills." if shard.department == "d1" else "The canteen opens.")
    result = run_here(
        instance, settings, shards, tags={}, at_once=2, build=definitions_that_die, done=lambda _shard, _reason: None
    )
    assert sorted(result.succeeded) == [shards[0], shards[2], shards[3]]
    assert list(result.failed) == [shards[1]]
    assert "died (exit code -9)" in result.failed[shards[1]]


def test_an_interrupt_ends_the_active_run_and_the_next_run_continues_from_there(
    instance: dg.DagsterInstance, settings: PipelineSettings
) -> None:
    shards = [Shard("oslo", "d0"), Shard("oslo", "d1")]
    for shard in shards:
        put(settings, f"{shard.key}/a.txt", "The canteen opens at eight.")
    reported: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_here(
            instance,
            settings,
            shards,
            tags={},
            build=definitions_that_are_interrupted,
            done=lambda shard, _: reported.append(shard.key),
        )
    (run,) = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert reported == []
    result = run_here(instance, settings, shards, tags={}, build=build_definitions, done=lambda _shard, _reason: None)
    assert (result.succeeded, result.failed) == (shards, {})
    assert (result.totals["added"], result.totals["unchanged"]) == (1, 1)


def test_a_warm_instance_writes_what_the_instance_reads(
    instance: dg.DagsterInstance, settings: PipelineSettings
) -> None:
    put(settings, "oslo/people/a.txt", "The canteen opens at eight.")
    shard = Shard("oslo", "people")
    run_here(instance, settings, [shard], tags={}, build=build_definitions, done=lambda _shard, _reason: None)
    (run,) = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.SUCCESS
    kinds = [entry.dagster_event_type for entry in instance.all_logs(run.run_id) if entry.is_dagster_event]
    assert kinds.count(dg.DagsterEventType.ASSET_MATERIALIZATION) == 5
    assert kinds[-1] == dg.DagsterEventType.RUN_SUCCESS
    latest = instance.get_latest_materialization_event(dg.AssetKey("published"))
    assert latest is not None
    assert latest.run_id == run.run_id


def test_a_warm_instance_opens_one_database_per_additional_run(
    instance: dg.DagsterInstance, settings: PipelineSettings
) -> None:
    shards = [Shard("oslo", "people"), Shard("oslo", "legal")]
    for shard in shards:
        put(settings, f"{shard.key}/a.txt", "The canteen opens at eight.")
    connections: list[object] = []
    opened: list[int] = []

    def connected(connection: object, _record: object) -> None:
        connections.append(connection)

    event.listen(Pool, "connect", connected)
    try:
        run_here(
            instance,
            settings,
            shards,
            tags={},
            build=build_definitions,
            done=lambda _shard, _reason: opened.append(len(connections)),
        )
    finally:
        event.remove(Pool, "connect", connected)
    assert opened[1] - opened[0] == 1  # Dagster's own storage opens about two hundred


def test_an_incompatible_dagster_storage_is_rejected_with_the_missing_name(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("dagster._core.storage.runs.SqliteRunStorage.connect")
    with pytest.raises(RuntimeError, match=r"has no SqliteRunStorage\.connect: .*--here"), warm_instance(instance):
        pass


def test_a_warm_instance_keeps_a_bounded_number_of_databases_open(instance: dg.DagsterInstance) -> None:
    with warm_instance(instance) as warm:
        storage = warm.event_log_storage
        assert isinstance(storage, WarmSqliteEventLogStorage)
        for number in range(40):
            warm.report_engine_event(f"note {number}", job_name="notes", run_id=f"run-{number}")
        assert len(storage._open) == 32
    for number in (0, 39):
        (entry,) = instance.all_logs(f"run-{number}")
        assert entry.message == f"note {number}"


def test_the_number_of_processes_is_limited_by_shards_objects_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert [processes_for(shards, objects) for shards, objects in ((9, 50), (1, 10**6), (3, 500), (100, 10**6))] == [
        1,
        1,
        3,
        4,
    ]


class Neighbours:
    """Others that hold one shard's lease for its first looks, and have indexed another."""

    def __init__(self, writing: Shard, indexed: Shard, looks: int) -> None:
        self.writing, self.done, self.looks = writing, indexed, looks

    def indexed(self, shard: Shard) -> bool:
        return shard == self.done

    def are_writing(self, shard: Shard) -> bool:
        if shard == self.writing:
            self.looks -= 1
        return shard == self.writing and self.looks >= 0


@pytest.mark.parametrize("at_once", [1, 2])
def test_shards_that_others_write_come_last_and_those_that_they_indexed_are_left_out(
    instance: dg.DagsterInstance, settings: PipelineSettings, at_once: int
) -> None:
    shards = [Shard("oslo", f"d{number}") for number in range(4)]
    for shard in shards:
        put(settings, f"{shard.key}/a.txt", f"The {shard.department} canteen opens at eight.")
    order: list[Shard] = []
    result = run_here(
        instance,
        settings,
        shards,
        tags={},
        at_once=at_once,
        build=build_definitions,
        done=lambda shard, _: order.append(shard),
        others=Neighbours(writing=shards[0], indexed=shards[2], looks=3),
    )
    assert (sorted(result.succeeded), result.elsewhere, result.failed) == (
        [shards[0], shards[1], shards[3]],
        [shards[2]],
        {},
    )
    assert order[-1] == shards[0]
    assert len(instance.get_runs()) == 3


def test_a_shard_that_another_writer_was_faster_to_lock_is_tried_again_and_not_reported(
    instance: dg.DagsterInstance, settings: PipelineSettings
) -> None:
    shard = Shard("oslo", "d0")
    put(settings, f"{shard.key}/a.txt", "The canteen opens at eight.")
    objects = Lake(settings.lake_uri).objects
    reasons: list[str | None] = []

    class Blind(Neighbours):
        """Sees no writer, but releases the lease once a run has met it."""

        def are_writing(self, shard: Shard) -> bool:
            if instance.get_runs_count():
                held.close()
            return False

    with ExitStack() as held:
        held.enter_context(acquire_lease(objects, shard, "a neighbour"))
        result = run_here(
            instance,
            settings,
            [shard],
            tags={},
            build=build_definitions,
            done=lambda _, reason: reasons.append(reason),
            others=Blind(shard, Shard("oslo", "none"), 0),
        )
    assert (result.succeeded, result.failed, reasons) == ([shard], {}, [None])
