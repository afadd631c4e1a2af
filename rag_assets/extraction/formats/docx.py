"""Word documents (docx, docm and their templates): the body in order, with headings, lists and tables."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line, table_row
from rag_assets.extraction.formats.ooxml import holds_part, open_package

if TYPE_CHECKING:
    from docx.document import Document

DOCX_MEDIA_TYPE: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH_TEXT: Final = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_HEADING_STYLE = re.compile(r"heading ([1-9])", re.IGNORECASE)
_OUTLINE_LEVELS: Final = 9
_MAX_STYLE_CHAIN: Final = 20
_MAX_INDENT: Final = 8
# What Word and python-docx write when nobody gave a title.
_NO_TITLES: Final = frozenset({"", "word document", "microsoft word document", "untitled", "document"})


def looks_like_docx(data: bytes) -> bool:
    """Whether the content is a zip that holds a Word document."""
    return holds_part(data, "word/document")


def extract_docx(data: bytes) -> ExtractedDocument:
    """Raises ExtractionError where the container is not safe to open (see `ooxml`)."""
    package = open_package(data)

    import docx

    document = docx.Document(io.BytesIO(package))
    root: Any = document.element
    reader = _BodyReader(_styles(document))
    reader.read(root.body)
    core_title = one_line(document.core_properties.title or "")
    if not reader.document.title and core_title.lower() not in _NO_TITLES:
        reader.document.title = core_title
    return reader.document.build()


@dataclass(frozen=True, slots=True)
class _Style:
    """What a paragraph style says about structure."""

    level: int = 0
    is_title: bool = False
    is_list: bool = False


def _styles(document: Document) -> dict[str, _Style]:
    """Style id to structure. Localised versions of Word translate ids, never the names of their styles."""
    elements: dict[str, Any] = {}
    default = ""
    root: Any = document.styles.element
    for element in root.iterchildren(f"{_W}style"):
        if element.get(f"{_W}type", "paragraph") == "paragraph":
            identifier = element.get(f"{_W}styleId", "")
            elements[identifier] = element
            if element.get(f"{_W}default") in ("1", "true"):
                default = identifier
    styles = {identifier: _style(identifier, elements) for identifier in elements}
    styles[""] = styles.get(default, _Style())
    return styles


def _style(identifier: str, elements: dict[str, Any]) -> _Style:
    is_list = False
    # The nearest style in the chain of bases that says something decides; the bound breaks circular chains.
    for _ in range(_MAX_STYLE_CHAIN):
        element = elements.get(identifier)
        if element is None:
            break
        name = _value(element, "name") or ""
        heading = _HEADING_STYLE.match(name)
        if heading:
            return _Style(level=min(int(heading[1]), 6))
        if name.lower() == "title":
            return _Style(level=1, is_title=True)
        properties = element.find(f"{_W}pPr")
        level = _outline_level(properties)
        if level:
            return _Style(level=level)
        is_list = is_list or name.lower().startswith("list") or _is_numbered(properties) is True
        identifier = _value(element, "basedOn") or ""
    return _Style(is_list=is_list)


def _value(element: Any, name: str) -> str | None:
    child = None if element is None else element.find(f"{_W}{name}")
    return None if child is None else child.get(f"{_W}val")


def _outline_level(properties: Any) -> int:
    """1 to 6, or 0 for body text."""
    value = _value(properties, "outlineLvl") or ""
    return min(int(value) + 1, 6) if value.isdecimal() and int(value) < _OUTLINE_LEVELS else 0


def _is_numbered(properties: Any) -> bool | None:
    """None where the properties say nothing; numbering with id 0 switches an inherited list off."""
    numbering = None if properties is None else properties.find(f"{_W}numPr")
    return None if numbering is None else _value(numbering, "numId") != "0"


@dataclass(slots=True)
class _BodyReader:
    """Reads the elements of a body into blocks; neighbouring list items become one list."""

    styles: dict[str, _Style]
    document: DocumentBuilder = field(default_factory=lambda: DocumentBuilder(DOCX_MEDIA_TYPE))
    _items: list[str] = field(default_factory=list[str])

    def read(self, body: Any) -> None:
        pending = [body.iterchildren()]
        while pending:
            element = next(pending[-1], None)
            if element is None:
                pending.pop()
            elif element.tag == f"{_W}p":
                self._paragraph(element)
            elif element.tag == f"{_W}tbl":
                self._end_list()
                rows = (_row(row) for row in _own(element, "tr", "tbl"))
                self.document.add(BlockKind.TABLE, "\n".join(filter(None, rows)))
            elif element.tag in (f"{_W}sdt", f"{_W}sdtContent", f"{_W}customXml", f"{_W}ins", f"{_W}moveTo"):
                pending.append(element.iterchildren())
        self._end_list()

    def _paragraph(self, paragraph: Any) -> None:
        text = _text(paragraph).strip()
        if not text:
            return
        properties = paragraph.find(f"{_W}pPr")
        style = self.styles.get(_value(properties, "pStyle") or "", self.styles[""])
        level = style.level or _outline_level(properties)
        numbered = _is_numbered(properties)
        if level:
            self._end_list()
            self.document.add(BlockKind.HEADING, one_line(text, len(text)), level=level)
            if style.is_title and not self.document.title:
                self.document.title = one_line(text)
        elif numbered or (style.is_list and numbered is None):
            depth = _value(None if properties is None else properties.find(f"{_W}numPr"), "ilvl") or "0"
            indent = "  " * min(int(depth) if depth.isdecimal() else 0, _MAX_INDENT)
            self._items.append(f"{indent}- " + text.replace("\n", f"\n{indent}  "))
        else:
            self._end_list()
            self.document.add(BlockKind.PARAGRAPH, text)

    def _end_list(self) -> None:
        items, self._items = self._items, []
        self.document.add(BlockKind.LIST, "\n".join(items))


def _own(element: Any, name: str, boundary: str = "") -> Iterator[Any]:
    """The outermost descendants called `name`, without those inside a `boundary` (a table in a cell)."""
    pending = [element.iterchildren()]
    while pending:
        child = next(pending[-1], None)
        if child is None:
            pending.pop()
        elif child.tag == f"{_W}{name}":
            yield child
        elif child.tag != f"{_W}{boundary}":
            pending.append(child.iterchildren())


def _row(row: Any) -> str:
    return table_row(" ".join(_text(paragraph) for paragraph in _own(cell, "p")) for cell in _own(row, "tc", "tbl"))


def _text(paragraph: Any) -> str:
    """The words of a paragraph, links and accepted insertions included, deletions not."""
    parts: list[str] = []
    pending = [paragraph.iterchildren()]
    while pending:
        element = next(pending[-1], None)
        if element is None:
            pending.pop()
        elif element.tag in (f"{_W}t", _MATH_TEXT):
            parts.append(element.text or "")
        elif element.tag in (f"{_W}tab", f"{_W}ptab"):
            parts.append("\t")
        elif element.tag in (f"{_W}br", f"{_W}cr"):
            parts.append("\n")
        elif element.tag == f"{_W}noBreakHyphen":
            parts.append("-")
        elif element.tag == f"{_W}p":
            parts.append("\n" + _text(element))  # a text box; Word nests them no deeper than the parser allows
        # Properties hold tab stops, not tabs; a fallback repeats what its alternative says.
        elif element.tag not in (f"{_W}pPr", f"{_W}rPr", f"{_W}del", f"{_W}moveFrom", _FALLBACK):
            pending.append(element.iterchildren())
    return "".join(parts)
