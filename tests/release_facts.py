"""Compare a tag and a repository with what the project says of itself; exits with a message if they differ.

python tests/release_facts.py TAG REPOSITORY-URL
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def problems(tag: str, repository: str) -> list[str]:
    """Return what keeps the tag from being released."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version: str = project["version"]
    section = rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$"
    found: list[str] = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, but the version in pyproject.toml is {version}")
    if not re.search(section, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE):
        found.append(f"CHANGELOG.md has no section of {version} with a date")
    found += [
        f"project.urls.{name} is {url}, which is not of {repository}"
        for name, url in project["urls"].items()
        if not f"{url}/".startswith(f"{repository}/")
    ]
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems(*sys.argv[1:3])) or 0)
