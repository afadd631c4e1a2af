"""Helm, and checks that several files of this folder share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import DEFAULT_FOLDER
from tests.servers.helm import helm_is_current, helm_program

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "rag-shards"

Helm = Callable[..., subprocess.CompletedProcess[str]]
Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Run helm on the chart with values; skip if it is not installed, but fail in CI."""
    folder = Path(os.environ.get("RAG_TEST_SERVERS") or DEFAULT_FOLDER)
    if not helm_is_current(folder):
        message = f"helm is not installed in {folder}: run `make servers`"
        if os.environ.get("CI") == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    home = tmp_path_factory.mktemp("helm")

    def run(command: list[str], values: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [helm_program(folder), *command, CHART, "--values", "-", *options],
            input=yaml.safe_dump(values),
            env={"HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """Return the objects that the chart renders to."""

    def run(values: dict[str, Any], *options: str) -> list[dict[str, Any]]:
        done = helm(["template", "rag"], values, *options)
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    return run
