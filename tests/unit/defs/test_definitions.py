"""The Dagster definitions: snapshots of the graph, jobs, checks, sensors and schedules, and the deployment files."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from pydantic import ValidationError

from rag_assets.cli.init import write_instance
from rag_assets.defs.build import build_definitions
from rag_assets.errors import LeaseLost, ShardLocked, SourceRefused, SourceUnavailable
from rag_assets.settings import PipelineSettings
from rag_serving.errors import LakeCorrupt, LakeUnavailable, RagError, SettingsError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    settings = PipelineSettings.model_validate({"source_uri": "/nowhere/source", "lake_uri": "/nowhere/lake"})
    return build_definitions(settings)


def test_the_code_location_loads_without_settings_and_contacts_nothing(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from rag_assets.definitions import defs\n"
        "loaded = defs()\n"
        "loaded.get_repository_def()\n"
        "heavy = {'torch', 'sentence_transformers', 'transformers', 'openvino', 'lancedb'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "print(len(list(loaded.get_repository_def().get_all_jobs())))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAG_", "AWS_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "6"  # the jobs below, and Dagster's implicit job over all assets
    assert not list(tmp_path.iterdir())


def test_an_invalid_setting_fails_the_load_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_ARRIVALS", "pigeons")
    with pytest.raises(SettingsError, match="invalid environment variable: RAG_ARRIVALS"):
        build_definitions()


GRAPH: dict[str, dict[str, Any]] = {
    "source_objects": {"upstream": [], "kinds": [], "partitioned": True, "made_here": False},
    "embedding_model": {"upstream": [], "kinds": ["openvino", "python"], "partitioned": False, "made_here": True},
    "boundary_vectors": {
        "upstream": ["embedding_model"],
        "kinds": ["numpy", "python"],
        "partitioned": False,
        "made_here": True,
    },
    "raw_documents": {
        "upstream": ["source_objects"],
        "kinds": ["lancedb", "python"],
        "partitioned": True,
        "made_here": True,
    },
    "chunks": {
        "upstream": ["boundary_vectors", "raw_documents"],
        "kinds": ["lancedb", "python"],
        "partitioned": True,
        "made_here": True,
    },
    "embeddings": {
        "upstream": ["chunks", "embedding_model"],
        "kinds": ["lancedb", "openvino"],
        "partitioned": True,
        "made_here": True,
    },
    "shards": {
        "upstream": ["chunks", "embeddings", "raw_documents"],
        "kinds": ["lancedb"],
        "partitioned": True,
        "made_here": True,
    },
    "published": {"upstream": ["shards"], "kinds": ["json", "lancedb"], "partitioned": True, "made_here": True},
    "company_index": {"upstream": ["published"], "kinds": ["lancedb"], "partitioned": False, "made_here": True},
}


def test_the_asset_graph_matches_its_snapshot(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    nodes = {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}
    assert {
        name: {
            "upstream": sorted(key.to_user_string() for key in node.parent_keys),
            "kinds": sorted(node.kinds or ()),
            "partitioned": node.partitions_def is not None,
            "made_here": node.is_materializable,
        }
        for name, node in nodes.items()
    } == GRAPH
    assert {node.group_name for node in nodes.values()} == {"index"}
    assert {tuple(node.owners) for node in nodes.values()} == {("team:search-platform",)}
    assert {node.partitions_def.name for node in nodes.values() if node.partitions_def} == {"shard"}  # pyright: ignore[reportAttributeAccessIssue]
    assert all(node.description for node in nodes.values())


def test_the_jobs_match_their_snapshot(definitions: dg.Definitions) -> None:
    jobs = {
        job.name: sorted(key.to_user_string() for key in job.asset_layer.executable_asset_keys)
        for job in definitions.get_repository_def().get_all_jobs()
        if not job.name.startswith("__")
    }
    assert jobs == {
        "export_model": ["boundary_vectors", "embedding_model"],
        "index_shard": ["chunks", "embeddings", "published", "raw_documents", "shards"],
        "maintain": [],
        "refresh_company_index": ["company_index"],
        "watch": [],
    }


def test_the_index_shard_job_is_partitioned_by_shard(definitions: dg.Definitions) -> None:
    partitions = definitions.resolve_job_def("index_shard").partitions_def
    assert isinstance(partitions, dg.DynamicPartitionsDefinition)
    assert partitions.name == "shard"
    assert definitions.resolve_job_def("export_model").partitions_def is None


def test_the_checks_match_their_snapshot_and_only_those_of_the_table_block(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    checks = {
        (key.asset_key.to_user_string(), key.name): graph.get_check_spec(key).blocking for key in graph.asset_check_keys
    }
    assert checks == {
        ("source_objects", "no_shard_left_behind"): False,
        ("raw_documents", "nothing_quarantined"): False,
        ("chunks", "passages_cover_documents"): True,
        ("shards", "rows_reconcile"): True,
        ("shards", "vectors_sound"): True,
        ("shards", "retrieval_holds"): True,
        ("shards", "languages_read"): False,
    }


def test_sensors_and_schedules_match_their_snapshot_and_are_off_by_default(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    assert {(each.name, each.job_name, each.minimum_interval_seconds) for each in repository.sensor_defs} == {
        ("s3_arrivals", "index_shard", 30),
        ("company_index_follows", "refresh_company_index", 60),
    }
    assert {each.default_status for each in repository.sensor_defs} == {dg.DefaultSensorStatus.STOPPED}
    assert {schedule.name: (schedule.job_name, schedule.cron_schedule) for schedule in repository.schedule_defs} == {
        "reconcile": ("index_shard", "0 2 * * *"),
        "maintenance": ("maintain", "30 4 * * *"),
        "watch": ("watch", "*/15 * * * *"),
    }
    assert {schedule.execution_timezone for schedule in repository.schedule_defs} == {"UTC"}
    assert {schedule.default_status for schedule in repository.schedule_defs} == {dg.DefaultScheduleStatus.STOPPED}


def test_settings_define_the_sensor_interval_and_the_reconcile_cron() -> None:
    settings = PipelineSettings.model_validate({"arrivals_interval": 7, "reconcile_cron": "30 4 * * 1"})
    definitions = build_definitions(settings)
    assert definitions.resolve_sensor_def("s3_arrivals").minimum_interval_seconds == 7
    assert definitions.resolve_schedule_def("reconcile").cron_schedule == "30 4 * * 1"


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (SourceUnavailable, True),
        (LakeUnavailable, True),
        (ShardLocked, True),
        (SourceRefused, False),
        (LeaseLost, False),
        (LakeCorrupt, False),
    ],
)
def test_only_errors_that_a_retry_can_fix_are_retried(error: type[RagError], retried: bool) -> None:
    from rag_assets.runs.failures import named_failures

    with pytest.raises(dg.Failure) as caught, named_failures():
        raise error("what happened")
    assert caught.value.description == f"{error.__name__}: what happened"
    assert caught.value.allow_retries is retried


def cloud_yaml() -> str:
    return (ROOT / "dagster_cloud.yaml").read_text()


def test_dagster_plus_accepts_dagster_cloud_yaml() -> None:
    from dagster_cloud_cli.config.models import load_dagster_cloud_yaml
    from dagster_k8s.container_context import K8sContainerContext

    (location,) = load_dagster_cloud_yaml(cloud_yaml()).locations
    assert re.fullmatch(r"[a-z0-9-]{1,63}", location.location_name)
    assert location.code_source is not None
    assert location.code_source.module_name is not None
    assert hasattr(importlib.import_module(location.code_source.module_name), "defs")
    assert location.build is None  # it would install the project from a package index
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert location.image is not None
    assert location.image.endswith(f"-assets:{version}")
    context = K8sContainerContext.create_from_config(location.container_context)
    assert {"name": "RAG_CODE_LOCATION", "value": location.location_name} in context.run_k8s_config.container_config[
        "env"
    ]


def test_the_documented_command_adds_the_location_to_dagster_plus() -> None:
    from dagster_cloud_cli.config_utils import get_location_document

    document = get_location_document("rag-assets", {"location_file": ROOT / "dagster_cloud.yaml"})
    page = (ROOT / "docs" / "operations" / "deployment.md").read_text()
    assert f"add-location {document['location_name']} --from dagster_cloud.yaml" in page
    assert document["image"]


def test_dagster_plus_rejects_an_unknown_key() -> None:
    from dagster_cloud_cli.config.models import load_dagster_cloud_yaml

    with pytest.raises(ValidationError, match="Extra inputs"):
        load_dagster_cloud_yaml(cloud_yaml() + "    python_version: '3.12'\n")


def test_workspace_yaml_names_the_code_location() -> None:
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    module = entry["python_module"]
    assert module["location_name"] == "rag_assets"
    assert (ROOT / module["working_directory"] / "rag_assets").is_dir()
    assert hasattr(importlib.import_module(module["module_name"]), "defs")


def test_dagster_yaml_allows_one_run_per_shard_and_retries_crashes_only(tmp_path: Path) -> None:
    write_instance(tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        runs = instance.get_concurrency_config().run_queue_config
        assert runs is not None
        assert runs.tag_concurrency_limits == [
            {"key": "dagster/partition", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
        ]
        assert instance.run_retries_enabled
        assert instance.get_settings("run_retries")["retry_on_asset_or_op_failure"] is False
        assert type(instance.run_coordinator).__name__ == "QueuedRunCoordinator"
        assert not instance.telemetry_enabled
