"""Word documents (OOXML): the body in order, with headings, lists and tables.

The container is measured before any library opens it, because a zip may claim any size for its entries.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line
from rag_assets.extraction.errors import ExtractionError, QuarantineReason

if TYPE_CHECKING:
    from docx.document import Document

DOCX_MEDIA_TYPE: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
ZIP_SIGNATURE: Final = b"PK\x03\x04"

MAX_INFLATED_BYTES: Final = 256 * 1024 * 1024
MAX_ENTRIES: Final = 10_000
MAX_RATIO: Final = 200
# Small files reach high ratios honestly: a repetitive table of a few megabytes does no harm.
_RATIO_APPLIES_FROM: Final = 32 * 1024 * 1024

_STEP: Final = 256 * 1024
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")

_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_STRICT: Final = b"http://purl.oclc.org/ooxml/"
_HEADING_STYLE = re.compile(r"heading ([1-9])", re.IGNORECASE)
_OUTLINE_LEVELS: Final = 9
_MAX_STYLE_CHAIN: Final = 20
_MAX_INDENT: Final = 8
# What Word and python-docx write when nobody gave a title.
_NO_TITLES: Final = frozenset({"", "word document", "microsoft word document", "untitled", "document"})


def looks_like_docx(data: bytes) -> bool:
    """Whether the content is a zip that holds a Word document."""
    return data.startswith(ZIP_SIGNATURE) and any(
        name.startswith("word/document") and name.endswith(".xml") for name in zip_names(data)
    )


def zip_names(data: bytes) -> list[str]:
    """The entry names of a zip; none where its directory cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return []


def extract_docx(data: bytes) -> ExtractedDocument:
    """Raises ExtractionError: too_large where the container inflates beyond the limits, else malformed."""
    _refuse_bomb(data)

    import docx

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if "_rels/.rels" in archive.namelist() and _STRICT in archive.read("_rels/.rels"):
            detail = "a Strict Open XML document; save it as an ordinary Word document (.docx)"
            raise ExtractionError(QuarantineReason.UNSUPPORTED_TYPE, detail)
    document = docx.Document(io.BytesIO(data))
    root: Any = document.element
    reader = _BodyReader(_styles(document))
    reader.read(root.body)
    core_title = one_line(document.core_properties.title or "")
    if not reader.document.title and core_title.lower() not in _NO_TITLES:
        reader.document.title = core_title
    return reader.document.build()


def _refuse_bomb(data: bytes) -> None:
    """Inflate every entry without keeping it, and count."""
    total = 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        detail = f"{len(entries)} entries in the container; the limit is {MAX_ENTRIES}"
        raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
    limit = min(MAX_INFLATED_BYTES, max(_RATIO_APPLIES_FROM, MAX_RATIO * len(data)))
    for entry in entries:
        if entry.flag_bits & 1:
            raise ExtractionError(QuarantineReason.ENCRYPTED, "an entry of the container is encrypted; save it without")
        size = 0
        for produced in _inflate(data, entry):
            size += produced
            total += produced
            if total > limit:
                detail = f"{len(data)} bytes inflate to more than {limit // 2**20} MiB; save the document anew"
                raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
        # Libraries allocate by the declared size and read past it: only an honest container goes on.
        if size != entry.file_size:
            detail = f"an entry declares {entry.file_size} bytes and holds {size}; save the document anew"
            raise ExtractionError(QuarantineReason.MALFORMED, detail)


def _inflate(data: bytes, entry: zipfile.ZipInfo) -> Iterator[int]:
    """The sizes of the pieces that an entry inflates to, each at most `_STEP` bytes."""
    signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(data, entry.header_offset)
    start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    stop = start + entry.compress_size
    if signature != ZIP_SIGNATURE or stop > len(data):
        raise ExtractionError(QuarantineReason.MALFORMED, "the container is cut off or damaged; upload it again")
    if entry.compress_type == zipfile.ZIP_STORED:
        yield entry.compress_size
        return
    if entry.compress_type != zipfile.ZIP_DEFLATED:
        raise ExtractionError(QuarantineReason.MALFORMED, "the container uses a compression that Word does not")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for position in range(start, stop, _STEP):
        waiting = data[position : min(stop, position + _STEP)]
        while waiting and not inflater.eof:
            yield len(inflater.decompress(waiting, _STEP))
            waiting = inflater.unconsumed_tail
    yield len(inflater.flush())


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
    cells = [
        " ".join(" ".join(_text(paragraph) for paragraph in _own(cell, "p")).split()) for cell in _own(row, "tc", "tbl")
    ]
    return " | ".join(cells) if any(cells) else ""


def _text(paragraph: Any) -> str:
    """The words of a paragraph, links and accepted insertions included, deletions not."""
    parts: list[str] = []
    pending = [paragraph.iterchildren()]
    while pending:
        element = next(pending[-1], None)
        if element is None:
            pending.pop()
        elif element.tag == f"{_W}t":
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
