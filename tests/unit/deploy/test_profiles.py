"""The profiles that `rag-assets init` writes: Dagster accepts each, and they differ in launcher and storage only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config, dagster_instance_config_schema
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import RunLauncher

from rag_assets.cli.init import write_instance
from rag_assets.cli.main import main
from rag_assets.options import PROFILES
from rag_assets.runs.launchers.judged import JudgedByHeartbeat

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
    assert f"export DAGSTER_HOME={folder}" in first.output
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    second = CliRunner().invoke(main, ["init", str(folder)])
    assert "kept as they were: dagster.yaml (delete them to have them written)" in second.output
    assert (folder / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_init_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(main, ["init", str(tmp_path / "file" / "home")])
    assert done.exit_code == 2
    assert f"cannot write into {tmp_path}/file/home: Not a directory" in done.output


def test_a_worker_for_an_instance_without_celery_says_which_profile_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_instance(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    done = CliRunner().invoke(main, ["worker"])
    assert done.exit_code == 2
    assert "launches runs with LocalRunLauncher, which needs no workers" in done.output
    assert "rag-assets init --profile workers" in " ".join(done.output.split())
