"""The launchers' health check: runs are judged by their heartbeats, and by nothing else that can be slow or lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.launcher import CheckRunHealthResult, RunLauncher, WorkerStatus

from rag_assets.defs.build import build_definitions
from rag_assets.runs.launchers.judged import Heartbeats, JudgedByHeartbeat
from rag_assets.runs.launchers.local import LocalRunLauncher
from rag_assets.runs.tags import LAKE_TAG
from rag_assets.storage.heartbeat import (
    HEARTBEATS,
    SILENT_AFTER,
    forget_heartbeats,
    heartbeat_key,
    keep_heartbeat,
)
from rag_serving.errors import LakeUnavailable
from rag_serving.lake.object_store import ObjectStore, open_object_store
from tests.pipelines import settings_for

RUN = "0f2ad1a5-run"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Unreachable:
    """A lake that does not answer while `down`."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self.down = False

    def get(self, key: str) -> Any:
        if self.down:
            raise LakeUnavailable("no route to host")
        return self.objects.get(key)


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return open_object_store(str(tmp_path / "lake"))


def beats(objects: Any) -> tuple[Heartbeats, Clock]:
    clock = Clock()
    return Heartbeats(lambda _: objects, clock), clock


def test_a_beat_that_changes_resets_the_silence_however_long_the_run_takes(objects: ObjectStore) -> None:
    heartbeats, clock = beats(objects)
    for number in range(50):
        objects.put(heartbeat_key(RUN), str(number).encode())
        assert heartbeats.silent_for(RUN, "lake") == 0
        clock.now += SILENT_AFTER * 0.9
        assert heartbeats.silent_for(RUN, "lake") < SILENT_AFTER


def test_a_beat_that_stops_is_silent_from_the_check_that_first_saw_it(objects: ObjectStore) -> None:
    heartbeats, clock = beats(objects)
    objects.put(heartbeat_key(RUN), b"1")
    heartbeats.silent_for(RUN, "lake")
    clock.now += 46
    assert heartbeats.silent_for(RUN, "lake") == 46


def test_an_outage_of_the_lake_is_not_the_silence_of_a_run(objects: ObjectStore) -> None:
    lake = Unreachable(objects)
    heartbeats, clock = beats(lake)
    objects.put(heartbeat_key(RUN), b"1")
    heartbeats.silent_for(RUN, "lake")
    lake.down = True
    clock.now += 600
    assert heartbeats.silent_for(RUN, "lake") == 0
    lake.down = False
    assert heartbeats.silent_for(RUN, "lake") == 0  # the run had no chance to beat meanwhile
    clock.now += 50
    assert heartbeats.silent_for(RUN, "lake") == 50


def test_a_run_that_never_names_its_lake_is_silent_from_its_first_check() -> None:
    heartbeats, clock = beats(None)
    heartbeats.silent_for(RUN, None)
    clock.now += 60
    assert heartbeats.silent_for(RUN, None) == 60


def test_a_run_beats_while_it_works_and_leaves_nothing_behind(objects: ObjectStore) -> None:
    with keep_heartbeat(objects, RUN, interval=0.01):
        seen = {found.data for found in polled(objects, times=4)}
    assert len(seen) >= 4
    assert objects.list(HEARTBEATS) == []


def polled(objects: ObjectStore, times: int) -> Iterator[Any]:
    """Yield the heartbeat each time it has changed."""
    last, until = None, time.monotonic() + 30
    while times and time.monotonic() < until:
        found = objects.get(heartbeat_key(RUN))
        if found is not None and found.data != last:
            last, times = found.data, times - 1
            yield found


def test_a_short_run_writes_no_heartbeat(objects: ObjectStore) -> None:
    with keep_heartbeat(objects, RUN):
        pass
    assert objects.list(HEARTBEATS) == []


def test_a_heartbeat_that_the_lake_refuses_does_not_stop_the_run() -> None:
    class Refuses:
        asked = 0

        def put(self, key: str, data: bytes, *, expect: str = "any") -> str:
            self.asked += 1
            raise LakeUnavailable("read-only")

        def delete(self, key: str) -> None:
            raise LakeUnavailable("read-only")

    refuses: Any = Refuses()
    with keep_heartbeat(refuses, RUN, interval=0.01):
        until = time.monotonic() + 30
        while refuses.asked < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert refuses.asked >= 3


def test_heartbeats_of_dead_runs_are_forgotten(objects: ObjectStore) -> None:
    for number in range(3):
        objects.put(heartbeat_key(f"run-{number}"), b"1")
    assert forget_heartbeats(objects) == 3
    assert objects.list(HEARTBEATS) == []


class Launcher(JudgedByHeartbeat, RunLauncher):  # pyright: ignore[reportMissingTypeArgument, reportIncompatibleMethodOverride]
    """A launcher that always reports the given status."""

    def __init__(self, status: WorkerStatus, heartbeats: Heartbeats) -> None:
        self.status = status
        self._heartbeats = heartbeats

    def launch_run(self, context: Any) -> None: ...

    def terminate(self, run_id: str) -> bool:
        return False

    def _known_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        return CheckRunHealthResult(self.status)


@pytest.mark.parametrize("said", [WorkerStatus.UNKNOWN, WorkerStatus.NOT_FOUND, WorkerStatus.SUCCESS])
def test_a_beating_run_lives_whatever_the_launcher_forgot_of_it(objects: ObjectStore, said: WorkerStatus) -> None:
    heartbeats, clock = beats(objects)
    launcher, run = Launcher(said, heartbeats), dg.DagsterRun("index_shard", tags={LAKE_TAG: "lake"})
    assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    clock.now += SILENT_AFTER
    judged = launcher.check_run_worker_health(run)
    assert judged.status == WorkerStatus.FAILED
    assert "heartbeat stopped 45 seconds ago" in (judged.msg or "")


def test_a_worker_that_the_launcher_saw_fail_is_failed_at_once(objects: ObjectStore) -> None:
    launcher = Launcher(WorkerStatus.FAILED, beats(objects)[0])
    run = dg.DagsterRun("index_shard", tags={LAKE_TAG: "lake"})
    assert launcher.check_run_worker_health(run).status == WorkerStatus.FAILED


def test_runs_without_the_pipeline_are_judged_by_the_launcher_alone(tmp_path: Path) -> None:
    @dg.asset
    def chunks() -> None: ...  # of another project, which has an asset of the same name

    @dg.asset(required_resource_keys={"pipeline"})
    def mine() -> None: ...

    foreign = dg.Definitions([chunks, mine], resources={"pipeline": dg.ResourceDefinition.hardcoded_resource(1)})
    ours = build_definitions(settings_for(str(tmp_path), str(tmp_path / "lake")))
    with dg.DagsterInstance.ephemeral() as instance:
        launcher = LocalRunLauncher()
        launcher.register_instance(instance)
        clock = Clock()
        launcher._heartbeats = Heartbeats(clock=clock)

        def judged(job: dg.JobDefinition) -> WorkerStatus:
            run = instance.create_run_for_job(job)
            launcher.check_run_worker_health(run)
            clock.now += 600
            return launcher.check_run_worker_health(run).status

        assert judged(foreign.resolve_implicit_global_asset_job_def()) == WorkerStatus.RUNNING
        for job in ("index_shard", "maintain", "refresh_company_index", "export_model", "watch"):
            assert judged(ours.resolve_job_def(job)) == WorkerStatus.FAILED, job
