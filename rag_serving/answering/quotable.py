"""Splits a passage into units that can be quoted: sentences, list items, rows of tables, blocks of code.

A unit knows what a reader needs to understand it: the headings above it, and the text that it continues. Headings and
sentences that only introduce a list are no units. Which unit is quoted belongs to `extractive`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\w\"'(*])|(?<=[。！？])")
_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,2}[.)]|[a-z]\))\s+")
_HEADING = re.compile(r"\s*#{1,6}\s+")
_NUMBERED_HEADING = re.compile(r"\d+(?:\.\d+)*\.?\s+[^\W\d_][^.:;]*$")
_RULE = re.compile(r"^[\s|:=*#~_+-]+$")
_UNDERLINE = re.compile(r"(?:=+|-{3,})\s*$")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_MARKUP = re.compile(r"\*\*|__|`|(?<![\w*])\*(?=\w)|(?<=[\w.])\*(?![\w*])|^\s*>\s?")
_DANGLING = re.compile(r"[,;](?:\s+(?:and|or|und|oder|og|eller|et|ou|y|o|e))?$|[，；、]$")
"""What joins a list item to the next one, and looks cut off without it."""
_COLUMNS = re.compile(r"\S(?: {3,}|\t)\S|^\s*[^\s:][^:]{0,40}:\s{2,}\S")
_ENDS = re.compile(r"[.!?:;,。！？：、]$")
_REFERS = re.compile(
    r"(?:it|its|this|these|that|those|they|he|she|such|both|either|neither|also|there|here|then|otherwise|however|"
    r"es|sie|dies|diese|dieser|il|elle|ils|elles|det|de|den|disse|esto|esta|este|ele|ela|isto)\b",
    re.IGNORECASE,
)
"""First words of sentences that say little without the one before."""
_PAGE = re.compile(r"\b(?:page|seite|página|side|ページ)\s*\d+(?:\s*(?:/|of|von|de|av)\s*\d+)?\s*$", re.IGNORECASE)
"""The end of a line at the top or bottom of a printed page."""
_ROWS = 3
"""Lines from which on short ones without a full stop are a table."""
_SHORT_LINE = 60
_FRAGMENT = 25
"""Characters below which a sentence needs the one before."""
_LEAST = 4

Kind = Literal["sentence", "item", "row", "code"]


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a passage that can be quoted. Units of one `block` (a paragraph, list or table) stand together."""

    text: str
    kind: Kind
    block: int
    headings: tuple[str, ...] = ()
    """Headings above it within the passage."""
    lead_in: str = ""
    """The sentence that introduces its list or code."""
    needs_previous: bool = False
    """Whether it refers to the sentence before it."""
    key: str = ""
    """The first cell of a row, which names what the row is about."""

    def searched(self, title: str) -> str:
        """Return the text to compare with a question; without the document's title, which all of its units share."""
        headings = [heading for heading in self.headings if heading != title]
        return "\n".join(part for part in (*headings, self.lead_in, self.text) if part)


def quotable_units(text: str, headings: Iterable[str] = (), table_header: str = "") -> list[Unit]:
    """Return the units of a passage in order, without markup.

    `headings` are those of its document, which may stand in the text without markup, and `table_header` is the first
    row of its table if that is not in the text.
    """
    known = {_plain(heading).casefold() for heading in headings}
    return _Reader(known, _cells(table_header)).read(text)


@dataclass(slots=True)
class _Reader:
    known: set[str]
    """Folded headings of the document."""
    header: list[str]
    """Cells of the first row of the table being read; empty outside tables."""
    units: list[Unit] = field(default_factory=list[Unit])
    block: int = 0
    headings: tuple[str, ...] = ()
    lead_in: str = ""

    def read(self, text: str) -> list[Unit]:
        for lines in _joined_rows(_blocks(text)):
            self.block += 1
            if _FENCE.match(lines[0]):
                self._code(lines)
            else:
                self._lines(lines)
        return self.units

    def _lines(self, lines: list[str]) -> None:
        lines = self._without_headings(lines)
        at = 0
        while at < len(lines):
            end = at + 1
            if "|" in lines[at]:
                while end < len(lines) and "|" in lines[end]:
                    end += 1
                self._table(lines[at:end])
            elif _ITEM.match(lines[at]):
                while end < len(lines) and not _ITEM.match(lines[end]) and lines[end][:1].isspace():
                    end += 1
                self._item(lines[at:end])
            elif _COLUMNS.search(lines[at]):
                self._add(" ".join(_plain(lines[at]).split()), "item")
            else:
                while end < len(lines) and not (_ITEM.match(lines[end]) or _COLUMNS.search(lines[end])):
                    if "|" in lines[end]:
                        break
                    end += 1
                self._paragraph(lines[at:end])
            at = end
        self.header = []

    def _without_headings(self, lines: list[str]) -> list[str]:
        """Remember the headings that a block begins with, and return the rest."""
        while lines and self._is_heading(lines):
            self.headings = (_plain(_HEADING.sub("", lines[0])),)
            self.lead_in = ""
            lines = lines[1:]
        return lines

    def _is_heading(self, lines: Sequence[str]) -> bool:
        line = lines[0].strip()
        if _HEADING.match(line) or _plain(line).casefold() in self.known:
            return True
        if "|" in line or _ENDS.search(line) or len(line) > _SHORT_LINE or _COLUMNS.search(line):
            return False
        if len(lines) == 1 or _NUMBERED_HEADING.fullmatch(line) or (line.isupper() and len(line) > _LEAST):
            return not _ITEM.match(line) or bool(_NUMBERED_HEADING.fullmatch(line))
        following = lines[1]
        if _ITEM.match(line) or _ITEM.match(following):
            return False
        indented = following[:1].isspace() and not lines[0][:1].isspace()
        return indented or (len(line) <= _SHORT_LINE // 2 and len(following.strip()) > _SHORT_LINE // 2 * 1.5)

    def _table(self, lines: Sequence[str]) -> None:
        rows = [line for line in lines if not _RULE.match(line)]
        if not self.header and len(rows) > 1:
            self.header = _cells(rows[0])
            rows = rows[1:]
        for row in rows:
            cells = _cells(row)
            self._add(row_text(self.header, cells), "row", key=cells[0] if cells else "")

    def _item(self, lines: Sequence[str]) -> None:
        text = _plain(" ".join(_ITEM.sub("", lines[0], count=1).split() + " ".join(lines[1:]).split()))
        self._add(_DANGLING.sub("", text), "item")

    def _paragraph(self, lines: Sequence[str]) -> None:
        self.lead_in = ""
        if len(lines) == 1 and not _ENDS.search(lines[0].strip()):
            self.lead_in = _plain(lines[0])  # before a list, because it is no heading
            return
        if _are_rows(lines):
            self.lead_in = _plain(lines[0])
            for line in lines[1:]:
                self._add(_plain(line), "item")
            return
        text = _plain(" ".join(" ".join(lines).split()))
        sentences = [sentence.strip() for sentence in _SENTENCE.split(text) if sentence.strip()]
        for place, sentence in enumerate(sentences):
            if sentence.endswith((":", "：")) and place + 1 == len(sentences):
                self.lead_in = sentence
            else:
                refers = len(sentence) < _FRAGMENT or sentence[0].islower() or bool(_REFERS.match(sentence))
                self._add(sentence, "sentence", needs_previous=refers and place > 0)

    def _code(self, lines: Sequence[str]) -> None:
        self._add("\n".join(line for line in lines if not _FENCE.match(line)), "code")

    def _add(self, text: str, kind: Kind, *, needs_previous: bool = False, key: str = "") -> None:
        if len(text) >= _LEAST:
            lead_in = "" if kind in ("sentence", "row") else self.lead_in
            self.units.append(Unit(text, kind, self.block, self.headings, lead_in, needs_previous, key))


def row_text(header: Sequence[str], cells: Sequence[str]) -> str:
    """Return a row of a table as ``header: value``, without empty cells."""
    shown: list[str] = []
    for place, cell in enumerate(cells):
        name = header[place] if place < len(header) else ""
        if cell:
            shown.append(f"{name}: {cell}" if name and name != cell else cell)
    return "; ".join(shown)


def _cells(line: str) -> list[str]:
    stripped = line.strip()
    if not stripped:
        return []
    return [_plain(cell) for cell in stripped.removeprefix("|").removesuffix("|").split("|")]


def _plain(text: str) -> str:
    return _MARKUP.sub("", text).strip()


def _blocks(text: str) -> Iterator[list[str]]:
    """Yield the lines between blank ones. A fenced block of code is one, and a Markdown heading begins another."""
    block: list[str] = []
    fenced = False
    for line in text.splitlines():
        if _FENCE.match(line):
            if not fenced and block:
                yield block
                block = []
            block.append(line)
            if fenced:
                yield block
                block = []
            fenced = not fenced
        elif fenced:
            block.append(line)
        elif not line.strip():
            if block:
                yield block
            block = []
        elif _HEADING.match(line) and block:
            yield block
            block = [line]
        elif _UNDERLINE.match(line) and block:
            block[-1] = f"# {block[-1].strip()}"
        elif not (_RULE.match(line) and "|" not in line) and not _PAGE.search(line):
            block.append(line)
    if block:
        yield block


def _joined_rows(blocks: Iterator[list[str]]) -> Iterator[list[str]]:
    """Join successive blocks that are the rows of one table, as in text taken from a PDF file."""
    waiting: list[list[str]] = []
    for block in blocks:
        if len(block) == 1 and _is_row(block[0]):
            waiting.append(block)
            continue
        yield from _waited(waiting)
        waiting = []
        yield block
    yield from _waited(waiting)


def _waited(blocks: list[list[str]]) -> list[list[str]]:
    return [[line for block in blocks for line in block]] if len(blocks) >= _ROWS else blocks


def _are_rows(lines: Sequence[str]) -> bool:
    """Return whether lines are rows of a table without its lines."""
    return len(lines) >= _ROWS and all(map(_is_row, lines))


def _is_row(line: str) -> bool:
    text = line.strip()
    marked = _HEADING.match(line) or _ITEM.match(line) or "|" in line
    return not marked and len(text) <= _SHORT_LINE and not _ENDS.search(text) and not text[0].islower()
