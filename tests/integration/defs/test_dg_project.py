"""Working with dg: adding definitions to this project, and using its component in another project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from rag_assets.defs.build import build_definitions
from rag_assets.runs.names import Names
from rag_assets.settings import PipelineSettings
from rag_serving import RagClient
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.errors import SettingsError
from rag_serving.lake.shards import Shard
from rag_serving.settings import ServingSettings
from tests.pipelines import seed_model

ROOT = Path(__file__).parents[3]
DEFINITIONS = """
from pathlib import Path
import dagster as dg

@dg.definitions
def defs():
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
PYPROJECT = """
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "theirs"
"""
MATERIALIZE = """
import dagster as dg
from theirs.definitions import defs

loaded = defs()
with dg.DagsterInstance.ephemeral() as instance:
    instance.add_dynamic_partitions("eu_shard", ["oslo/people"])
    run = loaded.resolve_job_def("eu_index_shard").execute_in_process(
        instance=instance, partition_key="oslo/people", raise_on_error=False
    )
    keys = sorted(event.asset_key.to_user_string() for event in run.get_asset_materialization_events())
print(run.success, keys)
"""


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in that project without this machine's settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAG_", "AWS_", "DAGSTER_"))}
    bin_folder = Path(sys.executable).parent
    return subprocess.run(
        [str(bin_folder / command[0]), *command[1:]],
        cwd=folder,
        env={
            **environment,
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "PATH": f"{bin_folder}{os.pathsep}{environment['PATH']}",
            "COLUMNS": "200",
            "RAG_SOURCE_URI": "examples/corpus",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project to which a test may add definitions."""
    for name in ("rag_assets", "rag_serving", "pyproject.toml", "examples"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def test_a_scaffolded_asset_is_listed_and_a_syntax_error_fails_the_check(copy: Path) -> None:
    made = run("dg", "scaffold", "defs", "dagster.asset", "mine.py", folder=copy)
    assert made.returncode == 0, made.stderr
    assert (copy / "rag_assets" / "defs" / "mine.py").exists()
    listed = run("dg", "list", "defs", "--json", folder=copy)
    assert '"mine"' in listed.stdout
    assert '"raw_documents"' in listed.stdout
    (copy / "rag_assets" / "defs" / "broken.py").write_text("def half(:\n")
    assert run("dg", "check", "defs", folder=copy).returncode != 0


def test_a_five_line_component_materializes_a_shard_in_another_project(
    tmp_path: Path, corpus: Path, model_lake: str
) -> None:
    lake = tmp_path / "lake"
    lake.mkdir()
    seed_model(model_lake, str(lake))
    folder = tmp_path / "theirs" / "defs" / "documents"
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    for package in (tmp_path / "theirs", tmp_path / "theirs" / "defs"):
        (package / "__init__.py").touch()
    (tmp_path / "theirs" / "definitions.py").write_text(DEFINITIONS)
    attributes = {"source_uri": corpus, "lake_uri": lake, "asset_prefix": "eu"}
    lines = ["type: rag_assets.RagShardsComponent", "attributes:", *(f"  {k}: {v}" for k, v in attributes.items())]
    assert len(lines) == 5
    (folder / "defs.yaml").write_text("\n".join(lines))
    done = run("python", "-W", "ignore", "-c", MATERIALIZE, folder=tmp_path)
    expected = "True ['eu/chunks', 'eu/embeddings', 'eu/published', 'eu/raw_documents', 'eu/shards']"
    assert done.stdout.strip() == expected, done.stderr[-2000:]
    with RagClient(lambda: AsyncRagClient(ServingSettings(lake_uri=str(lake), redis_url=None, llm_model=None))) as rag:
        assert [info.shard for info in rag.shards()] == ["oslo/people"]


def test_an_unknown_component_setting_is_named_in_the_error() -> None:
    with pytest.raises(SettingsError, match="unknown setting: chunk_size"):
        PipelineSettings.from_env(chunk_size=3)


def test_two_lakes_share_an_instance_without_seeing_each_other(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    settings = [
        PipelineSettings.model_validate({"asset_prefix": prefix, "lake_uri": str(tmp_path / prefix)})
        for prefix in ("eu", "prod/us")
    ]
    graphs = [build_definitions(each).resolve_asset_graph().get_all_asset_keys() for each in settings]
    assert not set(graphs[0]) & set(graphs[1])
    names = [Names.of(each) for each in settings]
    names[0].add_shards(instance, [Shard("oslo", "people")])
    assert instance.get_dynamic_partitions("eu_shard") == ["oslo/people"]
    assert list(instance.get_dynamic_partitions("prod_us_shard")) == []
