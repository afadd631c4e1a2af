"""The result of every parser: one text with its blocks, and a builder for it. Independent of file formats."""

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

from rag_assets.extraction.decoding import normalise
from rag_assets.extraction.errors import QuarantineReason

TITLE_CHARACTERS: Final = 300
MAX_CHARACTERS: Final = 10_000_000
"""Characters of a document's text, about ten thousand passages; one file must not be most of a shard."""
_MAX_ATTACHMENT_NAME: Final = 120
_MAX_INDENT: Final = 8

_SPACE_AT_LINE_END = re.compile(r"(?<![^\S\n])[^\S\n]+$", re.MULTILINE)
# A line that is not blank and all such lines that follow it.
_PARAGRAPH = re.compile(r"^[^\n]*\S[^\n]*(?:\n[^\n]*\S[^\n]*)*", re.MULTILINE)
_WHITE_SPACE = re.compile(r"\s+")


class BlockKind(StrEnum):
    """The structure of a block in its source."""

    HEADING = "heading"
    PARAGRAPH = "paragraph"
    LIST = "list"
    TABLE = "table"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Block:
    """One structural piece of a document's text, from character `start` to `end` (exclusive).

    `level` is 1 to 6 for a heading, else 0. `page` counts from 1 and is None for formats without pages.
    """

    kind: BlockKind
    start: int
    end: int
    level: int = 0
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file inside an object. Its name is unique within the object and depends only on the object's bytes."""

    name: str
    data: bytes
    reason: QuarantineReason | None = None
    """Why the file cannot be taken out of the object, which then has a `detail` and no data."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Omission:
    """Content of a readable file that could not be read: what it is, and what its owner can do about it."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class ExtractedDocument:
    """The text of one source object and its structure.

    Blocks are in order, do not overlap and are not empty; their text has no white space at either end, and together
    they cover everything but white space. The text is NFC with newlines as line ends, and its only control characters
    are newline and tab.
    """

    text: str
    title: str
    media_type: str
    blocks: tuple[Block, ...]
    attachments: tuple[Attachment, ...] = ()
    """Files inside, until `registry.read_object` has parsed them."""
    omissions: tuple[Omission, ...] = ()
    """What the text lacks, until `registry.read_object` has reported it. The names differ."""
    name: str = ""
    """The name of its file in words. Parsers do not know it; it is set to cut the document into passages."""


def has_words(text: str) -> bool:
    """Return whether a text has a letter or digit."""
    return any(map(str.isalnum, text))


def without_excess(document: ExtractedDocument) -> ExtractedDocument:
    """Return the document with at most `MAX_CHARACTERS` of text, and what was cut as an omission."""
    if len(document.text) <= MAX_CHARACTERS:
        return document
    kept = [block for block in document.blocks if block.start < MAX_CHARACTERS]
    last = kept[-1]
    end = len(document.text[: min(last.end, MAX_CHARACTERS)].rstrip())
    kept[-1] = replace(last, end=end)
    share = end / len(document.text)
    detail = f"only the first {share:.0%} of its {len(document.text):,} characters were read; split the file"
    omissions = (*document.omissions, Omission("the rest of the text", detail))
    return replace(document, text=document.text[:end], blocks=tuple(kept), omissions=omissions)


def one_line(text: str, limit: int = TITLE_CHARACTERS) -> str:
    """Return the text with every run of white space as one space, cut to at most `limit` characters."""
    # Only a prefix is processed, so that a title of megabytes costs nothing.
    return _WHITE_SPACE.sub(" ", text[: 4 * limit]).strip()[:limit].rstrip()


def attachment_name(name: str, taken: Container[str]) -> str:
    """Return the name of a file inside an object without slashes, numbered if it is `taken`."""
    name = one_line(normalise(name).replace("/", "_").replace("\\", "_"), _MAX_ATTACHMENT_NAME) or "attachment"
    path = PurePosixPath(name)
    number = 2
    unique = name
    while unique in taken:
        unique = f"{path.stem} ({number}){path.suffix}"
        number += 1
    return unique


def table_row(cells: Iterable[str]) -> str:
    """Return a table's row as one line with ` | ` between the cells; empty if no cell has words."""
    words = [" ".join(cell.split()) for cell in cells]
    return " | ".join(words) if any(words) else ""


def paragraphs(text: str, start: int, end: int) -> list[Block]:
    """Return the paragraphs of `text[start:end]`, which blank lines separate, without surrounding white space."""
    blocks: list[Block] = []
    for match in _PARAGRAPH.finditer(text, start, end):
        found = match.group()
        first = match.start() + len(found) - len(found.lstrip())
        blocks.append(Block(BlockKind.PARAGRAPH, first, match.start() + len(found.rstrip())))
    return blocks


@dataclass(slots=True)
class DocumentBuilder:
    """Collects blocks in reading order and writes the text that their offsets refer to."""

    media_type: str
    title: str = ""
    _parts: list[str] = field(default_factory=list[str])
    _blocks: list[Block] = field(default_factory=list[Block])
    _length: int = 0
    _items: list[str] = field(default_factory=list[str])
    _items_page: int | None = None

    def add_item(self, text: str, *, depth: int = 0, mark: str = "- ", page: int | None = None) -> None:
        """Append an item to the current list; a list ends with the next block or `end_list`."""
        indent = "  " * min(depth, _MAX_INDENT)
        self._items.append(indent + mark + text.replace("\n", "\n" + indent + " " * len(mark)))
        self._items_page = page

    def end_list(self) -> None:
        """Append the items since the last block as one list."""
        items, self._items = self._items, []
        self._append(BlockKind.LIST, "\n".join(items), 0, self._items_page)

    def add(self, kind: BlockKind, text: str, *, level: int = 0, page: int | None = None) -> None:
        """Append a block after an empty line; a blank text only ends the current list."""
        self.end_list()
        self._append(kind, text, level, page)

    def _append(self, kind: BlockKind, text: str, level: int, page: int | None) -> None:
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
        """Return the document; its title defaults to the first heading."""
        self.end_list()
        text = "".join(self._parts)
        title = self.title
        if not title.strip():
            headings = (text[b.start : b.end] for b in self._blocks if b.kind is BlockKind.HEADING)
            title = next(headings, "")
        return ExtractedDocument(text, one_line(normalise(title)), self.media_type, tuple(self._blocks))
