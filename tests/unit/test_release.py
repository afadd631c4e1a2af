"""What a release needs: workflows that call existing targets, and facts that agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests import bounds, release_facts

ROOT = Path(__file__).parents[2]
GITHUB = [*(ROOT / ".github").rglob("*.yml")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.name)
def test_workflows_and_templates_are_yaml_and_call_targets_that_exist(path: Path) -> None:
    assert yaml.safe_load(path.read_text())
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    for target in re.findall(r"make ([a-z-]+)(?![a-z-]*\$)", path.read_text()):
        assert target.rstrip("-") in phony[1].split() or f"{target}lowest" in phony[1].split(), target


def test_a_release_needs_the_tag_of_its_version_and_a_dated_changelog() -> None:
    repository = PROJECT["urls"]["Source"]
    found = release_facts.problems("v0.0.1", "https://example.com/other")
    assert any("the tag is v0.0.1" in each for each in found)
    assert sum("project.urls" in each for each in found) == len(PROJECT["urls"])
    released = "0.1.0"
    assert f"CHANGELOG.md has no section of {released}" not in "".join(release_facts.problems("v0.1.0", repository))


def test_every_dependency_has_a_lower_bound_and_its_reason() -> None:
    assert all(bounds.floor(requirement) for requirement in bounds.requirements())
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for name in {requirement.name for requirement in bounds.requirements()}:
        stated = [index for index, line in enumerate(lines) if re.match(rf' *"{name}[\[>=]', line)]
        assert stated, name
        for index in stated:
            assert "# " in lines[index] or lines[index - 1].strip().startswith("# "), lines[index]


def test_the_extra_all_contains_every_other_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(re.findall(r"[\w-]+", everything.partition("[")[2]))
    assert named == extras.keys() - {"all", "dev", "lake"}  # lake is part of assets and serving


def test_the_constraints_pin_and_hash_the_extras_without_torch() -> None:
    pinned = (ROOT / "requirements" / "constraints.txt").read_text()
    names = set(re.findall(r"^([\w.-]+)==", pinned, flags=re.MULTILINE))
    assert {"dagster", "lancedb", "litellm", "fastapi", "httpx2", "redis"} <= names
    assert not names & {"torch", "sentence-transformers"}
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=\w)", pinned.strip()))
