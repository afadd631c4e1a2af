"""Stand-ins for pip and make when the documentation's commands are run: they check that the arguments exist."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def check_pip(arguments: list[str]) -> None:
    """Fail unless every extra and file to install exists."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    match arguments:
        case ["install", "--upgrade", "pip"]:
            pass
        case ["install", "--require-hashes", "-r", file]:
            assert Path(file).exists(), file
        case ["install", "-e", target] | ["install", "--no-deps", "-e", target]:
            for extra in re.findall(r"[\w-]+", target.partition("[")[2]):
                assert extra in project["optional-dependencies"], extra
        case _:
            raise AssertionError(arguments)


def check_make(arguments: list[str]) -> None:
    """Fail unless the target is in the Makefile."""
    assert re.search(rf"^{re.escape(arguments[0])}:", Path("Makefile").read_text(), flags=re.MULTILINE), arguments


if __name__ == "__main__":
    {"pip": check_pip, "make": check_make}[sys.argv[1]](sys.argv[2:])
