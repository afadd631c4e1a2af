"""Pods of runs: the resources of the job that the launcher creates. The Kubernetes API is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_k8s.job import USER_DEFINED_K8S_CONFIG_KEY

from rag_assets.cli.init import write_instance
from rag_assets.runs.launchers.kubernetes import KubernetesRunLauncher
from rag_assets.runs.tags import OBJECTS_TAG, PARTITION_TAG
from tests.pipelines import run_shard, seed_model, settings_for

SMALL = {"cpu": "2", "memory": "2Gi"}
LARGE = {"cpu": "8", "memory": "6Gi"}


class Cluster:
    """Records the jobs that are created."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def create_namespaced_job(self, body: Any, namespace: str, _request_timeout: float) -> None:
        assert namespace == "documents"
        self.jobs.append(body)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance that other processes could open, as pods do."""
    (tmp_path / "instance").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "instance")) as found:
        yield found


@pytest.fixture
def launcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, instance: dg.DagsterInstance
) -> tuple[KubernetesRunLauncher, Cluster]:
    """The launcher that the profile `pods` configures."""
    monkeypatch.setattr("dagster_k8s.launcher.load_kubernetes_config", lambda **_: None)
    write_instance(tmp_path, "pods")
    config = yaml.safe_load((tmp_path / "dagster.yaml").read_text())["run_launcher"]["config"]
    values = {
        "RAG_SERVICE_ACCOUNT": "rag-assets",
        "RAG_NAMESPACE": "documents",
        "RAG_INSTANCE_CONFIG_MAP": "dagster-instance",
        "DAGSTER_HOME": "/opt/dagster",
        "RAG_IMAGE": "rag-shards-assets:0.2.0",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster()
    resolved = {
        name: values[value["env"]] if isinstance(value, dict) and "env" in value else value
        for name, value in config.items()
    }
    found = KubernetesRunLauncher(k8s_client_batch_api=cluster, **resolved)
    found.register_instance(instance)
    return found, cluster


def requested(launcher: tuple[KubernetesRunLauncher, Cluster], instance: dg.DagsterInstance, **tags: str) -> Any:
    """Launch a run with these tags, and return the resources that its container requests."""

    @dg.job
    def index_shard() -> None: ...

    repository = RepositoryPythonOrigin("python", ModuleCodePointer("rag_assets.definitions", "defs"), None)
    run = instance.create_run_for_job(
        index_shard, tags=tags, job_code_origin=JobPythonOrigin("index_shard", repository)
    )
    launcher[0].launch_run(LaunchRunContext(run, None))
    container = launcher[1].jobs[-1].spec.template.spec.containers[0]
    return container.resources.requests


def test_a_shard_of_unknown_size_gets_the_default_and_a_large_one_more(
    launcher: tuple[KubernetesRunLauncher, Cluster], instance: dg.DagsterInstance
) -> None:
    assert requested(launcher, instance) == SMALL
    assert requested(launcher, instance, **{OBJECTS_TAG: "19999"}) == SMALL
    assert requested(launcher, instance, **{OBJECTS_TAG: "20000"}) == LARGE
    (run, *_) = instance.get_runs()
    assert '"cpu": "8"' in run.tags[USER_DEFINED_K8S_CONFIG_KEY]


def test_a_run_s_own_configuration_is_kept(
    launcher: tuple[KubernetesRunLauncher, Cluster], instance: dg.DagsterInstance
) -> None:
    own = '{"container_config": {"resources": {"requests": {"cpu": "3"}}}}'
    assert requested(launcher, instance, **{OBJECTS_TAG: "999999", USER_DEFINED_K8S_CONFIG_KEY: own})["cpu"] == "3"


def test_the_published_size_counts_for_runs_that_the_sensor_did_not_request(
    launcher: tuple[KubernetesRunLauncher, Cluster],
    instance: dg.DagsterInstance,
    model_lake: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, lake = tmp_path / "source", str(tmp_path / "lake")
    (source / "oslo" / "people").mkdir(parents=True)
    for number in range(3):
        (source / "oslo" / "people" / f"{number}.txt").write_text(f"The canteen {number} opens at eight.")
    seed_model(model_lake, lake)
    monkeypatch.setenv("RAG_LAKE_URI", lake)
    monkeypatch.setattr(
        launcher[0], "_sizes", [{"objects": 3, "run_k8s_config": launcher[0]._sizes[0]["run_k8s_config"]}]
    )
    assert requested(launcher, instance, **{PARTITION_TAG: "oslo/people"}) == SMALL
    assert run_shard(instance, settings_for(str(source), lake), "oslo/people").success
    assert requested(launcher, instance, **{PARTITION_TAG: "oslo/people"}) == LARGE
