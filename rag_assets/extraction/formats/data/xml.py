"""XML: paragraphs and headings of documents, and the values of data with the names of their elements.

Entities that a file declares are never expanded, and nothing outside the file is read.
"""

import html
import re
from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

from rag_assets.extraction.decoding import decode
from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line
from rag_assets.extraction.errors import ExtractionError, QuarantineReason

XML_MEDIA_TYPE: Final = "application/xml"

MAX_DEPTH: Final = 1000
_MAX_ATTRIBUTE: Final = 200
_DECLARED_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9_.:-]+)""")

# Element names of DocBook, DITA, JATS, TEI and RSS, without their namespace.
_HEADINGS: Final = frozenset({"title", "head", "heading", "article-title"})
_PARAGRAPHS: Final = frozenset({"p", "para", "simpara", "shortdesc", "cmd", "seg", "mixed-citation", "description"})
_SECTIONS: Final = frozenset({
    "section", "sec", "chapter", "part", "appendix", "sect1", "sect2", "sect3", "sect4", "sect5", "topic", "div",
    "item",
})  # fmt: skip
# Attributes for programs; other attributes are data.
_TECHNICAL: Final = frozenset({"id", "idref", "rid", "href", "src", "class", "style", "version", "specific-use"})


def extract_xml(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is not well-formed, nested too deeply or too large."""
    declared = _DECLARED_ENCODING.match(data[:200])
    source = decode(data, declared=declared[1].decode() if declared else None)
    reader = _ElementReader()
    # The encoding of the call overrides the declared one.
    parser = expat.ParserCreate("utf-8", namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    # With this handler, expat passes references to declared entities on instead of expanding them.
    parser.DefaultHandler = reader.other
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    try:
        parser.Parse(source.encode(errors="replace"), True)
    except expat.ExpatError as error:
        message = expat.ErrorString(error.code)
        detail = f"XML that is not well-formed in line {error.lineno}: {message}; correct it"
        raise ExtractionError(QuarantineReason.MALFORMED, detail) from error
    return reader.document.build()


@dataclass(slots=True)
class _Element:
    name: str
    attributes: str
    text: list[str] = field(default_factory=list[str])
    lines: list[str] = field(default_factory=list[str])
    """The values of its children."""
    has_children: bool = False


@dataclass(slots=True)
class _ElementReader:
    """Turns the parser's events into blocks.

    An element with text of its own is a value or, with elements inside, a paragraph of running text.
    """

    document: DocumentBuilder = field(default_factory=lambda: DocumentBuilder(XML_MEDIA_TYPE))
    _open: list[_Element] = field(default_factory=list[_Element])
    _inside_text: int = 0
    """Number of open elements inside running text, with the outermost."""
    _sections: int = 0
    _depth: int = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            detail = f"elements are nested more than {MAX_DEPTH} levels deep; check that they are closed"
            raise ExtractionError(QuarantineReason.MALFORMED, detail)
        name = _local(name)
        parent = self._open[-1] if self._open else None
        if self._inside_text or (parent is not None and "".join(parent.text).strip()):
            self._inside_text = self._inside_text + 1 if self._inside_text else 2
            return
        if parent is not None:
            parent.has_children = True
        self._open.append(_Element(name, "" if name in _PARAGRAPHS | _HEADINGS else _shown(attributes)))
        self._sections += name in _SECTIONS
        self._inside_text = int(name in _PARAGRAPHS or name in _HEADINGS)

    def end(self, _name: str) -> None:
        self._depth -= 1
        if self._inside_text > 1:
            self._inside_text -= 1
            return
        running = self._inside_text == 1
        self._inside_text = 0
        element = self._open.pop()
        parent = self._open[-1] if self._open else None
        text = " ".join("".join(element.text).split())
        if element.name in _HEADINGS or element.name in _PARAGRAPHS or (running and text):
            self._add_running_text(element, text, parent)
        elif element.has_children or parent is None:
            self._end_block(element, is_root=parent is None)
            self.document.add(BlockKind.PARAGRAPH, text)
        elif text or element.attributes:
            parent.lines.append(f"{element.name}{element.attributes}: {text}".removesuffix(": "))
        self._sections -= element.name in _SECTIONS

    def text(self, text: str) -> None:
        if self._open:
            self._open[-1].text.append(text)

    def other(self, markup: str) -> None:
        """Keep a reference to an entity as it is; HTML's named characters, which many files use, are known."""
        if markup.startswith("&") and markup.endswith(";"):
            self.text(html.unescape(markup))

    def _add_running_text(self, element: _Element, text: str, parent: _Element | None) -> None:
        if parent is not None:
            self._end_block(parent, is_root=len(self._open) == 1)
        if element.name in _HEADINGS:
            self.document.add(BlockKind.HEADING, text, level=min(self._sections + 1, 6))
            self.document.title = self.document.title or text
        else:
            self.document.add(BlockKind.PARAGRAPH, text)

    def _end_block(self, element: _Element, *, is_root: bool) -> None:
        """Add the values read so far, below the name of the element that they belong to."""
        lines, element.lines = element.lines, []
        if element.attributes or (lines and not is_root):
            lines.insert(0, element.name + element.attributes)
            element.attributes = ""
        self.document.add(BlockKind.PARAGRAPH, "\n".join(lines))


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


def _shown(attributes: dict[str, str]) -> str:
    """Return the attributes that are data as ` (name value, …)`, or nothing."""
    shown = [
        f"{_local(name)} {one_line(value, _MAX_ATTRIBUTE)}"
        for name, value in attributes.items()
        # A namespace marks links and schemas.
        if " " not in name and name not in _TECHNICAL and not name.endswith("-type") and any(map(str.isalnum, value))
    ]
    return f" ({', '.join(shown)})" if shown else ""
