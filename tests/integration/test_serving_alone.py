"""The serving extra installed by itself: without torch, sentence-transformers and Dagster."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROJECT = Path(__file__).parents[2]
BRATTHOLM = "What was the cause of the Brattholm outage in November 2023?"


def distributions_of(requirement: str) -> dict[str, importlib.metadata.Distribution]:
    """Return the distributions that an installer would install, by name, from this environment."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [Requirement(requirement)]
    seen: set[str] = set()
    while todo:
        wanted = todo.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        distribution = importlib.metadata.distribution(wanted.name)
        found[canonicalize_name(wanted.name)] = distribution
        for line in distribution.requires or ():
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")):
                todo.append(inner)
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with only `rag-shards[serving]`.

    The project is built and installed; its requirements are linked from this environment, because downloading and
    unpacking them again would take minutes.
    """
    folder = tmp_path_factory.mktemp("serving") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, distribution in distributions_of("rag-shards[serving]").items():
        if name == "rag-shards":
            continue
        for part in sorted({file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "/")}):
            if not (packages / part).is_symlink() and part != "__pycache__":
                (packages / part).symlink_to(Path(str(distribution.locate_file(part))))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "."], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def serving_bin(environment: Path) -> Path:
    """The directory of its programs."""
    return environment / "bin"


@pytest.fixture
def bare_environment(sample_lake: str, tmp_path: Path) -> dict[str, str]:
    """Environment variables without any path to the development environment."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8", "RAG_LAKE_URI": sample_lake}


def run(program: Path, *arguments: str, env: Mapping[str, str], cwd: Path) -> str:
    command = [str(program), *arguments]
    result = subprocess.run(command, env=dict(env), cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", ["torch", "sentence_transformers", "transformers", "dagster"])
def test_the_serving_extra_does_not_install(
    serving_bin: Path, bare_environment: dict[str, str], tmp_path: Path, module: str
) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({module!r}))"
    assert run(serving_bin / "python", "-c", code, env=bare_environment, cwd=tmp_path).strip() == "None"


def test_the_installed_package_is_the_one_imported(
    environment: Path, serving_bin: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    code = "import rag_serving.clients.lake; print(rag_serving.clients.lake.__file__)"
    origin = Path(run(serving_bin / "python", "-c", code, env=bare_environment, cwd=tmp_path).strip())
    assert origin.is_relative_to(environment)


def test_search_finds_the_document_without_torch_or_dagster(
    serving_bin: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    found = run(serving_bin / "rag-serving", "search", BRATTHOLM, "--json", env=bare_environment, cwd=tmp_path)
    assert json.loads(found)[0]["source"].endswith("oslo/engineering/reviews/2023-11-brattholm-outage.md")


def test_ask_answers_with_sources_without_torch_or_dagster(
    serving_bin: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    output = run(serving_bin / "rag-serving", "ask", BRATTHOLM, "--json", env=bare_environment, cwd=tmp_path)
    answer = json.loads(output)
    assert answer["kind"] == "extract"
    assert any(each["source"].endswith("2023-11-brattholm-outage.md") for each in answer["citations"])
