"""What the commands make of Dagster's answers; the server is a stand-in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from rag_assets.cli.output import watch_with_progress
from rag_assets.errors import OrchestrationError
from rag_assets.runs.backfill import require_shared_settings, wait_for_start, watch_backfill
from rag_assets.runs.dagster_api import DagsterApi, remote_api
from rag_assets.runs.names import Names
from rag_assets.settings import PipelineSettings
from rag_serving.cli.errors import NamedClickError
from rag_serving.errors import SettingsError


class Dagster:
    """Answers queries like a web server with one code location."""

    def __init__(
        self, *runs: tuple[str, str | None], beat: float = 0.0, healthy: bool = True, launcher: str = ""
    ) -> None:
        self.runs = runs
        self.beat = beat
        self.healthy = healthy
        self.launcher = launcher
        self.looks = 0

    def api(self, launcher: str | None = None) -> DagsterApi:
        return DagsterApi(self.answer, Names(), None, launcher=launcher)

    def answer(self, query: str, variables: Mapping[str, Any]) -> Any:
        if "workspaceOrError" in query:
            jobs = {"repositories": [{"name": "r", "jobs": [{"name": "index_shard"}]}]}
            entry = {"name": "rag", "locationOrLoadError": {"__typename": "RepositoryLocation", **jobs}}
            return {"data": {"workspaceOrError": {"__typename": "Workspace", "locationEntries": [entry]}}}
        if "runLauncher" in query:
            return {"data": {"instance": {"runLauncher": {"name": self.launcher} if self.launcher else None}}}
        if "daemonHealth" in query:
            statuses = [
                {"daemonType": kind, "healthy": self.healthy, "lastHeartbeatTime": time.time() - self.beat}
                for kind in ("BACKFILL", "QUEUED_RUN_COORDINATOR")
            ]
            return {"data": {"instance": {"daemonHealth": {"allDaemonStatuses": statuses}}}}
        assert "partitionBackfillOrError" in query
        self.looks += 1
        results = [{"partitionName": name, "runStatus": status, "runId": "1"} for name, status in self.runs]
        backfill = {
            "__typename": "PartitionBackfill",
            "status": "REQUESTED" if any(status is None for _, status in self.runs) else "COMPLETED_FAILED",
            "numPartitions": len(results),
            "error": None,
            "partitionStatuses": {"results": results},
        }
        return {"data": {"partitionBackfillOrError": backfill}}


def test_a_daemon_that_died_minutes_ago_is_noticed_although_dagster_calls_it_healthy() -> None:
    Dagster(beat=40).api().require_daemon()
    with pytest.raises(
        OrchestrationError, match=r"no Dagster daemon is running \(backfill: last heartbeat 300 seconds"
    ):
        Dagster(beat=300).api().require_daemon()
    with pytest.raises(OrchestrationError, match="no Dagster daemon is running"):
        Dagster(healthy=False).api().require_daemon()


def test_a_backfill_that_nothing_starts_is_an_error() -> None:
    waiting = Dagster(("Oslo/people", None))
    with pytest.raises(OrchestrationError, match="the daemon did not start backfill abc within 0 seconds"):
        wait_for_start(waiting.api(), "abc", seconds=0.01)
    wait_for_start(Dagster(("Oslo/people", "QUEUED"), ("Oslo/it", None)).api(), "abc", seconds=5)


def test_a_watched_backfill_ends_with_an_error_if_the_daemon_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.runs.backfill.DAEMON_SECONDS", 0.0)
    dead = Dagster(("Oslo/people", None), beat=300)
    with pytest.raises(OrchestrationError, match="no Dagster daemon is running"):
        watch_backfill(dead.api(), "abc", lambda progress: None, poll_seconds=0.01)
    assert dead.looks == 2


def test_a_terminated_run_is_not_called_failed_and_the_next_backfill_continues_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(NamedClickError) as raised:
        watch_with_progress(Dagster(("Oslo/people", "CANCELED"), ("Oslo/it", "SUCCESS")).api(), "abc")
    assert raised.value.message == "1 run terminated: Oslo/people; run rag-assets backfill to continue"
    assert "failed" not in capsys.readouterr().err


@pytest.mark.parametrize("known", [True, False])
def test_pods_need_a_lake_on_s3(known: bool) -> None:
    name = "KubernetesRunLauncher"
    api = Dagster(launcher="" if known else name).api(name if known else None)
    api.require_shared_lake("s3://lake/rag")
    with pytest.raises(OrchestrationError, match="pods, which cannot reach the lake in the folder"):
        api.require_shared_lake("./lake")


@pytest.mark.parametrize("launcher", ["", "LocalRunLauncher"])
def test_other_launchers_take_any_lake(launcher: str) -> None:
    Dagster(launcher=launcher).api().require_shared_lake("./lake")


def test_a_url_without_a_scheme_is_refused() -> None:
    with pytest.raises(OrchestrationError, match="RAG_DAGSTER_URL must begin with http:// or https://"):
        remote_api("dagster:3000", None, Names(), None)


def test_a_web_server_elsewhere_needs_a_lake_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAG_LAKE_URI", raising=False)
    require_shared_settings(PipelineSettings())
    monkeypatch.setenv("RAG_DAGSTER_URL", "http://dagster:3000")
    with pytest.raises(SettingsError, match="RAG_LAKE_URI is not set; with RAG_DAGSTER_URL"):
        require_shared_settings(PipelineSettings())
    monkeypatch.setenv("RAG_LAKE_URI", "./lake")
    require_shared_settings(PipelineSettings())
