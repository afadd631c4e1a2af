"""The profiles that `rag-assets init` writes: Dagster accepts each, and they differ in launcher and storage only."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from click.testing import CliRunner, Result
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config, dagster_instance_config_schema
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import RunLauncher

from rag_assets.cli.init import write_instance
from rag_assets.cli.main import main
from rag_assets.options import PROFILES
from rag_assets.pipeline import Pipeline
from rag_assets.runs.launchers.judged import JudgedByHeartbeat
from tests.deploy_commands import PROGRAMS, check_command

VARIABLES = ("RAG_BROKER_URL", "RAG_SERVICE_ACCOUNT", "RAG_NAMESPACE", "RAG_INSTANCE_CONFIG_MAP", "RAG_IMAGE")
SHARED = ("run_monitoring", "run_retries", "retention", "telemetry")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "redis://127.0.0.1:6379/0")
    monkeypatch.setenv("RAG_WORKERS", "7")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://dagster@127.0.0.1:1/dagster")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("profile", PROFILES)
def test_dagster_accepts_the_instance_and_its_launcher_judges_heartbeats(profile: str, tmp_path: Path) -> None:
    write_instance(tmp_path, profile)
    written = yaml.safe_load((tmp_path / "dagster.yaml").read_text())
    found = validate_config(dagster_instance_config_schema(), written)
    assert found.success, found.errors
    dagster_instance_config(str(tmp_path))
    reference = InstanceRef.from_dir(str(tmp_path))
    launcher = reference.run_launcher_data
    assert launcher is not None
    module = __import__(launcher.module_name, fromlist=[launcher.class_name])
    kind = getattr(module, launcher.class_name)
    assert issubclass(kind, JudgedByHeartbeat)
    assert issubclass(kind, RunLauncher)
    configuration = validate_config({"config": kind.config_type()}, {"config": launcher.config_dict})
    assert configuration.success, configuration.errors


def instance(profile: str, folder: Path) -> dict[str, Any]:
    write_instance(folder / profile, profile)
    return yaml.safe_load((folder / profile / "dagster.yaml").read_text())


def test_profiles_differ_only_in_where_runs_execute_and_records_lie(tmp_path: Path) -> None:
    one, *others = (instance(profile, tmp_path) for profile in PROFILES)
    for other in others:
        for part in SHARED[1:]:
            assert other[part] == one[part]
        assert other["run_monitoring"] | {"start_timeout_seconds": 300} == one["run_monitoring"]
        assert "max_runtime_seconds" not in other["run_monitoring"]
        assert other["storage"] == {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_variable_of_the_instance_is_in_the_example(profile: str, tmp_path: Path) -> None:
    text = str(instance(profile, tmp_path))
    example = (tmp_path / profile / ".env.example").read_text()
    for name in (*VARIABLES, "RAG_WORKERS", "DAGSTER_POSTGRES_URL"):
        assert (f"'{name}'" in text) == (f"\n{name}=" in example)


def test_init_keeps_edited_files_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    first = CliRunner().invoke(main, ["init", str(folder)])
    assert first.exit_code == 0, first.output
    assert f"set -a; . {folder}/.env; set +a" in first.output
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    second = CliRunner().invoke(main, ["init", str(folder)])
    assert "kept as they were: dagster.yaml (delete them to have them written)" in second.output
    assert (folder / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


@pytest.mark.parametrize("profile", PROFILES)
def test_init_prints_the_commands_that_come_next(profile: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["init", "--profile", profile, str(tmp_path)])
    assert done.exit_code == 0, done.output
    _, *steps = (line.strip() for line in done.output.splitlines())
    for step in steps:
        words = shlex.split(step, comments=True)
        if words and words[0] in PROGRAMS:
            check_command(words)
    assert ("rag-assets worker" in done.output) is (profile == "workers")
    assert ("dagster-daemon run" in done.output) is (profile != "pods")
    assert ("create secret generic rag-shards" in done.output) is (profile == "pods")


def test_init_refuses_a_folder_with_another_profile(tmp_path: Path) -> None:
    write_instance(tmp_path, "one-machine")
    before = (tmp_path / "dagster.yaml").read_text()
    done = CliRunner().invoke(main, ["init", "--profile", "workers", str(tmp_path)])
    assert done.exit_code == 2
    assert "has the profile one-machine; to replace it by workers, delete dagster.yaml" in done.output
    assert (tmp_path / "dagster.yaml").read_text() == before


def test_init_creates_the_databases_before_several_processes_open_them(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["init", str(tmp_path)]).exit_code == 0
    for name in ("history/runs.db", "history/runs/index.db", "schedules/schedules.db"):
        assert (tmp_path / name).is_file()


def test_the_example_of_the_environment_can_be_loaded_by_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my home"
    write_instance(folder)
    script = 'set -a; . "$0"/.env.example; set +a; printenv DAGSTER_HOME'
    done = subprocess.run(["sh", "-c", script, str(folder)], capture_output=True, text=True, check=False)
    assert done.stdout == f"{folder}\n", done.stderr


def test_init_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(main, ["init", str(tmp_path / "file" / "home")])
    assert done.exit_code == 2
    assert f"cannot write into {tmp_path}/file/home: Not a directory" in done.output


LAUNCHERS = {
    "local": "{module: rag_assets.runs.launchers.local, class: LocalRunLauncher}",
    "kubernetes": "{module: rag_assets.runs.launchers.kubernetes, class: KubernetesRunLauncher}",
    "celery": "{module: rag_assets.runs.launchers.celery, class: CeleryRunLauncher, config: {broker: 'nothing://'}}",
}


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """Run a worker on an instance with the launcher, with a source and a lake that exist."""
    for name, uri in (("RAG_SOURCE_URI", tmp_path), ("RAG_LAKE_URI", tmp_path / "lake"), ("DAGSTER_HOME", tmp_path)):
        monkeypatch.setenv(name, str(uri))

    def run(launcher: str) -> Result:
        (tmp_path / "dagster.yaml").write_text(f"run_launcher: {LAUNCHERS[launcher]}\n")
        return CliRunner().invoke(main, ["worker"])

    return run


@pytest.mark.parametrize(("launcher", "name"), [("local", "LocalRunLauncher"), ("kubernetes", "KubernetesRunLauncher")])
def test_a_worker_for_an_instance_without_celery_says_which_profile_has_it(
    worker: Callable[[str], Result], launcher: str, name: str
) -> None:
    done = worker(launcher)
    assert done.exit_code == 2
    assert f"launches runs with {name}, which needs no workers" in done.output
    assert "rag-assets init --profile workers" in " ".join(done.output.split())


def test_a_worker_names_the_variable_of_an_invalid_broker(worker: Callable[[str], Result]) -> None:
    done = worker("celery")
    assert done.exit_code == 2
    assert "No such transport: nothing" in done.output
    assert "check RAG_BROKER_URL" in done.output


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("RAG_SOURCE_URI", "", "SettingsError: RAG_SOURCE_URI is not set"),
        ("RAG_SOURCE_URI", "/nowhere", "SourceRefused: the source folder /nowhere does not exist"),
        ("RAG_LAKE_URI", "ftp://lake", "SettingsError: RAG_LAKE_URI: ftp:// is not supported"),
    ],
)
def test_a_worker_refuses_to_start_without_a_source_and_a_lake(
    worker: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch, setting: str, value: str, message: str
) -> None:
    monkeypatch.setitem(LAUNCHERS, "celery", LAUNCHERS["celery"].replace("nothing://", "redis://127.0.0.1:1/0"))
    monkeypatch.setenv(setting, value)
    done = worker("celery")
    assert done.exit_code == 2
    assert message in done.output


def test_the_process_that_celery_forks_opens_neither_source_nor_lake(
    worker: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LAUNCHERS, "celery", LAUNCHERS["celery"].replace("nothing://", "redis://127.0.0.1:1/0"))
    for name in ("source", "lake"):
        monkeypatch.setattr(Pipeline, name, Mock(side_effect=AssertionError))
    started = Mock()
    monkeypatch.setattr("rag_assets.runs.launchers.celery.work", started)
    done = worker("celery")
    assert done.exit_code == 0, done.output
    assert "127.0.0.1:1/0 (RAG_BROKER_URL)" in done.output
    started.assert_called_once()


def test_workers_of_one_host_have_different_names(tmp_path: Path) -> None:
    from rag_assets.runs.launchers.celery import work

    launcher = Mock()
    work(launcher, 1, "info")
    work(launcher, 1, "info", "celery@%h")
    names = [call.args[0][2] for call in launcher.celery.worker_main.call_args_list]
    assert names == [f"--hostname=rag-{os.getpid()}@%h", "--hostname=celery@%h"]
