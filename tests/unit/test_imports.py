"""The cost of imports: no heavy module is loaded and no variable is read before it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import click
import pytest
from click.testing import CliRunner

import rag_serving
from rag_assets.cli.main import main as rag_assets_main
from rag_assets.defs.build import build_definitions
from rag_serving import requirements
from rag_serving.errors import SettingsError


def modules_after(statement: str, environment: Mapping[str, str] | None = None) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after this statement."""
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAG_")}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**env, **(environment or {})}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_serving_loads_none_of_its_dependencies() -> None:
    heavy = {"lancedb", "litellm", "pyarrow", "openvino", "torch", "dagster", "pandas", "redis", "pydantic", "numpy"}
    assert not modules_after("import rag_serving") & heavy


def test_importing_the_client_loads_no_engine_before_the_first_question() -> None:
    heavy = {"lancedb", "litellm", "openvino", "torch", "dagster", "pandas", "redis", "rag_assets"}
    assert not modules_after("from rag_serving import RagClient, AsyncRagClient, Answer") & heavy


def test_a_client_of_a_service_loads_neither_the_engine_nor_the_server() -> None:
    heavy = {
        "lancedb",
        "litellm",
        "openvino",
        "torch",
        "dagster",
        "pandas",
        "redis",
        "tokenizers",
        "fastapi",
        "uvicorn",
    }
    loaded = modules_after("from rag_serving import RagClient\nRagClient(base_url='http://127.0.0.1:1').close()")
    assert "httpx2" in loaded
    assert not loaded & heavy
    assert "httpx2" not in modules_after("from rag_serving import *")


def test_the_code_location_loads_without_the_model_stack() -> None:
    heavy = {"torch", "sentence_transformers", "openvino", "lancedb", "litellm"}
    loaded = modules_after("import rag_assets.definitions")
    assert "dagster" in loaded
    assert not loaded & heavy


@pytest.mark.parametrize("module", ["rag_assets.definitions", "rag_serving.cli.main", "rag_assets.cli.main"])
def test_importing_reads_no_environment_variable(module: str) -> None:
    malformed = {
        "RAG_LEASE_SECONDS": "banana",
        "RAG_CACHE_TTL": "banana",
        "RAG_REDIS_URL": "banana",
        "RAG_LAKE_URI": "banana://",
    }
    assert module.partition(".")[0] in modules_after(f"import {module}", malformed)


def test_windows_is_refused_by_name_except_by_a_client_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_SYSTEM", "nt")
    for refused in (
        rag_serving.RagClient.from_env,
        build_definitions,
        lambda: CliRunner().invoke(rag_assets_main, ["status"], standalone_mode=False, catch_exceptions=False),
    ):
        with pytest.raises((SettingsError, click.ClickException), match=r"Linux and macOS.*WSL 2"):
            refused()
    rag_serving.RagClient(base_url="http://127.0.0.1:1").close()


def test_importing_serving_does_not_import_the_pipeline() -> None:
    assert "rag_assets" not in modules_after("import rag_serving.cli.main")


def test_importing_the_server_does_not_load_prometheus_client() -> None:
    assert "prometheus_client" not in modules_after("import rag_serving.http.server")


@pytest.mark.parametrize("name", rag_serving.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(rag_serving, name).__name__ == name


def test_a_star_import_provides_the_public_names() -> None:
    modules_after(
        "from rag_serving import *\nassert RagClient and AsyncRagClient and Answer and Citation and Hit and Hits"
    )


def test_an_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="rag_serving"):
        rag_serving.no_such_name  # noqa: B018


def test_loading_the_embedding_runtime_sends_no_telemetry_and_restores_the_environment() -> None:
    program = """
import os, sys
os.register_at_fork(before=lambda: (print("forked"), os._exit(3)))
from rag_serving.lake.embedders.openvino import no_usage_reports
before = dict(os.environ)
with no_usage_reports():
    import openvino
    assert os.environ == before
assert openvino.convert_model
import time
time.sleep(0.5)
import openvino_telemetry
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
