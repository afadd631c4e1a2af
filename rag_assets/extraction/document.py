"""What every format is turned into: one text with its blocks, and the builder for formats that write that
text anew.

Nothing here knows a file format.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from rag_assets.extraction.decoding import normalise

TITLE_CHARACTERS: Final = 300

_SPACE_AT_LINE_END = re.compile(r"(?<![^\S\n])[^\S\n]+$", re.MULTILINE)
_WHITE_SPACE = re.compile(r"\s+")


class BlockKind(StrEnum):
    """The structure that a stretch of text had in its source."""

    HEADING = "heading"
    PARAGRAPH = "paragraph"
    LIST = "list"
    TABLE = "table"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Block:
    """One structural piece of a document's text.

    `start` and `end` are character offsets into the text, end exclusive. `level` is 1 to 6 for a heading,
    else 0. `page` counts from 1 and is None where the format has no pages.
    """

    kind: BlockKind
    start: int
    end: int
    level: int = 0
    page: int | None = None


@dataclass(frozen=True, slots=True)
class ExtractedDocument:
    """The text of one source object and its structure.

    Blocks are in order, never overlap and are never empty; `text[start:end]` has no white space at either
    end, and whatever in `text` is not white space lies in some block. The text is NFC, its line ends are
    "\\n", and it has no control characters besides newline and tab.
    """

    text: str
    title: str
    media_type: str
    blocks: tuple[Block, ...]


def one_line(text: str, limit: int = TITLE_CHARACTERS) -> str:
    """`text` with every run of white space as one space, cut to at most `limit` characters."""
    # Only a bounded prefix is looked at, so that a title of megabytes costs nothing.
    return _WHITE_SPACE.sub(" ", text[: 4 * limit]).strip()[:limit].rstrip()


def table_row(cells: Iterable[str]) -> str:
    """One line for one row of any table: cells set apart by ` | `, white space inside them as one space.

    A row without words is an empty line.
    """
    words = [" ".join(cell.split()) for cell in cells]
    return " | ".join(words) if any(words) else ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file inside an object. Its name is unique within the object and stays the same while the bytes do."""

    name: str
    data: bytes


@dataclass(slots=True)
class DocumentBuilder:
    """Collects blocks in reading order and writes the text that their offsets point into."""

    media_type: str
    title: str = ""
    _parts: list[str] = field(default_factory=list[str])
    _blocks: list[Block] = field(default_factory=list[Block])
    _length: int = 0

    def add(self, kind: BlockKind, text: str, *, level: int = 0, page: int | None = None) -> None:
        """Append one block after an empty line; text that is only white space adds nothing."""
        text = _SPACE_AT_LINE_END.sub("", normalise(text)).strip()
        if not text:
            return
        if self._parts:
            self._parts.append("\n\n")
            self._length += 2
        start = self._length
        self._parts.append(text)
        self._length += len(text)
        self._blocks.append(Block(kind, start, self._length, level, page))

    def build(self) -> ExtractedDocument:
        """The document; without a title of its own it takes the first heading, if there is one."""
        text = "".join(self._parts)
        title = self.title
        if not title.strip():
            headings = (text[b.start : b.end] for b in self._blocks if b.kind is BlockKind.HEADING)
            title = next(headings, "")
        return ExtractedDocument(text, one_line(normalise(title)), self.media_type, tuple(self._blocks))
