"""Each extra installed alone: it does what it is for, and names the extra that anything else needs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.pipelines import seed_model

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


@dataclass(frozen=True)
class Environment:
    """A virtual environment with one extra, and variables without any path to the development environment."""

    folder: Path
    variables: dict[str, str]

    def run(self, *command: str, expect: int = 0, **variables: str) -> str:
        """Run a program; return its standard output, or its standard error if it is expected to fail."""
        program, *arguments = command
        result = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            env={**self.variables, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == expect, result.stderr
        assert "Traceback" not in result.stderr or program == "python"
        return result.stderr if expect else result.stdout


@pytest.fixture(scope="module")
def with_extra(tmp_path_factory: pytest.TempPathFactory, sample_lake: str) -> Callable[[str], Environment]:
    """A function that makes the environment of an extra; empty for the package alone.

    The project is built and installed; its requirements are linked from this environment, because downloading and
    unpacking them again would take minutes.
    """
    built = tmp_path_factory.mktemp("wheel")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *quiet, "-w", str(built), "."], cwd=PROJECT, check=True)
    (wheel,) = built.glob("*.whl")

    @cache
    def make(extra: str) -> Environment:
        folder = tmp_path_factory.mktemp(f"extra-{extra}") / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        for name, distribution in distributions_of(f"rag-shards[{extra}]" if extra else "rag-shards").items():
            if name == "rag-shards":
                continue
            for part in sorted(
                {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "/")}
            ):
                if not (packages / part).is_symlink() and part != "__pycache__":
                    (packages / part).symlink_to(Path(str(distribution.locate_file(part))))
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python")]
        subprocess.run([*pip, "install", *quiet, str(wheel)], check=True)
        home = folder / "home"
        home.mkdir()
        variables = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", "RAG_LAKE_URI": sample_lake}
        return Environment(folder, variables)

    return make


@pytest.mark.parametrize(
    ("extra", "modules"),
    [
        ("", ["numpy", "pyarrow", "dagster", "redis", "httpx2"]),
        ("client", ["numpy", "pyarrow", "lancedb", "dagster", "redis", "litellm"]),
        ("serving", ["torch", "sentence_transformers", "transformers", "dagster", "litellm", "pandas"]),
        (
            "assets",
            ["torch", "sentence_transformers", "transformers", "litellm", "pandas", "kubernetes", "dagster_webserver"],
        ),
    ],
)
def test_an_extra_does_not_install(with_extra: Callable[[str], Environment], extra: str, modules: list[str]) -> None:
    code = f"import importlib.util; print([m for m in {modules!r} if importlib.util.find_spec(m)])"
    assert with_extra(extra).run("python", "-c", code).strip() == "[]"


def test_the_installed_package_is_imported(with_extra: Callable[[str], Environment]) -> None:
    environment = with_extra("serving")
    code = "import rag_serving.clients.lake; print(rag_serving.clients.lake.__file__)"
    assert Path(environment.run("python", "-c", code).strip()).is_relative_to(environment.folder)


@pytest.mark.parametrize(
    ("installed", "command", "extra"),
    [
        ("", ("rag-assets", "status"), "assets"),
        ("", ("rag-assets", "backfill", "--here"), "assets"),
        ("", ("rag-serving", "ask", "Why?"), "serving"),
        ("", ("rag-serving", "serve"), "http"),
        ("client", ("rag-serving", "shards"), "serving"),
        ("serving", ("rag-serving", "serve", "--open"), "http"),
        ("serving", ("rag-assets", "status"), "assets"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(
    with_extra: Callable[[str], Environment], installed: str, command: tuple[str, ...], extra: str
) -> None:
    environment = with_extra(installed)
    message = environment.run(*command, expect=2, RAG_SOURCE_URI=str(environment.folder))
    assert "MissingExtra: " in message
    assert f"pip install 'rag-shards[{extra}]'" in message
    assert "Commands:" in environment.run(command[0], "--help")


@pytest.mark.parametrize(
    ("installed", "statement", "extra"),
    [
        ("", "from rag_serving import AsyncRagClient", "serving"),
        ("", "from rag_serving import RagClient; RagClient.from_env()", "serving"),
        ("", "from rag_serving import RagClient; RagClient(base_url='http://127.0.0.1:1')", "client"),
        ("serving", "from rag_serving.results import Hits; Hits([], {}).to_pandas()", "pandas"),
    ],
)
def test_a_statement_names_the_extra_that_it_needs(
    with_extra: Callable[[str], Environment], installed: str, statement: str, extra: str
) -> None:
    message = with_extra(installed).run("python", "-c", statement, expect=1)
    assert f"pip install 'rag-shards[{extra}]'" in message.splitlines()[-1]


@pytest.mark.parametrize("setting", ["RAG_LLM_MODEL", "RAG_RERANK_MODEL"])
def test_a_hosted_model_without_litellm_is_refused_before_the_first_question(
    with_extra: Callable[[str], Environment], setting: str
) -> None:
    message = with_extra("serving").run("rag-serving", "ask", "Why?", expect=2, **{setting: "openai/any"})
    assert f"MissingExtra: {setting} needs more packages: pip install 'rag-shards[llm]'" in message


def test_a_client_of_a_service_loads_neither_numpy_nor_arrow(with_extra: Callable[[str], Environment]) -> None:
    code = """
import sys
from rag_serving import RagClient
from rag_serving.errors import ServiceUnavailable
try:
    RagClient(base_url="http://127.0.0.1:1").ask("Why?")
except ServiceUnavailable:
    print(sorted({"numpy", "pyarrow"} & sys.modules.keys()))
"""
    assert with_extra("client").run("python", "-c", code).strip() == "[]"


def test_the_serving_extra_answers_with_sources(with_extra: Callable[[str], Environment]) -> None:
    answer = json.loads(with_extra("serving").run("rag-serving", "ask", BRATTHOLM, "--json"))
    assert answer["kind"] == "extract"
    assert any(each["source"].endswith("2023-11-brattholm-outage.md") for each in answer["citations"])


def test_the_assets_extra_indexes_with_the_default_model_and_names_the_extra_for_others(
    with_extra: Callable[[str], Environment], tmp_path: Path, model_lake: str
) -> None:
    environment = with_extra("assets")
    seed_model(model_lake, str(tmp_path / "lake"))
    document = tmp_path / "source" / "oslo" / "people" / "leave.md"
    document.parent.mkdir(parents=True)
    document.write_text("# Leave\n\nParental leave is 49 weeks.\n")
    (tmp_path / "home").mkdir()
    variables = {
        "RAG_SOURCE_URI": str(tmp_path / "source"),
        "RAG_LAKE_URI": str(tmp_path / "lake"),
        "DAGSTER_HOME": str(tmp_path / "home"),
        "PATH": f"{environment.folder / 'bin'}{os.pathsep}/usr/bin:/bin",
    }
    other = environment.run("rag-assets", "backfill", "--here", expect=2, RAG_EMBEDDING_MODEL="any/other", **variables)
    assert "pip install 'rag-shards[torch]'" in other
    assert "1 shard indexed" in environment.run("rag-assets", "backfill", "--here", **variables)
