"""Serving installed alone, as a service would install it: without torch, sentence-transformers and Dagster."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROJECT = Path(__file__).parents[2]
LOCK = PROJECT / "requirements" / "dev.lock"
ENVIRONMENT = PROJECT / ".venv-serving"
BRATTHOLM = "What was the cause of the Brattholm outage in November 2023?"
# What pip says when the registry is out of reach; any other failure of an installation is a failure of the test.
NO_REGISTRY = ("NewConnectionError", "ConnectTimeoutError", "NameResolutionError", "ProxyError", "ReadTimeoutError")


class RegistryUnreachableError(Exception):
    """pip could not reach a registry."""


def pip(*arguments: str) -> None:
    command = [str(ENVIRONMENT / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    result = subprocess.run([*command, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    if result.returncode and any(word in result.stderr for word in NO_REGISTRY):
        raise RegistryUnreachableError(result.stderr[-2000:])
    assert result.returncode == 0, result.stderr[-4000:]


def install() -> None:
    """The dependencies when pyproject.toml or the lock changed, the project itself every time."""
    marker = ENVIRONMENT / ".installed"
    inputs = (PROJECT / "pyproject.toml", LOCK)
    if not marker.exists() or any(path.stat().st_mtime > marker.stat().st_mtime for path in inputs):
        marker.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pip("--constraint", str(LOCK), ".[serving]")
        marker.touch()
    pip("--no-deps", "--force-reinstall", ".")


@pytest.fixture(scope="session")
def serving_bin() -> Path:
    """The programs of an environment that holds nothing but `rag-shards[serving]`, in the pinned versions."""
    with LOCK.open() as held:  # two sessions of pytest share the environment
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            install()
        except RegistryUnreachableError as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error), pytrace=False)
            pytest.skip(f"pip reaches no registry: {error}")
    return ENVIRONMENT / "bin"


@pytest.fixture
def bare_environment(sample_lake: str, tmp_path: Path) -> dict[str, str]:
    """Nothing of this process's environment, so that no path leads back to the development environment."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8", "RAG_LAKE_URI": sample_lake}


def run(program: Path, *arguments: str, env: Mapping[str, str], cwd: Path) -> str:
    command = [str(program), *arguments]
    result = subprocess.run(command, env=dict(env), cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", ["torch", "sentence_transformers", "transformers", "dagster"])
def test_the_serving_extra_brings_no(
    serving_bin: Path, bare_environment: dict[str, str], tmp_path: Path, module: str
) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({module!r}))"
    assert run(serving_bin / "python", "-c", code, env=bare_environment, cwd=tmp_path).strip() == "None"


def test_the_installed_package_is_the_one_that_answers(
    serving_bin: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    code = "import rag_serving.client; print(rag_serving.client.__file__)"
    origin = Path(run(serving_bin / "python", "-c", code, env=bare_environment, cwd=tmp_path).strip())
    assert origin.is_relative_to(ENVIRONMENT)


def test_search_finds_the_document_without_torch_or_dagster(
    serving_bin: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    found = run(serving_bin / "rag-serving", "search", BRATTHOLM, "--json", env=bare_environment, cwd=tmp_path)
    assert json.loads(found)[0]["source"].endswith("oslo/engineering/reviews/2023-11-brattholm-outage.md")


def test_ask_answers_with_sources_without_torch_or_dagster(
    serving_bin: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    told = run(serving_bin / "rag-serving", "ask", BRATTHOLM, "--json", env=bare_environment, cwd=tmp_path)
    answer = json.loads(told)
    assert answer["kind"] == "extract"
    assert any(each["source"].endswith("2023-11-brattholm-outage.md") for each in answer["citations"])
