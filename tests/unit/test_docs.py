"""The documentation agrees with the code: generated pages, links, commands and size."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from rag_assets.cli.main import main as rag_assets
from rag_serving.cli.main import main as rag_serving
from tests.docs_pages import ROOT, blocks

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS = {"rag-assets": rag_assets, "rag-serving": rag_serving}


def test_the_readme_is_at_most_six_kilobytes() -> None:
    assert (ROOT / "README.md").stat().st_size <= 6 * 1024


def test_generated_reference_pages_match_the_code() -> None:
    checked = subprocess.run(
        [sys.executable, "docs/generate_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the extra dev is not installed")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "docs", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "search.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_existing_files_and_headings(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} in {page.name}"
        assert not anchor or anchor in headings(linked), f"{target} in {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_named_in_the_docs_exist(page: Path) -> None:
    text = page.read_text()
    shell = "\n".join(block.text for block in blocks(page) if block.language == "sh")
    inline = re.findall(r"`((?:rag-assets|rag-serving)[^`]*)`", text)
    for line in [*shell.splitlines(), *inline]:
        for program, arguments in re.findall(r"(rag-assets|rag-serving) ([^|#)\n…]*)", line):
            check_command(COMMANDS[program], shlex.split(arguments))


@pytest.mark.parametrize("program", COMMANDS)
def test_every_command_is_mentioned_outside_the_reference(program: str) -> None:
    prose = "\n".join(page.read_text() for page in PAGES if page.parent.name != "reference")
    assert not [name for name in COMMANDS[program].commands if f"{program} {name}" not in prose]


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub generates for the headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def check_command(command: click.Command, words: list[str]) -> None:
    """Fail unless the words name a command with these options."""
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            assert word in command.commands, word
            command = command.commands[word]
        elif word.startswith("-"):
            options = {opt for param in command.params for opt in param.opts} | {"--help", "-h", "--version"}
            assert word.rstrip(",") in options, f"{command.name} {word}"
