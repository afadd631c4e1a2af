"""The dashboard and the alerts use metrics that the service exports."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from rag_serving.http.metrics import Metrics
from rag_serving.results import Answer, CacheState

ROOT = Path(__file__).parents[3]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "rag-shards.json").read_text())
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [*PANELS, *((rule["alert"], rule["expr"]) for rule in ALERTS)]
EACH = pytest.mark.parametrize(
    ("name", "expression"), EXPRESSIONS, ids=[f"{n} {i}" for i, (n, _) in enumerate(EXPRESSIONS)]
)


def exported() -> dict[str, set[str]]:
    """Return the labels of every sample that the service exports, by name."""
    metrics = Metrics()
    metrics.observe("/v1/ask", "POST", 200, 0.1)
    answer = Answer(
        question="?", text="", citations=(), kind="generated", model="m", tokens={"prompt": 1}, cache="miss"
    )
    metrics.answered(answer, seconds=1.0, first_text=0.5)
    metrics.follow({"exact": 1}, {"slow_head": 1}, {})
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each metric with the values of its matchers by label."""
    for name, matchers in re.findall(r"(rag_\w+)(?:\{([^}]*)\})?", expression):
        yield name, dict(re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', matchers))


@EACH
def test_metrics_and_labels_are_exported(name: str, expression: str) -> None:
    known = exported()
    used = list(selectors(expression))
    assert used
    for metric, matchers in used:
        assert metric in known, metric
        assert matchers.keys() - {"job"} <= known[metric]
    for label in re.findall(r"by \(([^)]*)\)", expression):
        assert set(label.split(", ")) <= {"instance"} | set().union(*(known[metric] for metric, _ in used))


@EACH
def test_events_are_counted_by_the_code(name: str, expression: str) -> None:
    sources = "".join(path.read_text() for path in (ROOT / "rag_serving").rglob("*.py"))
    counted = set(re.findall(r'"(\w+)"', "\n".join(re.findall(r"counts\[.*", sources)))) | set(get_args(CacheState))
    for _, matchers in selectors(expression):
        for event in filter(None, matchers.get("event", "").split("|")):
            assert event in counted or (event == "refused:.*" and 'counts[f"refused:' in sources), event


@pytest.mark.skipif(importlib.util.find_spec("promql_parser") is None, reason="the extra dev is not installed")
@EACH
def test_expressions_are_promql(name: str, expression: str) -> None:
    parse = importlib.import_module("promql_parser").parse
    parse(expression.replace("$__rate_interval", "1m"))


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["annotations"].keys() == {"summary", "runbook"}
    assert rule["annotations"]["runbook"].strip().endswith(".")
    for setting in re.findall(r"RAG_\w+", rule["annotations"]["runbook"]):
        assert f"`{setting}`" in (ROOT / "docs" / "reference" / "settings.md").read_text()


def test_alerts_have_different_names() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)


def test_panels_have_their_own_ids_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)


def test_the_dashboard_refers_only_to_its_own_variables() -> None:
    declared = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD)))
    assert used == declared
