"""PDF: the text page by page, with lines put back together into paragraphs and lists.

PDF stores positions, not structure, so paragraphs are guessed from how lines end and how long they are.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Final

from rag_assets.extraction.decoding import normalise
from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line
from rag_assets.extraction.errors import ExtractionError, QuarantineReason

PDF_MEDIA_TYPE: Final = "application/pdf"
_HEADER: Final = b"%PDF-"
_HEADER_WITHIN: Final = 1024

# PDFium's error codes for a document that wants a password, and for a security handler it does not know.
_ERR_PASSWORD: Final = 4
_ERR_SECURITY: Final = 5

# PDFium marks a hyphen that it found at a line's end with the first, and joins the lines. The second survives
# normalisation, which takes control characters out.
_PDFIUM_HYPHEN: Final = "\x02"
_LINE_END_HYPHEN: Final = "\ufffe"
_HYPHENATED = re.compile(r"(\w+)(?:\ufffe|[-\u2010]\n)(\w+)")
_COMPOUND = re.compile(r"\w+-\w+")

_BULLET = re.compile(r"[•◦▪▫●○■□‣⁃∙·➢➤►✓✔\uf0b7\uf0a7\u2013\u2014*-]\s+(?=\S)")
_NUMBER = re.compile(r"(?:\d{1,3}|[A-Za-z])[.)]\s+(?=\S)")
_SENTENCE_END = re.compile(r"[.!?:;。！？：；][\"'”’»)\]」』）]*\Z")
_CJK = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")

# A line this much shorter than the full lines of its page did not end for want of room.
_SHORT: Final = 0.75
# Titles that programs write by themselves: file names and what was never filled in.
_NO_TITLE = re.compile(
    r"(?:microsoft \w+ - .*|untitled.*|powerpoint presentation|slide \d+"
    r"|.*\.(?:pdf|docx?|pptx?|xlsx?|od[tspg]|indd|tex|qxd|dvi))?\Z",
    re.IGNORECASE,
)


def looks_like_pdf(data: bytes) -> bool:
    """Whether a PDF header stands in the first kilobyte, where readers look for it."""
    return _HEADER in data[:_HEADER_WITHIN]


def extract_pdf(data: bytes) -> ExtractedDocument:
    """Raises ExtractionError: encrypted where a password is needed, malformed where a page cannot be read."""
    import pypdfium2  # pyright: ignore[reportMissingTypeStubs]

    pdf: Any
    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) in (_ERR_PASSWORD, _ERR_SECURITY):
            detail = "the PDF opens with a password only; upload a copy without it"
            raise ExtractionError(QuarantineReason.ENCRYPTED, detail) from error
        detail = "PDFium cannot open the file; it may be cut off, open it in a reader and save it anew"
        raise ExtractionError(QuarantineReason.MALFORMED, detail) from error
    try:
        title = one_line(normalise(pdf.get_metadata_value("Title")))
        pages = [normalise(_page_text(pdf, index)) for index in range(len(pdf))]
    finally:
        pdf.close()
    document = DocumentBuilder(PDF_MEDIA_TYPE, "" if _NO_TITLE.match(title) else title)
    # A compound that stands unbroken somewhere keeps its hyphen where a line end broke it.
    compounds = {match.group().lower() for page in pages for match in _COMPOUND.finditer(page)}
    for number, page in enumerate(pages, start=1):
        _add_page(document, _join_hyphenated(page, compounds), number)
    return document.build()


def _page_text(pdf: Any, index: int) -> str:
    import pypdfium2  # pyright: ignore[reportMissingTypeStubs]

    try:
        page = pdf[index]
    except pypdfium2.PdfiumError as error:
        detail = f"page {index + 1} of {len(pdf)} cannot be read; open the file in a reader and save it anew"
        raise ExtractionError(QuarantineReason.MALFORMED, detail) from error
    try:
        text_page = page.get_textpage()
        try:
            return text_page.get_text_bounded().replace(_PDFIUM_HYPHEN, _LINE_END_HYPHEN)
        finally:
            text_page.close()
    finally:
        page.close()


def _join_hyphenated(text: str, compounds: set[str]) -> str:
    def join(match: re.Match[str]) -> str:
        before, after = match.groups()
        if f"{before}-{after}".lower() in compounds:
            return f"{before}-{after}"
        if before[-1].islower() and after[0].islower():
            return before + after
        # Names and numbers (Rolls-Royce, 2019-20): the hyphen is theirs.
        return f"{before}-{after}"

    return _HYPHENATED.sub(join, text).replace(_LINE_END_HYPHEN, "")


def _add_page(document: DocumentBuilder, text: str, number: int) -> None:
    items: list[str] = []
    for paragraph in _paragraphs(text):
        bullet = _BULLET.match(paragraph) or _NUMBER.match(paragraph)
        if bullet:
            mark = "- " if _BULLET.match(paragraph) else bullet.group()
            items.append(mark + paragraph[bullet.end() :])
            continue
        document.add(BlockKind.LIST, "\n".join(items), page=number)
        items.clear()
        document.add(BlockKind.PARAGRAPH, paragraph, page=number)
    document.add(BlockKind.LIST, "\n".join(items), page=number)


def _paragraphs(text: str) -> list[str]:
    lines = [line.strip() for line in text.split("\n")]
    lengths = sorted(len(line) for line in lines if line)
    if not lengths:
        return []
    full = lengths[len(lengths) * 9 // 10]
    paragraphs: list[str] = []
    open_lines: list[str] = []
    for line in lines:
        if open_lines and (not line or _is_break(open_lines[-1], line, full)):
            paragraphs.append(_join_lines(open_lines))
            open_lines = []
        if line:
            open_lines.append(line)
    if open_lines:
        paragraphs.append(_join_lines(open_lines))
    return paragraphs


def _is_break(line: str, following: str, full: int) -> bool:
    """Whether a paragraph ends with `line`, on a page whose full lines have about `full` characters."""
    if _BULLET.match(following) or _NUMBER.match(following):
        return True
    ended = _SENTENCE_END.search(line) is not None
    starts_anew = not following[0].islower()
    if len(line) < _SHORT * full:
        return ended or starts_anew
    # A short line after a finished sentence is a heading more often than a last line.
    return ended and starts_anew and len(following) < _SHORT * full and not _SENTENCE_END.search(following)


def _join_lines(lines: list[str]) -> str:
    parts = [lines[0]]
    for before, line in pairwise(lines):
        if not (_CJK.match(before[-1]) and _CJK.match(line[0])):
            parts.append(" ")
        parts.append(line)
    return "".join(parts)
