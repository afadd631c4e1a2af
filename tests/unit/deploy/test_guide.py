"""The commands of docs/operations/deployment.md fit the files of deploy/; Docker, Helm and Dagster+ are not called."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from rag_assets.cli.init import write_instance
from tests.deploy_commands import PROGRAMS, check_command
from tests.docs_pages import ROOT, blocks
from tests.unit.deploy.conftest import Helm

DEPLOY = ROOT / "deploy"
CONSOLE = "\n".join(
    block.text.replace("\\\n", "")
    for block in blocks(ROOT / "docs" / "operations" / "deployment.md")
    if block.language == "console"
)
COMMANDS = [shlex.split(line, comments=True) for line in CONSOLE.splitlines()]


def starting(*words: str) -> list[list[str]]:
    return [command for command in COMMANDS if command[: len(words)] == list(words)]


def options(command: list[str], name: str) -> list[str]:
    return [value for option, value in itertools.pairwise(command) if option == name]


def test_every_named_file_exists() -> None:
    named = {word for command in COMMANDS for word in command if re.match(r"(\./)?deploy/|dagster_cloud\.yaml$", word)}
    assert named - {"deploy/.env"} != set()
    assert all((ROOT / name).exists() for name in named - {"deploy/.env"}), named


def test_images_are_built_from_existing_targets_with_existing_arguments() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for command in starting("docker", "build"):
        (target,) = options(command, "--target")
        assert f" AS {target}\n" in dockerfile
        for argument in options(command, "--build-arg"):
            assert f"ARG {argument.partition('=')[0]}=" in dockerfile


def test_compose_commands_name_services_and_existing_programs() -> None:
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    called = [command for command in COMMANDS if {"exec", "run"} & set(command)]
    assert called
    for command in called:
        start = next(index for index, word in enumerate(command) if word in PROGRAMS)
        assert command[start - 1] in services
        check_command(command[start:])


def test_the_documented_release_of_the_chart_renders(helm: Helm) -> None:
    (install,) = starting("helm", "install", "rag")
    done = helm(["template", "rag"], {}, *(f"--set={value}" for value in options(install, "--set")))
    assert done.returncode == 0, done.stderr


def test_the_documented_workers_render_with_the_environment_of_the_other_processes(helm: Helm) -> None:
    (install,), (upgrade,) = starting("helm", "install", "rag"), starting("helm", "upgrade", "rag")
    done = helm(["template", "rag"], {}, *(f"--set={value}" for value in options(install + upgrade, "--set")))
    assert done.returncode == 0, done.stderr
    pods = [
        each["spec"]["template"]["spec"] for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Deployment"
    ]
    (worker,) = [pod["containers"][0] for pod in pods if pod["containers"][0]["name"] == "worker"]
    assert worker["envFrom"] == [{"secretRef": {"name": "rag-shards"}}]
    broker = {"secretKeyRef": {"name": "rag-shards", "key": "RAG_BROKER_URL"}}
    assert {"name": "RAG_BROKER_URL", "valueFrom": broker} in worker["env"]


def test_options_of_the_text_are_values_of_the_chart() -> None:
    text = (ROOT / "docs" / "operations" / "deployment.md").read_text()
    values = yaml.safe_load((DEPLOY / "helm" / "rag-shards" / "values.yaml").read_text())
    named = set(re.findall(r"\b((?:serving|workers)(?:\.\w+)+)", text)) - {"workers.py"}
    assert "workers.keda.address" in named
    for path in named:
        inside = values
        for name in path.split("."):
            assert name in inside, path
            inside = inside[name]


def test_the_profile_pods_uses_the_documented_config_map_and_secret(tmp_path: Path) -> None:
    write_instance(tmp_path, "pods")
    launcher = yaml.safe_load((tmp_path / "dagster.yaml").read_text())["run_launcher"]["config"]
    example = (tmp_path / ".env.example").read_text()
    (command,) = starting("kubectl", "--namespace", "rag", "create", "configmap")
    assert f"RAG_INSTANCE_CONFIG_MAP={command[5]}\n" in example
    assert launcher["env_secrets"] == ["rag-shards"]
    assert "env_config_maps" not in launcher
    files = [word.removeprefix("--from-file=instance/") for word in command if word.startswith("--from-file")]
    assert files == ["dagster.yaml", "workspace.yaml"]
    assert all((tmp_path / name).is_file() for name in files)


def test_the_documented_release_of_dagster_is_the_one_that_the_names_assume() -> None:
    (install,) = starting("helm", "install", "dagster")
    (values,) = options(install, "--values")
    launcher = yaml.safe_load((ROOT / values).read_text())["runLauncher"]["config"]["customRunLauncher"]["config"]
    assert launcher["instance_config_map"] == f"{install[2]}-instance"


@pytest.mark.parametrize("name", ["rag-keys", "rag-shards", "dagster-postgresql-secret"])
def test_documented_secrets_are_those_that_the_files_use(name: str) -> None:
    created = {command[command.index("generic") + 1] for command in COMMANDS if "generic" in command}
    assert name in created
    text = CONSOLE + "".join(path.read_text() for path in Path(DEPLOY / "helm").rglob("*.yaml"))
    assert text.count(name) >= 2
