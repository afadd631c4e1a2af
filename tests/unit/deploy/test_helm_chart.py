"""The chart renders to valid objects of two versions of Kubernetes. Nothing is installed: that needs a cluster."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy_commands import check_command
from tests.unit.deploy.conftest import CHART, Helm, Render

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
OLDEST, NEWEST = "1.27", "1.36"
ROLE = "arn:aws:iam::111122223333:role/rag"

LEAST: dict[str, Any] = {"lakeUri": "s3://lake/rag", "serving": {"keysSecret": {"name": "rag-keys"}}}
ALL: dict[str, Any] = {
    "lakeUri": "s3://lake/rag",
    "env": {"AWS_REGION": "eu-west-1", "RAG_LEASE_SECONDS": "40"},
    "imagePullSecrets": ["registry"],
    "serving": {
        "keysSecret": {"name": "rag-keys", "key": "keys.json"},
        "redisSecret": {"name": "rag-redis", "key": "url"},
        "envSecrets": ["model-keys"],
        "env": {"RAG_LLM_MODEL": "openai/gpt-5-mini", "AWS_REGION": "eu-north-1", "RAG_CACHE_ENTRIES": "1000000"},
        "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": ROLE},
        "drainSeconds": 90,
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "className": "nginx", "host": "rag.example.com", "tlsSecret": "rag-tls"},
    },
    "workers": {
        "enabled": True,
        "sourceUri": "s3://documents/incoming",
        "concurrency": 2,
        "brokerSecret": {"name": "rag-broker"},
        "envSecrets": ["more"],
        "env": {"RAG_CHUNK_TOKENS": "256"},
        "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": ROLE},
        "keda": {"enabled": True, "address": "redis.data:6379", "database": 1, "authentication": "rag-broker"},
    },
}
BOTH = pytest.mark.parametrize("values", [LEAST, ALL], ids=["least", "all"])


def changed(values: dict[str, Any], **at: Any) -> dict[str, Any]:
    """Return the values with changes, named by their path: serving__replicas=3."""
    values = copy.deepcopy(values)
    for path, value in at.items():
        *parents, last = path.split("__")
        inside = values
        for name in parents:
            inside = inside.setdefault(name, {})
        inside[last] = value
    return values


def found(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (one,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return one


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the spec of every pod by its name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"] if each["kind"] == "Deployment" else each["spec"]
        for each in objects
        if each["kind"] in {"Deployment", "Pod"}
    }


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    entries = pod["containers"][0]["env"]
    assert len({each["name"] for each in entries}) == len(entries)
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in entries}


@BOTH
def test_helm_lint_has_no_complaint(helm: Helm, values: dict[str, Any]) -> None:
    done = helm(["lint", "--strict"], values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_least_renders_the_service_alone_and_all_renders_everything(render: Render) -> None:
    service = {"ServiceAccount", "Service", "Deployment", "PodDisruptionBudget", "Pod"}
    assert {each["kind"] for each in render(LEAST)} == service
    more = {"HorizontalPodAutoscaler", "Ingress", "ScaledObject"}
    assert {each["kind"] for each in render(ALL)} == service | more
    assert pods(render(ALL)).keys() == {"rag-serving", "rag-worker", "rag-ready"}


@pytest.mark.skipif(importlib.util.find_spec("kubernetes_validate") is None, reason="the extra dev is not installed")
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@BOTH
def test_objects_are_valid_in_the_oldest_and_a_recent_kubernetes(
    render: Render, values: dict[str, Any], version: str
) -> None:
    validate = importlib.import_module("kubernetes_validate").validate
    for each in render(values, "--kube-version", f"{version}.0"):
        if each["apiVersion"] != "keda.sh/v1alpha1":
            validate(each, version, strict=True)


def test_an_older_kubernetes_is_refused(helm: Helm) -> None:
    done = helm(["template", "rag"], LEAST, "--kube-version", "1.26.0")
    assert done.returncode != 0
    assert "incompatible" in done.stderr
    assert f'kubeVersion: ">={OLDEST}.0-0"' in (CHART / "Chart.yaml").read_text()


@BOTH
def test_names_are_dns_labels_even_in_a_release_with_the_longest_name(helm: Helm, values: dict[str, Any]) -> None:
    release = "r" * 53
    done = helm(["template", release], values)
    assert done.returncode == 0, done.stderr
    for each in yaml.safe_load_all(done.stdout):
        assert DNS_LABEL.fullmatch(each["metadata"]["name"]), each["metadata"]["name"]
        assert all(len(label) <= 63 for label in each["metadata"]["labels"].values())


@BOTH
def test_every_container_is_limited_unprivileged_and_probed(render: Render, values: dict[str, Any]) -> None:
    for name, pod in pods(render(values)).items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        if name != "rag-ready":
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
            assert {each["topologyKey"] for each in pod["topologySpreadConstraints"]} == {
                "topology.kubernetes.io/zone",
                "kubernetes.io/hostname",
            }
            assert "/tmp" in [each["mountPath"] for each in container["volumeMounts"]]  # noqa: S108


@BOTH
def test_selectors_match_the_pods_that_they_mean(render: Render, values: dict[str, Any]) -> None:
    objects = render(values)
    for deployment in (each for each in objects if each["kind"] == "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
        for constraint in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert constraint["labelSelector"] == deployment["spec"]["selector"]
    serving = found(objects, "Deployment", "rag-serving")["spec"]["selector"]["matchLabels"]
    assert found(objects, "Service", "rag-serving")["spec"]["selector"] == serving
    assert found(objects, "PodDisruptionBudget", "rag-serving")["spec"]["selector"]["matchLabels"] == serving
    ready = found(objects, "Pod", "rag-ready")["metadata"]["labels"]
    assert not serving.items() <= ready.items()


@BOTH
def test_images_have_the_version_of_the_project(render: Render, values: dict[str, Any]) -> None:
    for pod in pods(render(values)).values():
        assert pod["containers"][0]["image"].endswith(f":{PROJECT['version']}")


@BOTH
def test_commands_exist(render: Render, values: dict[str, Any]) -> None:
    for pod in pods(render(values)).values():
        check_command(pod["containers"][0]["args"])


def test_the_worker_has_the_name_that_its_probes_ping(render: Render) -> None:
    (container,) = pods(render(ALL))["rag-worker"]["containers"]
    assert "--name=celery@%h" in container["args"]
    assert "celery@$(hostname)" in container["livenessProbe"]["exec"]["command"][-1]


def test_readiness_asks_the_lake_and_liveness_does_not(render: Render) -> None:
    (container,) = pods(render(LEAST))["rag-serving"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["startupProbe"]["httpGet"]["path"] == "/healthz"


@BOTH
def test_a_pod_is_killed_only_after_the_drain(render: Render, values: dict[str, Any]) -> None:
    pod = pods(render(values))["rag-serving"]
    drain = int(environment(pod)["RAG_HTTP_DRAIN_SECONDS"])
    assert drain == values["serving"].get("drainSeconds", 60)
    assert pod["terminationGracePeriodSeconds"] > drain + int(environment(pod)["RAG_HTTP_NOTICE_SECONDS"])


def test_secrets_are_only_referred_to(render: Render) -> None:
    pod = pods(render(ALL))["rag-serving"]
    assert environment(pod)["RAG_REDIS_URL"] == {"secretKeyRef": {"name": "rag-redis", "key": "url"}}
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "model-keys"}}]
    (keys,) = [each for each in pod["volumes"] if each["name"] == "keys"]
    assert keys["secret"]["secretName"] == "rag-keys"
    assert environment(pod)["RAG_HTTP_KEYS"] == "/keys/keys.json"
    worker = environment(pods(render(ALL))["rag-worker"])
    assert worker["RAG_BROKER_URL"] == {"secretKeyRef": {"name": "rag-broker", "key": "url"}}
    assert worker["DAGSTER_PG_PASSWORD"]["secretKeyRef"]["key"] == "postgresql-password"
    assert not any(each["kind"] == "Secret" for each in render(ALL))


def test_the_environment_of_the_service_wins_over_the_common_one(render: Render) -> None:
    rendered = pods(render(ALL))
    assert environment(rendered["rag-serving"])["AWS_REGION"] == "eu-north-1"
    assert environment(rendered["rag-worker"])["AWS_REGION"] == "eu-west-1"
    assert environment(rendered["rag-serving"])["RAG_CACHE_ENTRIES"] == "1000000"


def test_accounts_carry_the_annotations_of_a_role(render: Render) -> None:
    for name in ("rag-serving", "rag-worker"):
        account = found(render(ALL), "ServiceAccount", name)
        assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": ROLE}
        assert pods(render(ALL))[name]["serviceAccountName"] == name


def test_an_autoscaled_deployment_has_no_number_of_replicas(render: Render) -> None:
    assert found(render(LEAST), "Deployment", "rag-serving")["spec"]["replicas"] == 2
    for kind, name in (("HorizontalPodAutoscaler", "rag-serving"), ("ScaledObject", "rag-worker")):
        assert "replicas" not in found(render(ALL), "Deployment", name)["spec"]
        assert found(render(ALL), kind, name)["spec"]["scaleTargetRef"]["name"] == name
    (trigger,) = found(render(ALL), "ScaledObject", "rag-worker")["spec"]["triggers"]
    assert trigger["metadata"] == {
        "address": "redis.data:6379",
        "databaseIndex": "1",
        "enableTLS": "false",
        "listName": "dagster",
        "listLength": "2",
    }
    assert trigger["authenticationRef"] == {"name": "rag-broker"}


def test_the_ingress_leads_to_the_service(render: Render) -> None:
    spec = found(render(ALL), "Ingress", "rag-serving")["spec"]
    (path,) = spec["rules"][0]["http"]["paths"]
    assert path["backend"] == {"service": {"name": "rag-serving", "port": {"name": "http"}}}
    assert spec["tls"] == [{"hosts": ["rag.example.com"], "secretName": "rag-tls"}]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (changed(LEAST, lakeUri="./lake"), "'/lakeUri'"),
        (changed(LEAST, lakeUri="/data/lake"), "'/lakeUri'"),
        (changed(LEAST, lakeUri=""), "'/lakeUri'"),
        (changed(LEAST, serving__keysSecret__name=""), "'/serving/keysSecret/name'"),
        (changed(LEAST, serving__env={"RAG_CACHE_ENTRIES": 1000000}), "'/serving/env/RAG_CACHE_ENTRIES'"),
        (changed(LEAST, serving__replica=3), "'replica' not allowed"),
        (changed(LEAST, workers__enabled=True), "'/workers/sourceUri'"),
        (changed(ALL, workers__sourceUri="/documents"), "'/workers/sourceUri'"),
        (changed(ALL, workers__brokerSecret__name=""), "'/workers/brokerSecret/name'"),
        (changed(ALL, workers__keda__address="redis://redis:6379"), "'/workers/keda/address'"),
        (changed(ALL, serving__ingress__host=""), "'/serving/ingress/host'"),
    ],
)
def test_the_schema_refuses(helm: Helm, values: dict[str, Any], problem: str) -> None:
    done = helm(["template", "rag"], values)
    assert done.returncode != 0
    assert problem in done.stderr


def test_the_schema_knows_every_default_and_no_more() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    compare_keys(defaults, schema, schema["definitions"])


def compare_keys(values: dict[str, Any], schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for part in schema.get("allOf", ()):
        compare_keys({}, part, definitions) if "$ref" not in part else compare_keys(values, part, definitions)
    if schema.get("additionalProperties") is not False:
        return
    assert schema["properties"].keys() - {"global"} == values.keys()
    for name, value in values.items():
        if isinstance(value, dict):
            compare_keys(value, schema["properties"][name], definitions)  # pyright: ignore[reportUnknownArgumentType]


def test_the_notes_count_the_runs_that_all_workers_execute_at_once(helm: Helm) -> None:
    done = helm(["install", "rag", "--dry-run=client"], ALL)
    assert "the number of runs that all workers execute at once, 20." in done.stdout, done.stderr
    assert "RAG_HTTP_TRUSTED_PROXIES" in done.stdout
