"""Stand-ins for pip and make when the documentation's commands are run: they check that the arguments exist."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def check_pip(arguments: list[str]) -> None:
    """Fail unless every extra to install is declared."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert arguments[:2] == ["install", "-e"], arguments
    for extra in re.findall(r"[\w-]+", arguments[2].partition("[")[2]):
        assert extra in project["optional-dependencies"], extra


def check_make(arguments: list[str]) -> None:
    """Fail unless the target is in the Makefile."""
    assert re.search(rf"^{re.escape(arguments[0])}:", Path("Makefile").read_text(), flags=re.MULTILINE), arguments


if __name__ == "__main__":
    {"pip": check_pip, "make": check_make}[sys.argv[1]](sys.argv[2:])
