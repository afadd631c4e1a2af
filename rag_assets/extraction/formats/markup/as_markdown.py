"""Pieces of Markdown source for the other markup languages, and the document made of them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from rag_assets.extraction.document import ExtractedDocument, one_line
from rag_assets.extraction.formats.markdown import extract_markdown

MAX_HEADING_LEVEL: Final = 6
_BACKTICKS = re.compile("`{3,}")


def markdown_document(lines: Iterable[str], media_type: str, title: str = "") -> ExtractedDocument:
    """Return the document of Markdown lines; an empty title defaults to the first heading."""
    # The leading newline keeps a rule in the first line from being read as front matter.
    document = extract_markdown(("\n" + "\n".join(lines)).encode(errors="replace"))
    return replace(document, media_type=media_type, title=one_line(title) or document.title)


def heading(level: int, words: str) -> list[str]:
    """Return the lines of a heading; levels count from 1."""
    return ["", "#" * min(max(level, 1), MAX_HEADING_LEVEL) + " " + words.strip(), ""]


def code(lines: Sequence[str], language: str = "") -> list[str]:
    """Return the lines of a code block, without the indentation that all of them share."""
    longest = max((len(run) for line in lines for run in _BACKTICKS.findall(line)), default=2)
    fence = "`" * (longest + 1)
    return ["", fence + language, *dedented(lines), fence, ""]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first row is the header."""
    width = max(map(len, rows), default=0)
    if not width:
        return []
    lines = [_row([*row, *[""] * (width - len(row))]) for row in rows]
    return ["", lines[0], _row(["---"] * width), *lines[1:], ""]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def indent_of(line: str) -> int:
    """Return the number of spaces at the start of a line."""
    return len(line) - len(line.lstrip(" "))


def dedented(lines: Sequence[str]) -> list[str]:
    """Return the lines without the indentation that all of them share, and without blank ones at either end."""
    margin = min((indent_of(line) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:].rstrip() for line in lines).strip("\n").split("\n")
