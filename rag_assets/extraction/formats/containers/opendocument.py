"""OpenDocument texts, spreadsheets and presentations (odt, ods, odp, and their templates).

Footnotes and comments stand in parentheses where they belong; deleted text and tables of contents are left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Final
from xml.etree.ElementTree import Element

from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line, table_row
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.containers.package import Package
from rag_assets.extraction.formats.ooxml import ZIP_SIGNATURE
from rag_assets.extraction.formats.xlsx import MAX_ROWS, add_sheets

ODT_MEDIA_TYPE: Final = "application/vnd.oasis.opendocument.text"
ODS_MEDIA_TYPE: Final = "application/vnd.oasis.opendocument.spreadsheet"
ODP_MEDIA_TYPE: Final = "application/vnd.oasis.opendocument.presentation"

_NAMESPACE: Final = "{urn:oasis:names:tc:opendocument:xmlns:%s:1.0}"
_OFFICE, _TEXT, _TABLE, _DRAW, _STYLE, _PRESENTATION = (
    _NAMESPACE % name for name in ("office", "text", "table", "drawing", "style", "presentation")
)
_MANIFEST: Final = "META-INF/manifest.xml"
_TITLE: Final = "{http://purl.org/dc/elements/1.1/}title"

_PARAGRAPHS: Final = frozenset({f"{_TEXT}p", f"{_TEXT}h"})
_SKIPPED: Final = frozenset({
    f"{_TEXT}tracked-changes", f"{_TEXT}sequence-decls", f"{_TEXT}table-of-content", f"{_TEXT}alphabetical-index",
    f"{_OFFICE}forms", f"{_OFFICE}annotation-end", f"{_TABLE}shapes", f"{_PRESENTATION}notes",
})  # fmt: skip
# Text that repeats on every slide.
_FURNITURE: Final = frozenset({"header", "footer", "date-time", "page-number", "page"})
_SPACES = re.compile(r"[ \t\r\n]+")
_BREAKS = re.compile(r"(?<![ \n])[ \n]*\n[ \n]*")
_MAX_SPACES: Final = 8
_MAX_DIGITS: Final = 9
_MAX_COLUMNS: Final = 16_384
"""Columns of a sheet. A cell may declare to be repeated any number of times."""


def looks_like_opendocument(data: bytes, media_type: str) -> bool:
    """Return whether the content is a zip whose first entry names the media type, or a template of it."""
    head = data[:200]
    return head.startswith(ZIP_SIGNATURE) and b"mimetype" + media_type.encode() in head


def _extract(data: bytes, media_type: str) -> ExtractedDocument:
    package = Package(data)
    if b"encryption-data" in (package.read(_MANIFEST) or b""):
        detail = "the document needs a password; upload a copy without it"
        raise ExtractionError(QuarantineReason.ENCRYPTED, detail)
    content = package.tree("content.xml")
    body = None if content is None else content.find(f"{_OFFICE}body")
    if content is None or body is None:
        raise ExtractionError(QuarantineReason.MALFORMED, "the file has no content.xml with a body; save it again")
    reader = _Reader(DocumentBuilder(media_type), _Styles.of(content))
    reader.read(body)
    meta = package.tree("meta.xml")
    title = "" if meta is None else one_line(meta.findtext(f".//{_TITLE}") or "")
    document = reader.document.build()
    # The first heading of a workbook is often "Sheet1"; the title then comes from the file's name.
    return replace(document, title=title if title or media_type == ODS_MEDIA_TYPE else document.title)


extract_odt = partial(_extract, media_type=ODT_MEDIA_TYPE)
extract_ods = partial(_extract, media_type=ODS_MEDIA_TYPE)
extract_odp = partial(_extract, media_type=ODP_MEDIA_TYPE)


@dataclass(frozen=True, slots=True)
class _Styles:
    """What the automatic styles of a file say about its structure."""

    titles: frozenset[str]
    """Paragraph styles based on the style of titles."""
    numbered: frozenset[str]
    """Styles of numbered lists."""
    hidden: frozenset[str]
    """Styles of hidden sheets."""

    @classmethod
    def of(cls, content: Element) -> "_Styles":
        titles, numbered, hidden = {"Title"}, set[str](), set[str]()
        for style in content.iterfind(f"{_OFFICE}automatic-styles/*"):
            name = style.get(f"{_STYLE}name", "")
            if style.get(f"{_STYLE}parent-style-name") == "Title":
                titles.add(name)
            if style.find(f"{_TEXT}list-level-style-number") is not None:
                numbered.add(name)
            properties = style.find(f"{_STYLE}table-properties")
            if properties is not None and properties.get(f"{_TABLE}display") == "false":
                hidden.add(name)
        return cls(frozenset(titles), frozenset(numbered), frozenset(hidden))


@dataclass(slots=True)
class _Reader:
    document: DocumentBuilder
    styles: _Styles
    page: int | None = field(default=None)

    def read(self, body: Element) -> None:
        sheets = body.findall(f"{_OFFICE}spreadsheet/{_TABLE}table")
        if sheets:
            shown = (sheet for sheet in sheets if sheet.get(f"{_TABLE}style-name") not in self.styles.hidden)
            add_sheets(self.document, ((sheet.get(f"{_TABLE}name", ""), _sheet_rows(sheet)) for sheet in shown))
            return
        slides = body.findall(f"{_OFFICE}presentation/{_DRAW}page")
        for number, slide in enumerate(slides, start=1):
            self.page = number
            self._slide(slide)
        if not slides:
            self._blocks(body)

    def _slide(self, slide: Element) -> None:
        shapes = list(slide)
        titles = [shape for shape in shapes if shape.get(f"{_PRESENTATION}class") == "title"]
        for shape in titles:
            words = " ".join(filter(None, map(_inline, _own_paragraphs(shape))))
            self.document.add(BlockKind.HEADING, one_line(words, len(words)), level=2, page=self.page)
        for shape in shapes:
            if shape not in titles and shape.get(f"{_PRESENTATION}class") not in _FURNITURE:
                self._blocks([shape])
        for frame in slide.iterfind(f"{_PRESENTATION}notes/{_DRAW}frame"):
            if frame.get(f"{_PRESENTATION}class") == "notes":
                self._blocks(frame)

    def _blocks(self, elements: "Element | list[Element]") -> None:
        for element in elements:
            tag = element.tag
            if tag in _SKIPPED:
                continue
            if tag in _PARAGRAPHS:
                self._paragraph(element)
            elif tag == f"{_TEXT}list":
                self._list(element, 0, "")
                self.document.end_list()
            elif tag == f"{_TABLE}table":
                rows = (table_row(row) for row in _rows(element))
                self.document.add(BlockKind.TABLE, "\n".join(filter(None, rows)), page=self.page)
            elif tag == f"{_OFFICE}annotation":
                self.document.add(BlockKind.PARAGRAPH, _comment(element), page=self.page)
            else:
                self._blocks(element)

    def _paragraph(self, paragraph: Element) -> None:
        text = _inline(paragraph)
        is_title = paragraph.get(f"{_TEXT}style-name") in self.styles.titles
        if paragraph.tag == f"{_TEXT}h" or is_title:
            level = paragraph.get(f"{_TEXT}outline-level", "1")
            level = min(max(int(level), 1), 6) if level.isdecimal() and not is_title else 1
            self.document.add(BlockKind.HEADING, one_line(text, len(text)), level=level, page=self.page)
            if is_title and not self.document.title:
                self.document.title = one_line(text)
        else:
            self.document.add(BlockKind.PARAGRAPH, text, page=self.page)

    def _list(self, element: Element, depth: int, style: str) -> None:
        style = element.get(f"{_TEXT}style-name", style)
        for number, item in enumerate(element, start=1):
            mark = f"{number}. " if style in self.styles.numbered else "- "
            for child in item:
                if child.tag == f"{_TEXT}list":
                    self._list(child, depth + 1, style)
                elif (text := _inline(child)) != "":
                    self.document.add_item(text, depth=depth, mark=mark, page=self.page)
                    mark = " " * len(mark)


def _own_paragraphs(shape: Element) -> Iterator[Element]:
    return (element for element in shape.iter() if element.tag in _PARAGRAPHS)


def _inline(element: Element) -> str:
    """Return the text of a paragraph or of anything else with paragraphs inside."""
    parts: list[str] = []
    _collect(element, parts)
    return _BREAKS.sub("\n", "".join(parts)).strip()


def _collect(element: Element, parts: list[str]) -> None:
    parts.append(_SPACES.sub(" ", element.text or ""))
    for child in element:
        tag = child.tag
        if tag == f"{_TEXT}s":
            count = child.get(f"{_TEXT}c", "1")
            parts.append(" " * min(int(count) if count.isdecimal() else 1, _MAX_SPACES))
        elif tag == f"{_TEXT}tab":
            parts.append("\t")
        elif tag == f"{_TEXT}line-break":
            parts.append("\n")
        elif tag == f"{_TEXT}note":
            body = child.find(f"{_TEXT}note-body")
            parts.append("" if body is None else f" ({_inline(body)})")
        elif tag == f"{_OFFICE}annotation":
            parts.append(f" ({_comment(child)})")
        elif tag not in _SKIPPED:
            around = "\n" if tag in _PARAGRAPHS else ""
            parts.append(around)
            _collect(child, parts)
            parts.append(around)
        parts.append(_SPACES.sub(" ", child.tail or ""))


def _comment(annotation: Element) -> str:
    return "Comment: " + " ".join(filter(None, map(_inline, _own_paragraphs(annotation))))


def _rows(table: Element) -> Iterator[list[str]]:
    """Yield the cells of a table's rows; rows may be grouped, for example as the header."""
    for element in table:
        if element.tag == f"{_TABLE}table-row":
            yield [_cell(cell) for cell in _cells(element)]
        elif element.tag.startswith(_TABLE):
            yield from _rows(element)


def _sheet_rows(table: Element) -> Iterator[list[str]]:
    """Yield the rows of a sheet as often as they are repeated, without empty cells at the end."""
    for element in table:
        if element.tag == f"{_TABLE}table-row":
            words: list[str] = []
            for cell in _cells(element):
                words += [_cell(cell)] * _repeated(cell, "columns", _MAX_COLUMNS - len(words))
            while words and not words[-1]:
                words.pop()
            # Without this, the empty rows at the end of a sheet would be repeated a million times.
            yield from repeat(words, _repeated(element, "rows", MAX_ROWS) if words else 1)
        elif element.tag.startswith(_TABLE):
            yield from _sheet_rows(element)


def _cells(row: Element) -> Iterator[Element]:
    return (cell for cell in row if cell.tag in (f"{_TABLE}table-cell", f"{_TABLE}covered-table-cell"))


def _cell(cell: Element) -> str:
    """Return the text of a cell as it is shown, with its comment last."""
    comments = [_comment(note) for note in cell.iterfind(f"{_OFFICE}annotation")]
    lines = [_inline(child) for child in cell if child.tag != f"{_OFFICE}annotation"]
    return " ".join(filter(None, [*lines, *(f"({comment})" for comment in comments)]))


def _repeated(element: Element, what: str, limit: int) -> int:
    count = element.get(f"{_TABLE}number-{what}-repeated", "1")
    return min(int(count[:_MAX_DIGITS]) if count.isdecimal() else 1, limit)
