"""deploy/helm/dagster-values.yaml fits the installed Dagster. The chart itself is not on a package index."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config
from dagster_k8s.job import UserDefinedDagsterK8sConfig

from tests.deploy_commands import check_command, check_module

ROOT = Path(__file__).parents[3]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "helm" / "dagster-values.yaml").read_text())
LAUNCHER: dict[str, Any] = VALUES["runLauncher"]["config"]["customRunLauncher"]
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]


def test_the_launcher_exists_and_accepts_its_configuration() -> None:
    assert VALUES["runLauncher"]["type"] == "CustomRunLauncher"
    launcher = getattr(importlib.import_module(LAUNCHER["module"]), LAUNCHER["class"])
    checked = validate_config(launcher.config_type(), LAUNCHER["config"])
    assert checked.success, checked.errors


def test_pods_have_limits_no_root_and_every_volume_that_they_mount() -> None:
    pod = UserDefinedDagsterK8sConfig.from_dict(LAUNCHER["config"]["run_k8s_config"])
    assert pod.container_config["resources"]["limits"] == {"memory": "4Gi"}
    assert pod.pod_spec_config["security_context"]["run_as_non_root"] is True
    mounted = {each["name"] for each in pod.container_config["volume_mounts"]}
    assert mounted == {each["name"] for each in pod.pod_spec_config["volumes"]}


def test_run_pods_take_their_resources_from_the_launcher() -> None:
    assert CODE["includeConfigInLaunchedRuns"] == {"enabled": False}
    assert LAUNCHER["config"]["env_secrets"] == [each["name"] for each in CODE["envSecrets"]]


def test_the_daemon_and_the_web_server_can_read_the_lake() -> None:
    for part in ("dagsterDaemon", "dagsterWebserver"):
        assert VALUES[part]["envSecrets"] == CODE["envSecrets"]
    assert VALUES["serviceAccount"]["name"] == VALUES["global"]["serviceAccountName"]
    assert LAUNCHER["config"]["service_account_name"] == VALUES["global"]["serviceAccountName"]


def test_names_that_follow_from_the_release_agree() -> None:
    assert LAUNCHER["config"]["postgres_password_secret"] == VALUES["global"]["postgresqlSecretName"]
    worker = yaml.safe_load((ROOT / "deploy" / "helm" / "rag-shards" / "values.yaml").read_text())["workers"]
    assert worker["postgresSecret"]["name"] == VALUES["global"]["postgresqlSecretName"]
    assert worker["instanceConfigMap"] == LAUNCHER["config"]["instance_config_map"]


def test_the_code_location_is_a_dns_label_and_runs_the_definitions() -> None:
    assert re.fullmatch(r"[a-z0-9-]{1,63}", CODE["name"])
    assert CODE["env"]["RAG_CODE_LOCATION"] == CODE["name"]
    assert f"RAG_CODE_LOCATION={CODE['name']}" in LAUNCHER["config"]["env_vars"]
    command = ["dagster", "code-server", "start", "-p", str(CODE["port"]), *CODE["codeServerArgs"]]
    check_command(command)
    check_module(command)


def test_containers_are_pinned_unprivileged_and_limited() -> None:
    for part in (VALUES["dagsterDaemon"], VALUES["dagsterWebserver"], CODE):
        assert part["image"]["tag"] == VERSION
        assert part["podSecurityContext"]["runAsNonRoot"] is True
        assert part["podSecurityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert part["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert part["resources"]["requests"].keys() == {"cpu", "memory"}


def test_dagster_accepts_the_instance_that_the_chart_makes_of_the_values(tmp_path: Path) -> None:
    daemon, runs = VALUES["dagsterDaemon"], VALUES["concurrency"]["runs"]
    monitoring = {re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", k): v for k, v in daemon["runMonitoring"].items()}
    instance = {
        "concurrency": {
            "pools": {"default_limit": VALUES["concurrency"]["pools"]["defaultLimit"]},
            "runs": {
                "max_concurrent_runs": runs["maxConcurrentRuns"],
                "tag_concurrency_limits": runs["tagConcurrencyLimits"],
            },
        },
        "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator"},
        "run_launcher": LAUNCHER,
        "run_monitoring": monitoring,
        "run_retries": {"enabled": True, "max_retries": daemon["runRetries"]["maxRetries"]},
        "retention": {
            name: {"purge_after_days": VALUES["retention"][name]["purgeAfterDays"]} for name in ("schedule", "sensor")
        },
        **VALUES["additionalInstanceConfig"],
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(instance))
    config, _ = dagster_instance_config(str(tmp_path))
    assert config["run_monitoring"]["poll_interval_seconds"] == 15
    assert "max_runtime_seconds" not in daemon["runMonitoring"]
