"""reStructuredText: headings, directives with text, literal blocks and tables; comments and targets are left out."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.formats.markup.as_markdown import (
    code,
    dedented,
    heading,
    indent_of,
    markdown_document,
    table,
)

RST_MEDIA_TYPE: Final = "text/x-rst"

_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}[ \t]*\Z")
_DIRECTIVE = re.compile(r"[ \t]*\.\. (?:\|[^|]+\| )?([\w:.+-]+)::(?:[ \t]+(.*))?\Z")
_EXPLICIT = re.compile(r"[ \t]*\.\.(?:[ \t]|\Z)")
_NOTE = re.compile(r"[ \t]*\.\. \[[^\]]{1,100}\][ \t]+")
_OPTION = re.compile(r"[ \t]*:([\w-]+):(?:[ \t]+(.*))?\Z")
_FIELD = re.compile(r":([^:\s][^:]{0,100}):[ \t]+(?=\S)")
_GRID_RULE = re.compile(r"\+(?:[-=]+\+)+[ \t]*\Z")
_SIMPLE_RULE = re.compile(r"=+(?:[ \t]+=+)+[ \t]*\Z")
_ROLE = re.compile(r":[\w:.+-]{1,60}:`[~!]?([^`<]{0,500}?)[ \t]*(?:<[^`>]{0,500}>)?`")
_LINK = re.compile(r"(?<![`\w])`([^`<\s][^`<]{0,500}?)[ \t]*(?:<[^`>]{1,1000}>)?`__?")
_LITERAL = re.compile(r"``([^`]{1,1000})``")

_CODE: Final = frozenset({"code", "code-block", "sourcecode", "parsed-literal", "math", "prompt", "doctest"})
_WITHOUT_TEXT: Final = frozenset({
    "toctree", "contents", "index", "include", "raw", "meta", "highlight", "automodule", "autoclass", "autofunction",
    "literalinclude", "replace", "default-role", "sectnum", "currentmodule", "image",
})  # fmt: skip


def extract_rst(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its encoding is unknown."""
    lines = normalise(decode(data)).expandtabs(8).split("\n")
    return markdown_document(_Reader(lines).markdown(), RST_MEDIA_TYPE)


@dataclass(slots=True)
class _Reader:
    lines: list[str]
    at: int = 0
    levels: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])
    """Character and overline of the headings so far: the first one is level 1, the next new one level 2."""

    def markdown(self) -> Iterator[str]:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            found = self._heading()
            if found:
                yield from found
            elif _GRID_RULE.match(line):
                yield from table(_grid_rows(self._while_not_blank()))
            elif _SIMPLE_RULE.match(line):
                yield from table(_simple_rows(self._simple_table()))
            elif _EXPLICIT.match(line):
                yield from self._explicit(line)
            elif _ADORNMENT.match(line):
                self.at += 1  # a transition
                yield ""
            else:
                yield from self._text(line)

    def _heading(self) -> list[str]:
        """Read a heading with its lines of punctuation; return nothing if there is none here."""
        over = _ADORNMENT.match(self.lines[self.at])
        words_at = self.at + 1 if over else self.at
        if words_at + 1 >= len(self.lines):
            return []
        words, under = self.lines[words_at], _ADORNMENT.match(self.lines[words_at + 1])
        if under is None or not words.strip() or _ADORNMENT.match(words) or (over and over[1] != under[1]):
            return []
        if not over and words.startswith(" "):
            return []
        style = (under[1], over is not None)
        if style not in self.levels:
            self.levels.append(style)
        self.at = words_at + 2
        return heading(self.levels.index(style) + 1, _inline(words))

    def _explicit(self, line: str) -> Iterator[str]:
        """Read what starts with two dots: a directive, a footnote, a target or a comment."""
        directive = _DIRECTIVE.match(line)
        note = _NOTE.match(line)
        self.at += 1
        body = self._indented(indent_of(line))
        if note:
            yield from ["", _inline(" ".join([line[note.end() :], *(part.strip() for part in body)])), ""]
        elif directive and directive[1] not in _WITHOUT_TEXT:
            yield from _directive(directive[1], directive[2] or "", body)
        elif directive and directive[1] == "image":
            yield from _alternative(body)

    def _text(self, line: str) -> Iterator[str]:
        self.at += 1
        if not line.rstrip().endswith("::"):
            yield _inline(_FIELD.sub(r"\1: ", line))
            return
        words = line.rstrip()[:-2]
        yield _inline(words if not words.strip() or words.endswith(" ") else words + ":")
        yield from code(self._indented(indent_of(line)))

    def _indented(self, margin: int) -> list[str]:
        """Return the following lines that are blank or indented further than the margin."""
        start = self.at
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line.strip() and indent_of(line) <= margin:
                break
            self.at += 1
        return self.lines[start : self.at]

    def _while_not_blank(self) -> list[str]:
        start = self.at
        while self.at < len(self.lines) and self.lines[self.at].strip():
            self.at += 1
        return self.lines[start : self.at]

    def _simple_table(self) -> list[str]:
        """Return the lines to the rule that a blank line follows; blank lines inside a table separate rows."""
        start = self.at
        self.at += 1
        while self.at < len(self.lines):
            ends = _SIMPLE_RULE.match(self.lines[self.at]) is not None
            self.at += 1
            if ends and (self.at == len(self.lines) or not self.lines[self.at].strip()):
                break
        return self.lines[start : self.at]


def _directive(name: str, argument: str, body: list[str]) -> Iterator[str]:
    options = next((count for count, line in enumerate(body) if not _OPTION.match(line)), len(body))
    body = body[options:]
    if name in _CODE:
        yield from code(body, argument if name in ("code", "code-block", "sourcecode") else "")
        return
    is_path = name == "figure"
    if name == "admonition" or is_path:
        label = "" if is_path else argument
    else:
        label = f"{name.rpartition(':')[2].capitalize()}: {argument}".strip()
    yield from ["", _inline(label)]
    # Nested directives are read, too; each level removes at least one space of indentation.
    yield from _Reader(dedented(body)).markdown()
    yield ""


def _alternative(options: list[str]) -> Iterator[str]:
    for option in map(_OPTION.match, options):
        if option and option[1] == "alt":
            yield from ["", _inline(option[2] or ""), ""]


def _inline(text: str) -> str:
    text = _LITERAL.sub(r"`\1`", _LINK.sub(r"\1", _ROLE.sub(r"\1", text)))
    return text.replace("\\ ", "")


def _grid_rows(lines: list[str]) -> list[list[str]]:
    """Return the cells of a table drawn with `+---+` rules; a cell may have several lines."""
    rows: list[list[str]] = []
    row: list[str] = []
    for line in lines:
        if line.startswith("+"):
            if row:
                rows.append(row)
            row = []
            continue
        cells = [_inline(cell.strip()) for cell in line.strip().strip("|").split("|")]
        row = cells if not row else [f"{above} {cell}" for above, cell in zip(row, cells, strict=False)]
    return [*rows, row] if row else rows


def _simple_rows(lines: list[str]) -> list[list[str]]:
    """Return the cells of a table whose columns are marked by `===` rules; a row without first cell continues one."""
    starts = [match.start() for match in re.finditer("=+", lines[0])]
    rows: list[list[str]] = []
    for line in lines[1:]:
        if _SIMPLE_RULE.match(line) or not line.strip() or not line.strip("- "):
            continue
        ends = [*starts[1:], len(line)]
        cells = [_inline(line[start:end].strip()) for start, end in zip(starts, ends, strict=True)]
        if rows and not cells[0]:
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    return rows
