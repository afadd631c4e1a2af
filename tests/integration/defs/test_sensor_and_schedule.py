"""The listing sensor and the schedule, evaluated on their own instance: which shards they request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from rag_assets.arrivals.pending import RETRY_SECONDS
from rag_assets.defs.build import build_definitions
from rag_assets.errors import SourceRefused
from rag_assets.runs.names import Names
from rag_assets.runs.status import ACTIVE, active_shards
from rag_assets.settings import PipelineSettings
from rag_serving.errors import SettingsError
from rag_serving.lake.shards import Shard
from tests.pipelines import failure_of, run_shard, seed_model, settings_for
from tests.servers.roots import FolderRoot

LOCATION = RegisteredCodeLocationOrigin("rag_assets")
Tick = Callable[..., SensorExecutionData]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on disk: sensors and schedules reopen it by reference, which an in-memory one does not have."""
    home = tmp_path / "dagster-home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as local:
        yield local


@pytest.fixture
def source(tmp_path: Path) -> FolderRoot:
    folder = tmp_path / "source"
    folder.mkdir()
    return FolderRoot(folder)


@pytest.fixture
def settings(source: FolderRoot, tmp_path: Path) -> PipelineSettings:
    return settings_for(source.uri, str(tmp_path / "lake"))


def pipeline_of(definitions: dg.Definitions) -> dict[str, Any]:
    return {"pipeline": (definitions.resources or {})["pipeline"]}


def sensor_context(
    instance: dg.DagsterInstance, definitions: dg.Definitions, cursor: str | None
) -> dg.SensorEvaluationContext:
    return dg.build_sensor_context(
        instance=instance,
        instance_ref=instance.get_ref(),
        cursor=cursor,
        definitions=definitions,
        resources=pipeline_of(definitions),
    )


@pytest.fixture
def tick(instance: dg.DagsterInstance, settings: PipelineSettings) -> Tick:
    """Evaluate the sensor with the definitions' own resources and add the partitions it requests."""

    def evaluate(cursor: str | None = None, settings: PipelineSettings = settings) -> SensorExecutionData:
        definitions = build_definitions(settings)
        with sensor_context(instance, definitions, cursor) as context:
            found = definitions.resolve_sensor_def("s3_arrivals").evaluate_tick(context)
        for request in found.dynamic_partitions_requests or ():
            instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        return found

    return evaluate


def requested(found: SensorExecutionData) -> list[str]:
    return [request.partition_key or "" for request in found.run_requests or ()]


def a_run(instance: dg.DagsterInstance, key: str, status: dg.DagsterRunStatus, job: str = "index_shard") -> None:
    instance.create_run_for_job(
        build_definitions(PipelineSettings.model_validate({})).resolve_job_def(job),
        tags={"dagster/partition": key} if key else {},
        status=status,
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(LOCATION, "__repository__"), job),
    )


def test_every_new_shard_is_requested_once_and_becomes_a_partition(
    tick: Tick, instance: dg.DagsterInstance, source: FolderRoot
) -> None:
    for key in ("Oslo/people/a.md", "Oslo/people/b.md", "Malmö/it & web/c/d.md"):
        source.put(key, b"text")
    found = tick()
    assert requested(found) == ["Malmö/it & web", "Oslo/people"]
    assert sorted(instance.get_dynamic_partitions("shard")) == ["Malmö/it & web", "Oslo/people"]
    assert found.skip_message is None


def test_only_new_partitions_are_registered(tick: Tick, instance: dg.DagsterInstance, source: FolderRoot) -> None:
    Names().add_shards(instance, [Shard("Oslo", "people")])
    source.put("Oslo/people/a.md", b"text")
    source.put("Oslo/it/a.md", b"text")
    (request,) = tick().dynamic_partitions_requests or ()
    assert list(request.partition_keys) == ["Oslo/it"]


def test_a_requested_shard_is_recorded_as_an_observation_with_its_listing_digest(
    tick: Tick, source: FolderRoot
) -> None:
    source.put("Oslo/people/a.md", b"text")
    found = tick()
    (event,) = found.asset_events
    assert isinstance(event, dg.AssetObservation)
    assert (event.asset_key.to_user_string(), event.partition) == ("source_objects", "Oslo/people")
    (request,) = found.run_requests or ()
    assert str(event.metadata["source_digest"].value)[-12:] in (request.run_key or "")


def test_an_empty_source_requests_nothing_and_reports_it(tick: Tick) -> None:
    found = tick()
    assert requested(found) == []
    assert found.skip_message == "0 objects in 0 shards; 0 dirty, 0 requested, 0 waiting"


def test_a_published_shard_is_clean_until_its_documents_change(
    tick: Tick, instance: dg.DagsterInstance, source: FolderRoot, settings: PipelineSettings, model_lake: str
) -> None:
    seed_model(model_lake, settings.lake_uri)
    source.put("Oslo/people/a.md", b"The canteen opens at eight.")
    source.put("Oslo/it/a.md", b"Ask for a badge at the desk.")
    found = tick()
    for key in requested(found):
        result = run_shard(instance, settings, key)
        assert result.success, failure_of(result)

    clean = tick(found.cursor)
    assert requested(clean) == []
    assert clean.skip_message == "2 objects in 2 shards; 0 dirty, 0 requested, 0 waiting"

    source.put("Oslo/people/a.md", b"The canteen opens at nine now.")
    changed = tick(clean.cursor)
    assert requested(changed) == ["Oslo/people"]
    before = {request.run_key for request in found.run_requests or ()}
    assert before.isdisjoint(request.run_key for request in changed.run_requests or ())
    assert run_shard(instance, settings, "Oslo/people").success

    source.delete("Oslo/it/a.md")
    gone = tick(changed.cursor)
    assert requested(gone) == ["Oslo/it"]


def test_a_shard_is_not_requested_again_while_its_run_may_still_start(tick: Tick, source: FolderRoot) -> None:
    source.put("Oslo/people/a.md", b"text")
    found = tick()
    again = tick(found.cursor)
    assert requested(again) == []
    assert again.skip_message == "1 objects in 1 shards; 1 dirty, 0 requested, 1 waiting"


@pytest.mark.parametrize("status", ACTIVE)
def test_a_shard_with_a_queued_or_running_run_is_skipped(
    tick: Tick, instance: dg.DagsterInstance, source: FolderRoot, status: dg.DagsterRunStatus
) -> None:
    source.put("Oslo/people/a.md", b"text")
    source.put("Oslo/it/a.md", b"text")
    a_run(instance, "Oslo/people", status)
    assert requested(tick()) == ["Oslo/it"]


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
)
def test_a_finished_run_does_not_block_a_new_request(
    tick: Tick, instance: dg.DagsterInstance, source: FolderRoot, status: dg.DagsterRunStatus
) -> None:
    source.put("Oslo/people/a.md", b"text")
    a_run(instance, "Oslo/people", status)
    assert requested(tick()) == ["Oslo/people"]


def test_runs_of_other_jobs_do_not_count_as_active_shards(instance: dg.DagsterInstance) -> None:
    a_run(instance, "", dg.DagsterRunStatus.STARTED, job="export_model")
    a_run(instance, "2026-01-01", dg.DagsterRunStatus.STARTED, job="export_model")
    assert active_shards(instance, Names()) == frozenset()


def test_a_shard_whose_run_failed_is_requested_again_after_its_backoff(tick: Tick, source: FolderRoot) -> None:
    source.put("Oslo/people/a.md", b"text")
    found = tick()
    cursor = json.loads(found.cursor or "")
    digest, at, attempts = cursor["asked"]["Oslo/people"]
    cursor["asked"]["Oslo/people"] = [digest, at - RETRY_SECONDS - 60, attempts]
    again = tick(json.dumps(cursor))
    assert requested(again) == ["Oslo/people"]
    (first,), (second,) = found.run_requests or (), again.run_requests or ()
    assert first.run_key != second.run_key  # Dagster drops a request with a known run key
    assert json.loads(again.cursor or "")["asked"]["Oslo/people"][2] == 2


def test_a_failed_shard_that_changes_is_requested_immediately(tick: Tick, source: FolderRoot) -> None:
    source.put("Oslo/people/a.md", b"text")
    found = tick()
    source.put("Oslo/people/a.md", b"another text")
    assert requested(tick(found.cursor)) == ["Oslo/people"]


def test_a_repeated_tick_requests_the_same_run_keys(tick: Tick, source: FolderRoot) -> None:
    for name in ("a", "b", "c"):
        source.put(f"Oslo/{name}/a.md", b"text")
    first, second = tick(), tick()
    assert [r.run_key for r in first.run_requests or ()] == [r.run_key for r in second.run_requests or ()]


def test_a_tick_requests_at_most_max_runs_and_the_next_one_continues(
    tick: Tick, source: FolderRoot, settings: PipelineSettings
) -> None:
    for number in range(5):
        source.put(f"Oslo/{number}/a.md", b"text")
    capped = settings.model_copy(update={"arrivals_max_runs": 2})
    cursor, ticks = None, []
    for _ in range(4):
        found = tick(cursor, capped)
        ticks.append(requested(found))
        cursor = found.cursor
    assert ticks == [["Oslo/0", "Oslo/1"], ["Oslo/2", "Oslo/3"], ["Oslo/4"], []]


def test_keys_outside_region_and_department_are_counted_with_examples(tick: Tick, source: FolderRoot) -> None:
    for key in ("loose.md", "Oslo/loose.md", "bad\nname/people/a.md"):
        source.put(key, b"text")
    message = tick().skip_message or ""
    assert "0 objects in 0 shards" in message
    assert "3 keys outside region/department/" in message
    assert "'loose.md'" in message
    assert "'Oslo/loose.md'" in message


@pytest.mark.parametrize("cursor", [None, '{"format":1,"serial":7,"resume_after":"","asked":{},"swept":[]}'])
def test_a_missing_source_raises_what_to_check_and_leaves_the_cursor_unchanged(
    tick: Tick, instance: dg.DagsterInstance, source: FolderRoot, cursor: str | None, settings: PipelineSettings
) -> None:
    source.folder.rmdir()
    definitions = build_definitions(settings)
    with sensor_context(instance, definitions, cursor) as context:
        with pytest.raises(SourceRefused, match=r"the source folder .* does not exist; check RAG_SOURCE_URI"):
            definitions.resolve_sensor_def("s3_arrivals").evaluate_tick(context)
        assert context.cursor == cursor
        assert not context.cursor_updated


def test_an_unset_source_is_an_error_that_names_the_variable(tick: Tick, settings: PipelineSettings) -> None:
    with pytest.raises(SettingsError, match="RAG_SOURCE_URI is not set"):
        tick(None, settings.model_copy(update={"source_uri": None}))


def test_an_unreadable_cursor_starts_from_the_beginning(tick: Tick, source: FolderRoot) -> None:
    source.put("Oslo/people/a.md", b"text")
    assert requested(tick("from another version")) == ["Oslo/people"]


def requests_of(
    instance: dg.DagsterInstance, settings: PipelineSettings, at: datetime = datetime(2026, 5, 1, 2, tzinfo=UTC)
) -> dict[str, str]:
    """Evaluate the schedule once and return its run keys by partition."""
    definitions = build_definitions(settings)
    with dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=at,
        repository_def=definitions.get_repository_def(),
        resources=pipeline_of(definitions),
    ) as context:
        found = definitions.resolve_schedule_def("reconcile").evaluate_tick(context)
    return {request.partition_key or "": request.run_key or "" for request in found.run_requests or ()}


def test_the_schedule_requests_every_known_and_every_new_shard(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    Names().add_shards(instance, [Shard("Bergen", "gone from the source")])
    source.put("Oslo/people/a.md", b"text")
    source.put("Oslo/people/b.md", b"text")
    source.put("Oslo/it/a.md", b"text")
    assert list(requests_of(instance, settings)) == ["Bergen/gone from the source", "Oslo/it", "Oslo/people"]
    assert set(instance.get_dynamic_partitions("shard")) == {"Bergen/gone from the source", "Oslo/it", "Oslo/people"}


def test_the_schedule_finds_every_new_shard_regardless_of_the_sweep_time_limit(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    for number in range(30):
        source.put(f"Oslo/{number:02}/a.md", b"text")
    source.put("Oslo/nothing to read/.hidden.md", b"text")
    hurried = settings.model_copy(update={"arrivals_tick_seconds": 1e-9})
    assert list(requests_of(instance, hurried)) == [f"Oslo/{number:02}" for number in range(30)]


def test_the_schedule_uses_one_run_key_per_shard_and_night(
    instance: dg.DagsterInstance, settings: PipelineSettings, source: FolderRoot
) -> None:
    source.put("Oslo/people/a.md", b"text")
    night = datetime(2026, 5, 1, 2, tzinfo=UTC)
    same, next_one = requests_of(instance, settings, night), requests_of(instance, settings, night + timedelta(days=1))
    assert same == requests_of(instance, settings, night)
    assert same != next_one
