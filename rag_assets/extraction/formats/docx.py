"""Word documents (docx, docm and their templates): the body in order, with headings, lists and tables."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line, table_row
from rag_assets.extraction.formats.ooxml import safe_package, walk

DOCX_MEDIA_TYPE: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH_TEXT: Final = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_HEADING_STYLE = re.compile(r"heading ([1-9])", re.IGNORECASE)
_OUTLINE_LEVELS: Final = 9
_MAX_STYLE_CHAIN: Final = 20
# Default titles of Word and python-docx.
_NO_TITLES: Final = frozenset({"", "word document", "microsoft word document", "untitled", "document"})
_CONTAINERS: Final = frozenset(f"{_W}{name}" for name in ("sdt", "sdtContent", "customXml", "ins", "moveTo"))
_IN_PARAGRAPH: Final = {
    f"{_W}tab": "\t", f"{_W}ptab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-",
}  # fmt: skip
# Properties have tab stops, not tabs; a fallback repeats its alternative.
_NOT_TEXT: Final = frozenset({*(f"{_W}{name}" for name in ("p", "pPr", "rPr", "del", "moveFrom")), _FALLBACK})


def extract_docx(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if its container is unsafe to open (see `ooxml`)."""
    package = safe_package(data)

    import docx

    document = docx.Document(io.BytesIO(package))
    root: Any = document.element
    reader = _BodyReader(_styles(document.styles.element))
    reader.read(root.body)
    core_title = one_line(document.core_properties.title or "")
    if not reader.document.title and core_title.lower() not in _NO_TITLES:
        reader.document.title = core_title
    return reader.document.build()


@dataclass(frozen=True, slots=True)
class _Style:
    """The structure that a paragraph style implies."""

    level: int = 0
    is_title: bool = False
    is_list: bool = False


def _styles(root: Any) -> dict[str, _Style]:
    """Return the structure of styles by their ids. Localised versions of Word translate the ids, but not the names."""
    elements: dict[str, Any] = {}
    default = ""
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
    # The nearest style in the chain of base styles decides; the limit breaks circular chains.
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
    """Return 1 to 6, or 0 for body text."""
    value = _value(properties, "outlineLvl") or ""
    return min(int(value) + 1, 6) if value.isdecimal() and int(value) < _OUTLINE_LEVELS else 0


def _is_numbered(properties: Any) -> bool | None:
    """Return whether the properties make a list item; None if they inherit it. The id 0 turns off a style's list."""
    numbering = None if properties is None else properties.find(f"{_W}numPr")
    return None if numbering is None else _value(numbering, "numId") != "0"


@dataclass(slots=True)
class _BodyReader:
    """Reads the elements of a body into blocks."""

    styles: dict[str, _Style]
    document: DocumentBuilder = field(default_factory=lambda: DocumentBuilder(DOCX_MEDIA_TYPE))

    def read(self, body: Any) -> None:
        for element in walk(body, lambda element: element if element.tag in _CONTAINERS else None):
            if element.tag == f"{_W}p":
                self._paragraph(element)
            elif element.tag == f"{_W}tbl":
                rows = (_row(row) for row in _own(element, "tr", "tbl"))
                self.document.add(BlockKind.TABLE, "\n".join(filter(None, rows)))

    def _paragraph(self, paragraph: Any) -> None:
        text = _text(paragraph).strip()
        if not text:
            return
        properties = paragraph.find(f"{_W}pPr")
        style = self.styles.get(_value(properties, "pStyle") or "", self.styles[""])
        level = style.level or _outline_level(properties)
        numbered = _is_numbered(properties)
        if level:
            self.document.add(BlockKind.HEADING, one_line(text, len(text)), level=level)
            if style.is_title and not self.document.title:
                self.document.title = one_line(text)
        elif numbered or (style.is_list and numbered is None):
            depth = _value(None if properties is None else properties.find(f"{_W}numPr"), "ilvl") or "0"
            self.document.add_item(text, depth=int(depth) if depth.isdecimal() else 0)
        else:
            self.document.add(BlockKind.PARAGRAPH, text)


def _own(element: Any, name: str, boundary: str = "") -> Iterator[Any]:
    """Yield the outermost descendants called `name`, without those inside a `boundary` (a table in a cell)."""
    closed = (f"{_W}{name}", f"{_W}{boundary}")
    descendants = walk(element, lambda child: None if child.tag in closed else child)
    return (child for child in descendants if child.tag == closed[0])


def _row(row: Any) -> str:
    return table_row(" ".join(_text(paragraph) for paragraph in _own(cell, "p")) for cell in _own(row, "tc", "tbl"))


def _text(paragraph: Any) -> str:
    """Return the text of a paragraph with links and insertions, without deletions."""
    parts: list[str] = []
    for element in walk(paragraph, lambda element: None if element.tag in _NOT_TEXT else element):
        if element.tag in (f"{_W}t", _MATH_TEXT):
            parts.append(element.text or "")
        elif element.tag == f"{_W}p":
            parts.append("\n" + _text(element))  # a text box; the XML parser limits how deep they nest
        else:
            parts.append(_IN_PARAGRAPH.get(element.tag, ""))
    return "".join(parts)
