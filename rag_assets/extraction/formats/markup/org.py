"""Org mode: headings, tables and code blocks; comments, drawers and settings are left out."""

import re
from collections.abc import Iterator
from typing import Final

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.formats.markup.as_markdown import code, heading, markdown_document, table

ORG_MEDIA_TYPE: Final = "text/org"

_TITLE = re.compile(r"^#\+title:[ \t]*(.*)", re.IGNORECASE | re.MULTILINE)
_HEADING = re.compile(r"(\*+)[ \t]+(.*)")
_TAGS = re.compile(r"[ \t]+:[\w@#%:]+:[ \t]*\Z")
_BEGIN = re.compile(r"[ \t]*#\+begin_(src|example)\b[ \t]*([\w+#-]*)", re.IGNORECASE)
_END = re.compile(r"[ \t]*#\+end_(?:src|example)\b", re.IGNORECASE)
_CAPTION = re.compile(r"[ \t]*#\+caption:[ \t]*", re.IGNORECASE)
_SETTING = re.compile(r"[ \t]*#(?:\+|[ \t]|\Z)")
_DRAWER = re.compile(r"[ \t]*:[\w-]+:[ \t]*\Z")
_DRAWER_END = re.compile(r"[ \t]*:end:[ \t]*\Z", re.IGNORECASE)
_PLANNING = re.compile(r"[ \t]*(?:CLOCK|CLOSED):")
_ROW = re.compile(r"[ \t]*\|")
_RULE = re.compile(r"[ \t]*\|[-+|: \t]*\Z")
_LINK = re.compile(r"\[\[([^\[\]]{1,1000})\](?:\[([^\[\]]{1,1000})\])?\]")


def extract_org(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its encoding is unknown."""
    source = normalise(decode(data))
    title = _TITLE.search(source)
    return markdown_document(_markdown(iter(source.split("\n"))), ORG_MEDIA_TYPE, title[1] if title else "")


def _markdown(lines: Iterator[str]) -> Iterator[str]:
    rows: list[list[str]] = []
    for line in lines:
        if _ROW.match(line):
            if not _RULE.match(line):
                rows.append(_inline(line).strip().strip("|").split("|"))
            continue
        yield from table(rows)
        rows = []
        begin = _BEGIN.match(line)
        if begin:
            yield from code(_until(lines, _END), begin[2] if begin[1].lower() == "src" else "")
        elif _DRAWER.match(line):
            _until(lines, _DRAWER_END)
        elif found := _HEADING.match(line):
            yield from heading(len(found[1]), _inline(_TAGS.sub("", found[2])))
        elif caption := _CAPTION.match(line):
            yield _inline(line[caption.end() :])
        elif not _SETTING.match(line) and not _PLANNING.match(line):
            yield _inline(line)
    yield from table(rows)


def _until(lines: Iterator[str], end: re.Pattern[str]) -> list[str]:
    """Return the lines before the one that ends the block; the rest of the file if none does."""
    found: list[str] = []
    for line in lines:
        if end.match(line):
            break
        found.append(line)
    return found


def _inline(text: str) -> str:
    return _LINK.sub(lambda link: link[2] or link[1], text)
