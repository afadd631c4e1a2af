"""`rag-assets backfill` through a real daemon and web server: what it prints and exits with, in any state of theirs."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import requests

from rag_assets.cli.init import write_instance
from rag_serving.lake.catalog_entry import catalog_key
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.shards import Shard
from tests.pipelines import published_rows, seed_model
from tests.servers.processes import free_port
from tests.stress.burst import ROOT, daemon, daemon_environment, daemon_is_ready

PAGES = {
    "Oslo/people/leave.txt": "Parental leave is 49 weeks at full pay.\n",
    "Oslo/finance/travel.txt": "The per-diem for travel in Norway is 980 kroner.\n",
}


@dataclass(frozen=True)
class Office:
    """A source, a lake and a Dagster instance, and the variables of commands and processes that use them."""

    folder: Path
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def lake(self) -> str:
        return self.environment["RAG_LAKE_URI"]

    def command(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `rag-assets` in an empty folder, so that it finds no workspace.yaml but the one in DAGSTER_HOME."""
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-m", "rag_assets.cli", *arguments],
            env={name: value for name, value in (self.environment | variables).items() if value},
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    @contextlib.contextmanager
    def web_server(self) -> Generator[str]:
        """Run Dagster's web server and yield its URL."""
        port = free_port()
        command = [str(Path(sys.executable).with_name("dagster-webserver")), "-h", "127.0.0.1", "-p", str(port)]
        with (self.folder / "web.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "-w", str(self.home / "workspace.yaml")],
                env=self.environment,
                cwd=self.home,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(lambda: "Serving dagster-webserver" in (self.folder / "web.log").read_text())
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.fixture(scope="module")
def office(model_lake: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """An office whose daemon runs, and knows the pipeline as the code location `documents-eu`."""
    folder = tmp_path_factory.mktemp("office")
    for key, text in PAGES.items():
        (folder / "source" / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / key).write_text(text)
    seed_model(model_lake, str(folder / "lake"))
    write_instance(folder / "home", location="documents-eu")
    environment = daemon_environment(folder / "source", folder / "lake", folder / "home")
    found = Office(folder, environment | {"PYTHONPATH": str(ROOT)})
    with (
        dg.DagsterInstance.from_config(str(found.home)) as instance,
        daemon(found.environment, folder / "daemon.log", shutil.copy(found.home / "workspace.yaml", folder)),
    ):
        wait_until(lambda: daemon_is_ready(instance))
        yield found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_code_location_is_found_in_the_workspace_whatever_its_name(office: Office) -> None:
    done = office.command("backfill", "--all", "--wait")
    assert done.returncode == 0, done.stderr
    assert re.search(r"started backfill \w+ of 2 shards in the daemon", done.stdout)
    assert "all shards are published" in done.stdout
    for key, text in PAGES.items():
        (row,) = published_rows(office.lake, key.rpartition("/")[0])
        assert row["text"] == text.strip()


@pytest.mark.slow
def test_a_location_that_the_workspace_does_not_have_is_refused_before_anything_starts(office: Office) -> None:
    done = office.command("backfill", "--all", "--location", "nowhere")
    assert done.returncode == 2
    assert "Dagster has no code location nowhere with the job index_shard; it has: documents-eu" in done.stderr
    assert "started" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("waiting", [["--wait"], []])
def test_without_a_workspace_a_location_that_the_daemon_does_not_know_is_its_refusal_and_no_success(
    office: Office, waiting: list[str]
) -> None:
    workspace = office.home / "workspace.yaml"
    hidden = workspace.rename(office.folder / "hidden.yaml")
    try:
        done = office.command("backfill", "--all", "--location", "nowhere", *waiting)
    finally:
        hidden.rename(workspace)
    assert done.returncode == 2
    assert "the daemon refused backfill" in done.stderr
    assert "nowhere" in done.stderr
    assert "published" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_failed_shard_is_named_with_its_reason_and_selected_again(office: Office) -> None:
    page = office.folder / "source" / "Tromso/people/light.txt"
    page.parent.mkdir(parents=True)
    page.write_text("Lamps are lent out in winter.\n")
    shard = Shard("Tromso", "people")
    open_object_store(office.lake).put(catalog_key(shard), b"not JSON")
    done = office.command("backfill", "--region", "Tromso", "--wait")
    open_object_store(office.lake).delete(catalog_key(shard))
    assert done.returncode == 2
    assert "Tromso/people failed: LakeCorrupt: " in done.stderr
    assert "1 shard failed: Tromso/people; fix the cause" in done.stderr
    with office.web_server() as url:
        again = office.command("backfill", "--failed", "--dry-run", RAG_DAGSTER_URL=url, DAGSTER_HOME="")
    assert "1 selected (failed)\nTromso/people\n" in again.stdout, again.stderr


@pytest.mark.slow
def test_a_web_server_s_url_replaces_the_local_instance(office: Office) -> None:
    page = office.folder / "source" / "Bergen/people/hours.txt"
    page.parent.mkdir(parents=True)
    page.write_text("The office in Bergen opens at eight.\n")
    with office.web_server() as url:
        done = office.command("backfill", "--region", "Bergen", "--wait", RAG_DAGSTER_URL=url, DAGSTER_HOME="")
        assert done.returncode == 0, done.stderr
        unknown = office.command("backfill", "--all", "--location", "nowhere", RAG_DAGSTER_URL=url, DAGSTER_HOME="")
    assert published_rows(office.lake, "Bergen/people")[0]["text"] == "The office in Bergen opens at eight."
    assert unknown.returncode == 2
    assert "Dagster has no code location nowhere with the job index_shard; it has: documents-eu" in unknown.stderr


@pytest.mark.slow
def test_a_terminated_run_ends_and_its_shard_is_indexed_by_the_next(office: Office) -> None:
    folder = office.folder / "source" / "Narvik/people"
    folder.mkdir(parents=True)
    for number in range(300):
        (folder / f"{number}.txt").write_text(f"Ore number {number} leaves the harbour by ship. " * 150)
    assert office.command("backfill", "--region", "Narvik").returncode == 0
    with dg.DagsterInstance.from_config(str(office.home)) as instance, office.web_server() as url:

        def working() -> str | None:
            for run in instance.get_runs(dg.RunsFilter(tags={"dagster/partition": "Narvik/people"})):
                started = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
                if any(entry.step_key == "embeddings" for entry in started):
                    return run.run_id
            return None

        wait_until(lambda: working() is not None)
        run_id = working() or ""
        mutation = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"
        reply = requests.post(f"{url}/graphql", json={"query": mutation, "variables": {"id": run_id}}, timeout=30)
        assert reply.json()["data"]["terminateRun"]["__typename"] == "TerminateRunSuccess"
        wait_until(lambda: instance.get_run_by_id(run_id).is_finished)  # pyright: ignore[reportOptionalMemberAccess]
        ended = instance.get_run_by_id(run_id)
    assert ended is not None
    assert ended.status == dg.DagsterRunStatus.CANCELED
    done = office.command("backfill", "--region", "Narvik", "--wait")
    assert done.returncode == 0, done.stderr
    assert len({row["doc_id"] for row in published_rows(office.lake, "Narvik/people")}) == 300


@pytest.mark.slow
def test_a_web_server_elsewhere_needs_a_lake_that_is_named_and_none_is_created(office: Office) -> None:
    done = office.command("backfill", "--all", RAG_DAGSTER_URL="http://127.0.0.1:9", RAG_LAKE_URI="")
    assert done.returncode == 2
    assert "SettingsError: RAG_LAKE_URI is not set; with RAG_DAGSTER_URL" in done.stderr
    assert not (office.folder / "elsewhere" / "lake").exists()


@pytest.mark.slow
def test_a_url_without_a_dagster_behind_it_is_named(office: Office) -> None:
    done = office.command("backfill", "--all", RAG_DAGSTER_URL="http://127.0.0.1:9", DAGSTER_HOME="")
    assert done.returncode == 2
    assert "Dagster does not answer at http://127.0.0.1:9 (ConnectionError); check RAG_DAGSTER_URL" in done.stderr
    assert "Traceback" not in done.stderr
