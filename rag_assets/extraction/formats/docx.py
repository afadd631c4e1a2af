"""Word documents (docx, docm and their templates): the body in order, with headings, numbered lists, tables and charts.

Footnotes, endnotes and comments follow the paragraph that refers to them. Headers come first and footers last, each
distinct text once.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line, table_row
from rag_assets.extraction.formats.drawings import add_drawing, drawing_relations
from rag_assets.extraction.formats.numbering import Numbering, small_number
from rag_assets.extraction.formats.numbering import W as _W
from rag_assets.extraction.formats.numbering import value_of as _value
from rag_assets.extraction.formats.ooxml import R, part_root, related_root, safe_package, walk

DOCX_MEDIA_TYPE: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

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

# References to notes: the kind of part that has the notes, their element, and what to call them in the text.
_NOTES: Final = {
    f"{_W}footnoteReference": ("footnotes", f"{_W}footnote", "Footnote"),
    f"{_W}endnoteReference": ("endnotes", f"{_W}endnote", "Endnote"),
    f"{_W}commentReference": ("comments", f"{_W}comment", "Comment"),
}


def extract_docx(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if its container is unsafe to open (see `ooxml`)."""
    package = safe_package(data)

    import docx

    document = docx.Document(io.BytesIO(package))
    root: Any = document.element
    reader = _BodyReader(document.part, _styles(document.styles.element))
    reader.add_margins(root, "headerReference")
    reader.read(root.body)
    reader.add_margins(root, "footerReference")
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
    number: str = "0"
    """Id of the list whose numbers the paragraphs have; 0 is none."""
    depth: str | None = None


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
    chain = list(_chain(identifier, elements))
    properties = [element.find(f"{_W}pPr") for element in chain]
    numbers = [number for number in map(_number, properties) if number is not None]
    depths = [depth for depth in map(_depth, properties) if depth is not None]
    number, depth = next(iter(numbers), "0"), next(iter(depths), None)
    # The nearest style in the chain decides.
    for element, own in zip(chain, properties, strict=True):
        name = _value(element, "name") or ""
        heading = _HEADING_STYLE.match(name)
        if heading:
            return _Style(min(int(heading[1]), 6), number=number, depth=depth)
        if name.lower() == "title":
            return _Style(1, is_title=True, number=number, depth=depth)
        level = _outline_level(own)
        if level:
            return _Style(level, number=number, depth=depth)
    is_list = number != "0" or any((_value(element, "name") or "").lower().startswith("list") for element in chain)
    return _Style(is_list=is_list, number=number, depth=depth)


def _chain(identifier: str, elements: dict[str, Any]) -> Iterator[Any]:
    """Yield a style and the styles that it is based on; the limit breaks circular chains."""
    for _ in range(_MAX_STYLE_CHAIN):
        element = elements.get(identifier)
        if element is None:
            return
        yield element
        identifier = _value(element, "basedOn") or ""


def _outline_level(properties: Any) -> int:
    """Return 1 to 6, or 0 for body text."""
    value = _value(properties, "outlineLvl") or ""
    return min(int(value) + 1, 6) if value.isdecimal() and int(value) < _OUTLINE_LEVELS else 0


def _number(properties: Any) -> str | None:
    """Return the id of the list that properties name; None if they inherit it. The id 0 turns off a style's list."""
    return _value(None if properties is None else properties.find(f"{_W}numPr"), "numId")


def _depth(properties: Any) -> str | None:
    return _value(None if properties is None else properties.find(f"{_W}numPr"), "ilvl")


@dataclass(frozen=True, slots=True)
class _Paragraph:
    """A paragraph's text with its notes, and its place in a list."""

    text: str
    notes: tuple[str, ...]
    number: str
    depth: int
    style: _Style
    is_list: bool


class _BodyReader:
    """Reads the elements of a body into blocks."""

    def __init__(self, part: Any, styles: dict[str, _Style]) -> None:
        self.document = DocumentBuilder(DOCX_MEDIA_TYPE)
        self._part = part
        self._styles = styles
        self._numbering = Numbering(_part_of_kind(part, "numbering"))
        self._notes = _read_notes(part)
        self._margins: set[str] = set()

    def add_margins(self, root: Any, name: str) -> None:
        """Add the headers or footers of all sections, except those that were added already."""
        for reference in root.iter(f"{_W}{name}"):
            # Sections without this property do not show the header of their first page.
            if reference.get(f"{_W}type") == "first" and reference.getparent().find(f"{_W}titlePg") is None:
                continue
            margin = related_root(self._part, reference.get(f"{R}id"))
            text = "" if margin is None else "\n".join(self._lines(margin))
            if text not in self._margins and any(map(str.isalpha, text)):
                self._margins.add(text)
                self.document.add(BlockKind.PARAGRAPH, text)

    def _lines(self, root: Any) -> Iterator[str]:
        for element in walk(root, lambda element: element if element.tag in _CONTAINERS else None):
            if element.tag == f"{_W}p":
                yield from filter(None, [_text(element).strip()])
            elif element.tag == f"{_W}tbl":
                yield from self._rows(element)

    def read(self, body: Any) -> None:
        for element in walk(body, lambda element: element if element.tag in _CONTAINERS else None):
            if element.tag == f"{_W}p":
                self._add_paragraph(element)
            elif element.tag == f"{_W}tbl":
                self.document.add(BlockKind.TABLE, "\n".join(self._rows(element)))
            else:
                continue
            for identifier in drawing_relations(element):
                drawing = related_root(self._part, identifier)
                if drawing is not None:
                    add_drawing(self.document, drawing)

    def _add_paragraph(self, element: Any) -> None:
        found = self._paragraph(element)
        level = found.style.level or _outline_level(element.find(f"{_W}pPr"))
        with_notes = "\n".join((found.text, *found.notes)).strip()
        if level and found.text:
            heading = one_line(f"{found.number} {found.text}", len(found.number) + 1 + len(found.text))
            self.document.add(BlockKind.HEADING, heading, level=level)
            if found.style.is_title and not self.document.title:
                self.document.title = one_line(found.text)
            self.document.add(BlockKind.PARAGRAPH, "\n".join(found.notes))
        elif not with_notes:
            return
        elif found.is_list:
            self.document.add_item(with_notes, depth=found.depth, mark=f"{found.number or '-'} ")
        else:
            self.document.add(BlockKind.PARAGRAPH, with_notes)

    def _paragraph(self, element: Any) -> _Paragraph:
        properties = element.find(f"{_W}pPr")
        name = _value(properties, "pStyle") or ""
        style = self._styles.get(name, self._styles[""])
        number = _number(properties) or style.number
        depth = small_number(_depth(properties) or style.depth, self._numbering.level_of_style(number, name))
        return _Paragraph(
            _text(element).strip(),
            tuple(self._notes_of(element)),
            self._numbering.mark(number, depth),
            depth,
            style,
            number != "0" or (style.is_list and _number(properties) is None),
        )

    def _notes_of(self, paragraph: Any) -> Iterator[str]:
        """Yield the notes that a paragraph refers to, and those that these refer to; each note occurs once."""
        pending = [paragraph]
        while pending:
            for reference in pending.pop().iter(*_NOTES):
                note = self._notes.pop((reference.tag, reference.get(f"{_W}id", "")), None)
                if note is None:
                    continue
                pending.append(note)
                text = " ".join(" ".join(_text(line).split()) for line in _own(note, "p"))
                if text:
                    yield f"{_NOTES[reference.tag][2]}: {text.strip()}"

    def _rows(self, table: Any) -> Iterator[str]:
        for row in _own(table, "tr", "tbl"):
            cells = (map(self._cell_text, _own(cell, "p")) for cell in _own(row, "tc", "tbl"))
            yield from filter(None, [table_row(" ".join(paragraphs) for paragraphs in cells)])

    def _cell_text(self, element: Any) -> str:
        found = self._paragraph(element)
        return " ".join(filter(None, (found.number, found.text, *found.notes)))


def _part_of_kind(part: Any, kind: str) -> Any:
    """Return the root of the part that is related by that kind of relationship (`numbering`); None if it is missing."""
    for relation in part.rels.values():
        if relation.reltype.endswith(f"/{kind}") and not relation.is_external:
            return part_root(relation.target_part)
    return None


def _read_notes(part: Any) -> dict[tuple[str, str], Any]:
    """Return the footnotes, endnotes and comments by the tag of their references and their ids."""
    found: dict[tuple[str, str], Any] = {}
    for reference, (kind, tag, _) in _NOTES.items():
        root = _part_of_kind(part, kind)
        for note in () if root is None else root.iterchildren(tag):
            found[reference, note.get(f"{_W}id", "")] = note
    return found


def _own(element: Any, name: str, boundary: str = "") -> Iterator[Any]:
    """Yield the outermost descendants called `name`, without those inside a `boundary` (a table in a cell)."""
    closed = (f"{_W}{name}", f"{_W}{boundary}")
    descendants = walk(element, lambda child: None if child.tag in closed else child)
    return (child for child in descendants if child.tag == closed[0])


def _text(paragraph: Any) -> str:
    """Return the text of a paragraph with links and insertions, without deletions, then that of its text boxes."""
    parts: list[str] = []
    boxes: list[str] = []
    for element in walk(paragraph, lambda element: None if element.tag in _NOT_TEXT else element):
        if element.tag in (f"{_W}t", _MATH_TEXT):
            parts.append(element.text or "")
        elif element.tag == f"{_W}p":
            boxes.append(_text(element))  # the XML parser limits how deep text boxes nest
        else:
            parts.append(_IN_PARAGRAPH.get(element.tag, ""))
    return "\n".join(filter(None, ("".join(parts), *boxes)))
