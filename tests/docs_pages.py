"""Code blocks of the documentation pages."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class CodeBlock:
    language: str
    text: str


def blocks(page: Path) -> Iterator[CodeBlock]:
    """Yield the fenced blocks of a Markdown page in order."""
    for match in re.finditer(r"^ *```(\w+)\n(.*?)^ *```$", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        yield CodeBlock(match[1], textwrap.dedent(match[2]))
