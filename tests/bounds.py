"""Run the tests with the lowest or the newest versions that pyproject.toml allows.

python -m tests.bounds lowest|newest [PYTEST ARGUMENT]...

Each has an environment of its own, .venv-lowest or .venv-newest; PYTHON names another interpreter to make it with. What
the dependencies depend on is the newest that fits.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TOOLS = "dev"
"""The extra whose own packages are not part of the project."""


def requirements() -> Iterator[Requirement]:
    """Yield what the project and its extras depend on, without the tools of its development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *(line for extra in extras if extra != TOOLS for line in extras[extra])]:
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            yield requirement


def floor(requirement: Requirement) -> str:
    """Return the lowest version that the requirement allows; raises ValueError if it names none."""
    for bound in requirement.specifier:
        if bound.operator in (">=", "=="):
            return bound.version
    raise ValueError(f"{requirement} has no lower bound")


def constraints(which: str) -> str:
    """Return the lines of pip's constraints file."""
    pinned = (ROOT / "requirements" / "dev.lock").read_text()
    torch = re.findall(r"^torch==.*$", pinned, flags=re.MULTILINE)
    floors = [f"{each.name}=={floor(each)}" for each in requirements()] if which == "lowest" else []
    return "\n".join([*torch, *sorted(set(floors))]) + "\n"


def install(which: str) -> Path:
    """Create the environment and return its interpreter."""
    folder = ROOT / f".venv-{which}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([os.environ.get("PYTHON", sys.executable), "-m", "venv", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
    (folder / "constraints.txt").write_text(constraints(which))
    command = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--constraint", folder / "constraints.txt"]
    subprocess.run([*command, "--editable", f"{ROOT}[{TOOLS}]"], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    return python


def main() -> int:
    which, *arguments = sys.argv[1:]
    if which not in ("lowest", "newest"):
        sys.exit(__doc__)
    python = install(which)
    subprocess.run([python, "-m", "tests.servers", "install", ".servers"], cwd=ROOT, check=True)
    workers = str((os.cpu_count() or 1) + 1)
    command = [python, "-m", "pytest", "--numprocesses", workers, "--dist", "loadfile", "--no-loadscope-reorder"]
    return subprocess.run([*command, *arguments], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
