"""PDF: the text page by page, with lines joined to headings, paragraphs and lists.

PDF stores positions instead of structure, so paragraphs are guessed from the ends and lengths of lines, and headings
from their font size. Values of form fields follow their labels, and notes the text of their page. Pages without text
and text in fonts without a character map are reported as omissions.
"""

import io
import logging
import math
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any, Final

from rag_assets.extraction.decoding import normalise
from rag_assets.extraction.document import (
    Attachment,
    BlockKind,
    DocumentBuilder,
    ExtractedDocument,
    Omission,
    has_words,
    one_line,
)
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.pdf_annotations import AnnotationReader
from rag_assets.extraction.formats.pdf_layout import (
    Segment,
    columns_in_order,
    may_have_columns,
    read_lines,
    with_values,
)

PDF_MEDIA_TYPE: Final = "application/pdf"
_HEADER: Final = b"%PDF-"
_HEADER_WITHIN: Final = 1024

# PDFium's error codes for a document with a password, and for an unknown security handler.
_ERR_PASSWORD: Final = 4
_ERR_SECURITY: Final = 5

# PDFium replaces the hyphen at the end of a line with the first, and joins the lines. The second is not removed by
# normalisation.
_PDFIUM_HYPHEN: Final = "\x02"
_LINE_END_HYPHEN: Final = "\ufffe"
_LOCKED: Final = "the PDF needs a password; upload a copy without it"

MAX_PAGES: Final = 50_000
MAX_CHARACTERS: Final = 64 * 1024 * 1024
_MAX_SECOND_BYTES: Final = 32 * 1024 * 1024
_MAX_SECOND_PAGES: Final = 1000

# Lines that repeat from page to page: minimum pages, minimum share of the pages, maximum lines at an edge.
_RUNNING_FROM: Final = 4
_RUNNING_SHARE: Final = 0.3  # of all pages if only left or only right pages have the line, else twice that
_MAX_RUNNING: Final = 3
_SHORT_LINE: Final = 40
_DIGITS = re.compile(r"\d{1,6}")
_DIGITS_AT_ENDS = re.compile(
    r"(?<![^\W_])\d{1,6}(?=\W*\Z)|(?<=\A)\d{1,6}\b|(?<=\A-)\d{1,6}\b|\d{1,6}(?= (?:of|von|de|sur|di) \d)"
)

# A line this much larger than most of the text is a heading, unless a large share of the text is.
_HEADING_SCALE: Final = 1.1
_MAX_HEADING: Final = 120
_MAX_HEADING_LINES: Final = 3
_MAX_HEADING_SHARE: Final = 0.2

# The area of Unicode that fonts use for their own signs, and characters that lead to a page number.
_PRIVATE: Final = ("\ue000", "\uf8ff")
_LEADERS: Final = frozenset("._-\u00b7\u2022")
_MUCH_UNMAPPED: Final = 0.25
_MANY_SIGNS: Final = 0.4
_ENOUGH_LETTERS: Final = 15
_FEW_VOWELS: Final = 0.22
_MANY_OBJECTS: Final = 100
_MAX_RANGES: Final = 20

_HYPHENATED = re.compile(r"(\w+)(?:\ufffe|[-\u2010]\n)(\w+)")
_COMPOUND = re.compile(r"\w+-\w+")

_BULLET = re.compile(r"[•◦▪▫●○■□‣⁃∙·➢➤►✓✔\uf0b7\uf0a7\u2013\u2014*-]\s+(?=\S)")
_NUMBER = re.compile(r"(?:\d{1,3}|[A-Za-z])[.)]\s+(?=\S)")
_SENTENCE_END = re.compile(r"[.!?:;。！？：；][\"'”’»)\]」』）]*\Z")
_CJK = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")

# A line below this share of a full line did not end for lack of space.
_SHORT: Final = 0.75
# Titles that programs write by default, such as file names.
_NO_TITLE = re.compile(
    r"(?:microsoft \w+ - .*|untitled.*|powerpoint presentation|slide \d+"
    r"|.*\.(?:pdf|docx?|pptx?|xlsx?|od[tspg]|indd|tex|qxd|dvi))?\Z",
    re.IGNORECASE,
)


def looks_like_pdf(data: bytes) -> bool:
    """Return whether there is a PDF header in the first kilobyte, where readers expect it."""
    return _HEADER in data[:_HEADER_WITHIN]


def extract_pdf(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError: encrypted, too_large, or malformed if a page is unreadable."""
    title, found, attachments = _read(data)
    found, garbled = _without_garbled(found)
    document = DocumentBuilder(PDF_MEDIA_TYPE, "" if _NO_TITLE.match(title) else title)
    pages = without_running_lines([page.text for page in found])
    levels = _heading_levels(found)
    # A compound that occurs unbroken somewhere keeps its hyphen at the end of a line.
    compounds = {match.group().lower() for page in pages for match in _COMPOUND.finditer(page)}
    for number, page in enumerate(pages, start=1):
        _add_page(document, _join_hyphenated(page, compounds), number, levels[number - 1])
    unread = [number for number, page in enumerate(found, start=1) if page.is_unread]
    omissions = (
        Omission("pages without text", f"no text on {_page_numbers(unread)}; run text recognition (OCR) on the file"),
        Omission(
            "unreadable fonts",
            f"fonts without a character map on {_page_numbers(garbled)}; export the file again or run text recognition "
            "(OCR) on it",
        ),
    )
    found_omissions = tuple(omission for omission, at in zip(omissions, (unread, garbled), strict=True) if at)
    return replace(document.build(), attachments=attachments, omissions=found_omissions)


@dataclass(frozen=True, slots=True)
class _Page:
    """The text of a page, and the sizes (in points) of the lines that are larger than most of it."""

    text: str
    larger: dict[str, float] = field(default_factory=dict[str, float])
    characters: Counter[float] = field(default_factory=Counter[float])
    """Number of characters of each size."""
    unmapped: frozenset[str] = frozenset()
    """Lines in fonts that do not define which characters their glyphs are."""
    is_unread: bool = False
    """Whether the page has content, but no text."""


def _read(data: bytes) -> tuple[str, list[_Page], tuple[Attachment, ...]]:
    """Return the title, the pages and the attached files; pypdf reads what PDFium cannot."""
    import pypdfium2  # pyright: ignore[reportMissingTypeStubs]

    pdf: Any
    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) in (_ERR_PASSWORD, _ERR_SECURITY):
            raise ExtractionError(QuarantineReason.ENCRYPTED, _LOCKED) from error
        with _second_reader(data, error) as pages:  # without sizes, and so without headings
            return "", _bounded(range(len(pages)), lambda index: _Page(pages[index].extract_text())), ()
    with closing(pdf):
        title = one_line(normalise(pdf.get_metadata_value("Title")))
        annotations = AnnotationReader(pdf)

        def read_page(index: int) -> _Page:
            try:
                return _read_page(pdf, index, annotations)
            except pypdfium2.PdfiumError as error:
                with _second_reader(data, error) as pages:
                    return _Page(pages[index].extract_text())

        return title, _bounded(range(len(pdf)), read_page), annotations.attachments()


def _bounded(pages: range, read: Callable[[int], _Page]) -> list[_Page]:
    """Return the pages with normalised text; raise ExtractionError beyond the limits."""
    if len(pages) > MAX_PAGES:
        detail = f"{len(pages)} pages; the limit is {MAX_PAGES}, split the file"
        raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
    found: list[_Page] = []
    characters = 0
    for index in pages:
        page = read(index)
        found.append(replace(page, text=normalise(page.text)))
        characters += len(found[-1].text)
        if characters > MAX_CHARACTERS:
            detail = f"more than {MAX_CHARACTERS // 2**20} million characters of text; split the file"
            raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
    return found


def _without_garbled(pages: list[_Page]) -> tuple[list[_Page], list[int]]:
    """Remove the lines in fonts without a character map if they are not words; return the numbers of their pages."""
    suspicious = [page for page in pages if _is_mostly_unmapped(page)]
    if not looks_garbled("".join(line for page in suspicious for line in page.unmapped)):
        return pages, []
    cleaned = [_without_unmapped(page) if _is_mostly_unmapped(page) else page for page in pages]
    return cleaned, [number for number, page in enumerate(pages, start=1) if _is_mostly_unmapped(page)]


def _is_mostly_unmapped(page: _Page) -> bool:
    """Return whether much of a page is in such fonts, rather than a few signs of a formula."""
    return sum(map(len, page.unmapped)) > _MUCH_UNMAPPED * len(page.text)


def _without_unmapped(page: _Page) -> _Page:
    kept = (line for line in page.text.split("\n") if line.strip() not in page.unmapped)
    return replace(page, text="\n".join(kept))


def looks_garbled(text: str) -> bool:
    """Return whether characters are not those of a language: too many signs, or too few vowels among Latin letters."""
    characters = [c for c in unicodedata.normalize("NFD", text.lower()) if not c.isspace() and c not in _LEADERS]
    signs = sum(unicodedata.category(c)[0] not in "LNM" for c in characters)
    latin = [c for c in characters if c in string.ascii_lowercase]
    vowels = sum(c in "aeiouy" for c in latin)
    few_vowels = len(latin) >= _ENOUGH_LETTERS and vowels < _FEW_VOWELS * len(latin)
    return signs > _MANY_SIGNS * len(characters) or few_vowels


def _page_numbers(numbers: list[int]) -> str:
    """Return numbers as `page 3` or `pages 2-4, 7`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    shown = ", ".join("-".join(map(str, ends)) for ends in ranges[:_MAX_RANGES])
    more = " and others" if len(ranges) > _MAX_RANGES else ""
    return f"page{'s' if len(numbers) > 1 else ''} {shown}{more}"


@contextmanager
def _second_reader(data: bytes, error: Exception) -> Generator[Any]:
    """Yield the pages of a file that PDFium failed to read with `error`, read by pypdf.

    pypdf is slow, so it only gets files of moderate size.
    """
    damaged = "neither PDFium nor pypdf can read the file; it may be truncated: open it in a reader and save it again"
    if len(data) > _MAX_SECOND_BYTES:
        raise ExtractionError(QuarantineReason.MALFORMED, damaged) from error

    import pypdf

    # It logs every defect of a file that is known to be defective.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        with pypdf.PdfReader(io.BytesIO(data), strict=False) as reader:
            if reader.is_encrypted and not reader.decrypt(""):
                raise ExtractionError(QuarantineReason.ENCRYPTED, _LOCKED)
            if len(reader.pages) > _MAX_SECOND_PAGES:
                raise ExtractionError(QuarantineReason.MALFORMED, damaged)
            yield reader.pages
    except (ExtractionError, MemoryError):
        raise
    except Exception as second:
        # Defective files make it raise almost anything, from KeyError to RecursionError.
        raise ExtractionError(QuarantineReason.MALFORMED, damaged) from second


def without_running_lines(pages: list[str]) -> list[str]:
    """Remove headers, footers and page numbers.

    These are the first or last lines (or lines next to such a line) that are equal on most pages, except for a number
    that counts with the pages. The first occurrence stays unless it is only a number.
    """
    if len(pages) < _RUNNING_FROM:
        return pages
    lines = [page.split("\n") for page in pages]
    dropped: set[tuple[int, int]] = set()
    for backwards in (False, True):
        # The lines of each page that are not blank, from the edge inwards.
        inwards = [[index for index, line in enumerate(page) if line.strip()] for page in lines]
        for order in inwards if backwards else ():
            order.reverse()
        for _ in range(_MAX_RUNNING):
            series: dict[str, list[tuple[int, str]]] = defaultdict(list)
            for page, order in enumerate(inwards):
                if order:
                    line = " ".join(lines[page][order[0]].split())
                    series[_DIGITS.sub("0", line)].append((page, line))
            for found in series.values():
                if not _is_running(found, len(pages)):
                    continue
                kept = 1 if any(map(str.isalpha, found[0][1])) else 0
                dropped |= {(page, inwards[page][0]) for page, _ in found[kept:]}
                for page, _ in found:
                    del inwards[page][0]
    return [
        "\n".join(line for index, line in enumerate(page) if (number, index) not in dropped)
        for number, page in enumerate(lines)
    ]


def _is_running(found: list[tuple[int, str]], pages: int) -> bool:
    # Left and right pages often have different lines.
    sides = len({page % 2 for page, _ in found})
    often = len(found) >= max(_RUNNING_FROM, _RUNNING_SHARE * sides * pages)
    return often and (len({line for _, line in found}) == 1 or _counts_pages(found))


def _counts_pages(found: list[tuple[int, str]]) -> bool:
    """Return whether a number in these lines increases with the pages.

    Page numbers are at either end of the line, or anywhere in a short one ("Page 3 of 10").
    """
    candidates: set[int] | None = None
    for page, line in found:
        numbers = _DIGITS.findall(line) if len(line) <= _SHORT_LINE else _DIGITS_AT_ENDS.findall(line)
        offsets = {int(number) - page for number in numbers}
        candidates = offsets if candidates is None else candidates & offsets
    return bool(candidates)


def _read_page(pdf: Any, index: int, annotations: AnnotationReader) -> _Page:
    with closing(pdf[index]) as page, closing(page.get_textpage()) as text_page:
        values, notes = annotations.read(page)
        texts = text_page.get_text_range().split("\r\n")
        text = _page_text(text_page, texts, values, notes)
        lines = list(_text_lines(text_page, texts))
        is_unread = not has_words(text) and _has_content(page)
    sizes = {line.text: line.size for line in lines if line.size}
    unmapped = frozenset(line.text for line in lines if not line.is_mapped)
    characters: Counter[float] = Counter()
    for line, size in sizes.items():
        characters[size] += len(line)
    if not characters:
        return _Page(text, unmapped=unmapped, is_unread=is_unread)
    # Keep the lines larger than usual, or all if the page has one size: it may be a title page.
    usual = max(characters, key=lambda size: (characters[size], -size)) if len(characters) > 1 else 0.0
    larger = {line: size for line, size in sizes.items() if size > usual and len(line) <= _MAX_HEADING}
    return _Page(text, larger, characters, unmapped)


def _page_text(text_page: Any, texts: list[str], values: list[Segment], notes: list[str]) -> str:
    text = text_page.get_text_bounded()
    if values or may_have_columns(text_page, texts):
        lines = read_lines(text_page, texts)
        columns = columns_in_order(lines)
        if values or columns is not None:
            ordered = with_values(lines if columns is None else columns, values)
            text = "\n".join(" ".join(segment.text for segment in line) for line in ordered)
    return "\n\n".join((text, *notes)).replace(_PDFIUM_HYPHEN, _LINE_END_HYPHEN)


def _has_content(page: Any) -> bool:
    """Return whether a page without text shows something that may be text, such as a scan."""
    import pypdfium2.raw  # pyright: ignore[reportMissingTypeStubs]

    raw: Any = pypdfium2.raw
    count = raw.FPDFPage_CountObjects(page)
    kinds = {
        raw.FPDFPageObj_GetType(raw.FPDFPage_GetObject(page, number)) for number in range(min(count, _MANY_OBJECTS))
    }
    shown = {raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_FORM, raw.FPDF_PAGEOBJ_TEXT}
    return count >= _MANY_OBJECTS or not shown.isdisjoint(kinds)


@dataclass(frozen=True, slots=True)
class _TextLine:
    """A line of a page, the median size of three of its letters to half a point, and whether its font has characters.

    The size is 0 without letters.
    """

    text: str
    size: float
    is_mapped: bool


def _text_lines(text_page: Any, texts: list[str]) -> Iterator[_TextLine]:
    """Yield the lines of a page that are not blank."""
    import pypdfium2.raw  # pyright: ignore[reportMissingTypeStubs]

    raw: Any = pypdfium2.raw
    matrix = raw.FS_MATRIX()
    start = 0
    for line in texts:
        letters = [position for position, character in enumerate(line) if character.isalnum()]
        shown = letters or [position for position, character in enumerate(line) if not character.isspace()][:1]
        sizes: list[float] = []
        unmapped = 0
        # The median of three ignores a large initial or a small footnote mark.
        for position in {shown[0], shown[len(shown) // 2], shown[-1]} if shown else ():
            character = raw.FPDFText_GetCharIndexFromTextIndex(text_page, start + position)
            is_private = _PRIVATE[0] <= line[position] <= _PRIVATE[1]
            unmapped += is_private or raw.FPDFText_HasUnicodeMapError(text_page, character) == 1
            size = float(raw.FPDFText_GetFontSize(text_page, character))
            if raw.FPDFText_GetMatrix(text_page, character, matrix):
                size *= math.hypot(matrix.c, matrix.d)
            sizes.append(round(2 * size) / 2)
        if sizes:
            median = sorted(sizes)[len(sizes) // 2] if letters else 0.0
            yield _TextLine(normalise(line).strip(), median, 2 * unmapped <= len(sizes))
        start += len(line) + 2


def _heading_levels(pages: list[_Page]) -> list[dict[str, int]]:
    """Return the levels of the lines of each page that are headings; the largest size is level 1."""
    characters: Counter[float] = Counter()
    for page in pages:
        characters.update(page.characters)
    if not characters:
        return [{} for _ in pages]
    body = max(characters, key=lambda size: (characters[size], -size))
    large = {size for size in characters if size >= _HEADING_SCALE * body}
    # If much of the text is large, as on slides, size means nothing.
    if sum(characters[size] for size in large) > _MAX_HEADING_SHARE * characters.total():
        return [{} for _ in pages]
    found = [
        {line: size for line, size in page.larger.items() if size in large and _may_be_heading(line)} for page in pages
    ]
    used = sorted({size for page in found for size in page.values()}, reverse=True)
    levels = {size: min(rank, 6) for rank, size in enumerate(used, start=1)}
    return [{line: levels[size] for line, size in page.items()} for page in found]


def _may_be_heading(line: str) -> bool:
    return (
        any(map(str.isalpha, line)) and not _BULLET.match(line) and not line.endswith((".", ",", ";", "。", "、", "-"))
    )


def _join_hyphenated(text: str, compounds: set[str]) -> str:
    def join(match: re.Match[str]) -> str:
        before, after = match.groups()
        if f"{before}-{after}".lower() in compounds:
            return f"{before}-{after}"
        if before[-1].islower() and after[0].islower():
            return before + after
        # Names and numbers keep their hyphen (Rolls-Royce, 2019-20).
        return f"{before}-{after}"

    return _HYPHENATED.sub(join, text).replace(_LINE_END_HYPHEN, "")


def _add_page(document: DocumentBuilder, text: str, number: int, levels: dict[str, int]) -> None:
    lines = [line.strip() for line in text.split("\n")]
    lengths = sorted(len(line) for line in lines if line)
    if not lengths:
        return
    full = lengths[len(lengths) * 9 // 10]
    for level, run in groupby(lines, key=lambda line: levels.get(line, 0)):
        piece = list(run)
        # A heading has a few lines at most; more large lines are an address, a table or a quotation.
        if level and len(piece) <= _MAX_HEADING_LINES:
            document.add(BlockKind.HEADING, _join_lines(piece), level=level, page=number)
        else:
            _add_lines(document, piece, full, number)


def _add_lines(document: DocumentBuilder, lines: list[str], full: int, number: int) -> None:
    for paragraph in _paragraphs(lines, full):
        bullet = _BULLET.match(paragraph) or _NUMBER.match(paragraph)
        if bullet:
            mark = "- " if _BULLET.match(paragraph) else bullet.group()
            document.add_item(paragraph[bullet.end() :], mark=mark, page=number)
        else:
            document.add(BlockKind.PARAGRAPH, paragraph, page=number)
    document.end_list()


def _paragraphs(lines: list[str], full: int) -> list[str]:
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
    """Return whether a paragraph ends with `line`; full lines of the page have about `full` characters."""
    if _BULLET.match(following) or _NUMBER.match(following):
        return True
    ended = _SENTENCE_END.search(line) is not None
    starts_sentence = not following[0].islower()
    if len(line) < _SHORT * full:
        return ended or starts_sentence
    # A short line after a finished sentence is more often a heading than a last line.
    return ended and starts_sentence and len(following) < _SHORT * full and not _SENTENCE_END.search(following)


def _join_lines(lines: list[str]) -> str:
    parts = [lines[0]]
    for before, line in pairwise(lines):
        if not (_CJK.match(before[-1]) and _CJK.match(line[0])):
            parts.append(" ")
        parts.append(line)
    return "".join(parts)
