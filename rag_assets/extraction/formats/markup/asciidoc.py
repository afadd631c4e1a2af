"""AsciiDoc: headings, lists, tables, code blocks and captions; comments, includes and attributes are left out."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.formats.markup.as_markdown import code, heading, markdown_document, table

ASCIIDOC_MEDIA_TYPE: Final = "text/asciidoc"

_HEADING = re.compile(r"(={1,6})[ \t]+(\S.*)")
_ATTRIBUTE = re.compile(r":!?[\w-]+!?:(?:[ \t].*)?\Z")
_BLOCK_ATTRIBUTES = re.compile(r"\[.*\][ \t]*\Z")
_SOURCE_LANGUAGE = re.compile(r"\[source(?:%\w+)*,\s*([\w+#-]+)")
_COLUMNS = re.compile(r"""cols\s*=\s*["']?([^"'\]]*)""")
_VERBATIM = re.compile(r"(?:-{4,}|\.{4,}|`{3,}.*|\+{4,})[ \t]*\Z")
_COMMENT_BLOCK = re.compile(r"/{4,}[ \t]*\Z")
_TABLE = re.compile(r"[|,:!]={3,}[ \t]*\Z")
_FRAME = re.compile(r"(?:={4,}|\*{4,}|_{4,}|--|\+)[ \t]*\Z")
_DIRECTIVE = re.compile(r"(?:include|ifdef|ifndef|ifeval|endif|toc)::")
_CAPTION = re.compile(r"\.(?=[^\s.])")
_ITEM = re.compile(r"[ \t]*(?:(\*{1,6}|-)|(\.{1,6}))[ \t]+(?=\S)")
_TERM = re.compile(r"(\S.{0,200}?):{2,4}(?:[ \t]+|\Z)(?!:)")
_CELL = re.compile(r"(?:(?:(?<=\s)|\A)(?:\d{0,3}\.?\d{0,3}[+*])?[<^>.]{0,4}[a-z]?)?(?<!\\)\|")
_IMAGE = re.compile(r"(?:image|video|audio)::?[^\s\[]{1,500}\[([^\],]*)[^\]]{0,500}\]")
_LINK = re.compile(
    r"(?:link:|xref:|mailto:)[^\s\[]{1,500}\[([^\]]{0,500})\]|https?://[^\s\[\]]{1,500}\[([^\]]{1,500})\]"
)
_REFERENCE = re.compile(r"<<[^<>,]{1,200},\s*([^<>]{1,200})>>")
_ANCHOR = re.compile(r"\[\[[^\[\]]{1,200}\]\]")
_FOOTNOTE = re.compile(r"footnote:[\w-]*\[([^\]]{1,2000})\]")


def extract_asciidoc(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its encoding is unknown."""
    lines = normalise(decode(data)).split("\n")
    return markdown_document(_Reader(iter(lines)).markdown(), ASCIIDOC_MEDIA_TYPE)


@dataclass(slots=True)
class _Reader:
    lines: Iterator[str]
    attributes: str = ""
    """The line in brackets before a block."""

    def markdown(self) -> Iterator[str]:
        for line in self.lines:
            if _BLOCK_ATTRIBUTES.match(line) and not line.startswith("[["):
                self.attributes = line
                continue
            yield from self._block(line)
            if line.strip():
                self.attributes = ""

    def _block(self, line: str) -> Iterator[str]:
        if _COMMENT_BLOCK.match(line):
            self._until(line)
        elif _VERBATIM.match(line):
            language = _SOURCE_LANGUAGE.match(self.attributes)
            yield from code(self._until(line), language[1] if language else "")
        elif _TABLE.match(line):
            yield from table(_rows(self._until(line), _columns(self.attributes)))
        elif found := _HEADING.match(line):
            yield from heading(len(found[1]), _inline(found[2]))
        elif line.startswith("//") or _ATTRIBUTE.match(line) or _DIRECTIVE.match(line):
            return
        elif _FRAME.match(line):
            yield ""
        else:
            yield _text_line(line)

    def _until(self, delimiter: str) -> list[str]:
        """Return the lines before the next one like the delimiter; the rest of the file if it is not closed."""
        end = delimiter.rstrip()
        end = "```" if end.startswith("```") else end
        found: list[str] = []
        for line in self.lines:
            if line.rstrip() == end:
                break
            found.append(line)
        return found


def _text_line(line: str) -> str:
    item = _ITEM.match(line)
    if item:
        depth = len((item[1] or item[2]).replace("-", "*")) - 1
        nested = "   " * depth if depth else line[: len(line) - len(line.lstrip())]
        return nested + ("1. " if item[2] else "- ") + _inline(line[item.end() :])
    term = _TERM.match(line)
    if term:
        return f"- {_inline(term[1])}: {_inline(line[term.end() :])}".rstrip(" :")
    return _inline(_CAPTION.sub("", line) if _CAPTION.match(line) else line)


def _inline(text: str) -> str:
    text = _IMAGE.sub(r"\1", text)
    text = _LINK.sub(lambda found: found[1] or found[2] or "", text)
    text = _FOOTNOTE.sub(r" (\1)", _REFERENCE.sub(r"\1", text))
    return _ANCHOR.sub("", text)


def _columns(attributes: str) -> int:
    """Return the number of columns that the attributes of a table set; 0 if they set none."""
    found = _COLUMNS.search(attributes)
    if found is None:
        return 0
    repeated = re.fullmatch(r"\s*(\d{1,3})\*.*", found[1])
    return int(repeated[1]) if repeated else found[1].count(",") + 1


def _rows(lines: list[str], columns: int) -> list[list[str]]:
    """Return the cells by row. Without `cols`, the first line with cells sets the width."""
    cells: list[str] = []
    for line in lines:
        before, *started = _CELL.split(line)
        if cells and before.strip():
            cells[-1] += " " + before.strip()
        cells += [_inline(cell).strip() for cell in started]
        columns = columns or len(cells)
    return [cells[start : start + columns] for start in range(0, len(cells), columns or 1)]
