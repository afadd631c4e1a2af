"""Excel workbooks (xlsx, xlsm and their templates): a page with a heading per sheet, row by row.

Values are those that Excel saved; formulas are not computed. A formula without a saved value is read as its text and
reported as an omission. The declared size of a sheet is ignored. Comments, text boxes and charts follow the rows of
their sheet. The headings of hidden sheets say so.
"""

import datetime as dt
import html
import io
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, Omission, one_line, table_row
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.drawings import add_drawing, drawing_paragraphs, drawing_relations
from rag_assets.extraction.formats.ooxml import Package, R, safe_package

XLSX_MEDIA_TYPE: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"

MAX_ROWS: Final = 1_048_576
"""Excel's limit per sheet. A row may declare any number, and the library yields all rows before it."""
MAX_CELLS: Final = 5_000_000
MAX_CHARACTERS: Final = 64 * 1024 * 1024
# Includes empty cells: one filled cell far to the right makes a long row.
_MAX_VISITED: Final = 40_000_000
_ROWS_OF_A_TABLE: Final = 2
_COLUMNS_OF_A_TABLE: Final = 2
# Without numbers, a few rows may be a list beside another one.
_CERTAIN_ROWS: Final = 8
_S: Final = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_WORKBOOK: Final = "xl/workbook.xml"
# A cell with a formula and no value. No part of it can match the next one, so the time is linear.
_UNSAVED_FORMULA = re.compile(
    rb"<(?:\w{1,9}:)?c\s([^<>]*+)>\s*+<(?:\w{1,9}:)?f(?:\s[^<>]*+)?+>([^<]*+)(?:</(?:\w{1,9}:)?f>)?+\s*+"
    rb"(?:<(?:\w{1,9}:)?v\s?/>|<(?:\w{1,9}:)?v></(?:\w{1,9}:)?v>)?+\s*+</(?:\w{1,9}:)?c>"
)
_PLACE = re.compile(rb'\br="([A-Z]{1,3})([1-9]\d{0,6})"')
_IS_TEXT = re.compile(rb'\bt="str"')
_LEADING_ZEROS = re.compile(r"(0{2,20})(?:;|\Z)")
_ADVICE: Final = "keep the data in a database, or split the workbook"


def extract_xlsx(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its container is unsafe to open."""
    package = safe_package(data)

    import openpyxl

    document = DocumentBuilder(XLSX_MEDIA_TYPE)
    reader = _WorkbookReader(document, Package(package))
    with warnings.catch_warnings():
        # It warns about extensions that saving would lose; nothing is saved here.
        warnings.simplefilter("ignore")
        workbook = openpyxl.load_workbook(io.BytesIO(package), read_only=True, data_only=True, keep_links=False)
        try:
            title = one_line(str(workbook.properties.title or ""))
            for page, sheet in enumerate(workbook.worksheets, start=1):
                reader.read_sheet(sheet, page)
            reader.read_chart_sheets(len(workbook.worksheets) + 1)
        finally:
            workbook.close()
    # The first heading is often "Sheet1"; the title then comes from the file's name.
    return replace(document.build(), title=title, omissions=reader.omissions())


def add_sheets(document: DocumentBuilder, sheets: Iterable[tuple[str, Iterable[list[str]]]]) -> None:
    """Append the sheets of another spreadsheet format, each as its name and the texts of its cells by row."""
    limits = _Limits()
    for page, (title, rows) in enumerate(sheets, start=1):
        _SheetReader(document, page, limits).read_rows(title, rows)


@dataclass(slots=True)
class _Limits:
    """Counts what was read of all sheets, and raises ExtractionError beyond the limits."""

    cells: int = 0
    characters: int = 0
    visited: int = 0

    def add(self, words: list[str]) -> None:
        self.cells += sum(map(bool, words))
        self.characters += sum(map(len, words))
        if self.cells > MAX_CELLS:
            raise ExtractionError(QuarantineReason.TOO_LARGE, f"more than {MAX_CELLS:,} filled cells; {_ADVICE}")
        if self.characters > MAX_CHARACTERS:
            detail = f"its cells have more than {MAX_CHARACTERS // 2**20} million characters; {_ADVICE}"
            raise ExtractionError(QuarantineReason.TOO_LARGE, detail)

    def visit(self, cells: int) -> None:
        """Count the cells of a row, including empty ones."""
        self.visited += cells
        if self.visited > _MAX_VISITED:
            raise ExtractionError(QuarantineReason.TOO_LARGE, f"its rows extend too far to the right; {_ADVICE}")


class _WorkbookReader:
    """Reads the sheets, and the parts with what is drawn over them or noted in their margins."""

    def __init__(self, document: DocumentBuilder, package: Package) -> None:
        self._document = document
        self._package = package
        self._limits = _Limits()
        self._read: set[str] = set()
        self._unsaved = 0

    def read_sheet(self, sheet: Any, page: int) -> None:
        path = str(sheet._worksheet_path)
        formulas = _unsaved_formulas(self._package.content(path))
        self._unsaved += sum(map(len, formulas.values()))
        _SheetReader(self._document, page, self._limits, formulas).read(sheet)
        self._read_parts(path, page)

    def read_chart_sheets(self, page: int) -> None:
        """Read the sheets that are a single chart, as pages from this one on."""
        workbook = self._package.root(_WORKBOOK)
        names = {} if workbook is None else {e.get(f"{R}id"): e.get("name", "") for e in workbook.iter(f"{_S}sheet")}
        for identifier, (kind, path) in self._package.relations(_WORKBOOK).items():
            if kind == "chartsheet":
                heading = one_line(names.get(identifier, ""))
                self._document.add(BlockKind.HEADING, heading, level=1, page=page)
                self._read_parts(path, page)
                page += 1

    def _read_parts(self, sheet: str, page: int) -> None:
        relations = self._package.relations(sheet).values()
        threads = [path for kind, path in relations if kind == "threadedComment"]
        for path in threads or [path for kind, path in relations if kind == "comments"]:
            self._read_comments(path, page)
        for kind, path in relations:
            if kind == "drawing":
                self._read_drawing(path, page)

    def omissions(self) -> tuple[Omission, ...]:
        """Return what the text lacks."""
        if not self._unsaved:
            return ()
        count = "1 formula has" if self._unsaved == 1 else f"{self._unsaved:,} formulas have"
        return (Omission("formulas", f"{count} no saved value; open the workbook in Excel and save it"),)

    def _root(self, path: str) -> Any:
        """Return the root of a part; None if it is missing, not well-formed, or was read for another sheet."""
        if path in self._read:
            return None
        self._read.add(path)
        return self._package.root(path)

    def _read_comments(self, path: str, page: int) -> None:
        root = self._root(path)
        for comment in () if root is None else root.iter("{*}comment", "{*}threadedComment"):
            text = "".join(run.text or "" for run in comment.iter("{*}t", "{*}text"))
            if text.strip():
                text = f"Comment on {comment.get('ref', '')}: {' '.join(text.split())}"
                self._document.add(BlockKind.PARAGRAPH, text, page=page)

    def _read_drawing(self, path: str, page: int) -> None:
        root = self._root(path)
        if root is None:
            return
        for _, text in drawing_paragraphs(root):
            self._document.add(BlockKind.PARAGRAPH, text, page=page)
        relations = self._package.relations(path)
        for identifier in drawing_relations(root):
            drawing = self._root(relations[identifier][1]) if identifier in relations else None
            if drawing is not None:
                add_drawing(self._document, drawing, page)


def _unsaved_formulas(sheet: bytes) -> dict[int, dict[int, str]]:
    """Return the formulas without a saved value, by row and column. The result of one may be an empty text."""
    found: dict[int, dict[int, str]] = defaultdict(dict)
    for match in _UNSAVED_FORMULA.finditer(sheet):
        place = _PLACE.search(match[1])
        if place is None or _IS_TEXT.search(match[1]):
            continue
        column = 0
        for letter in place[1]:
            column = 26 * column + letter - ord("A") + 1
        formula = html.unescape((match[2] or b"").decode("utf-8", errors="replace"))
        found[int(place[2])][column - 1] = f"={formula}" if formula else ""
    return found


@dataclass(slots=True)
class _SheetReader:
    """Turns the rows of one sheet into blocks. An empty row ends a block unless the columns of its table go on."""

    document: DocumentBuilder
    page: int
    limits: _Limits
    formulas: Mapping[int, Mapping[int, str]] = field(default_factory=dict[int, Mapping[int, str]])
    """Texts of cells without a value, by row (from 1) and column (from 0)."""
    _rows: list[list[str]] = field(default_factory=list[list[str]])
    _gap: bool = False
    """Whether an empty row came after the last one."""

    def read(self, sheet: Any) -> None:
        sheet.reset_dimensions()
        hidden = "" if sheet.sheet_state == "visible" else " (hidden)"
        rows = ([cell_text(cell.value, cell) for cell in row] for row in sheet.iter_rows())
        self.read_rows(f"{one_line(sheet.title)}{hidden}", rows)

    def read_rows(self, title: str, rows: Iterable[list[str]]) -> None:
        heading = False
        for number, words in enumerate(rows, start=1):
            if number > MAX_ROWS:
                detail = f"a sheet has more than {MAX_ROWS:,} rows, which Excel does not allow; save it again"
                raise ExtractionError(QuarantineReason.MALFORMED, detail)
            self.limits.visit(len(words))
            for column, formula in self.formulas.get(number, {}).items():
                if column >= len(words):
                    self.limits.visit(column)
                    words += [""] * (column + 1 - len(words))
                words[column] = words[column] or formula
            while words and not words[-1]:
                words.pop()
            if not words:
                self._gap = True
                continue
            if self._gap and not _goes_on(self._rows, words):
                self._end_region()
            self._gap = False
            if not heading:
                self.document.add(BlockKind.HEADING, one_line(title), level=1, page=self.page)
                heading = True
            self.limits.add(words)
            self._rows.append(words)
        self._end_region()

    def _end_region(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        if all(sum(map(bool, row)) == 1 for row in rows):
            # Text in a single column is a note or a title.
            note = "\n".join(table_row(filter(None, row)) for row in rows)
            self.document.add(BlockKind.PARAGRAPH, note, page=self.page)
            return
        first = min(next(index for index, word in enumerate(row) if word) for row in rows)
        self.document.add(BlockKind.TABLE, "\n".join(table_row(row[first:]) for row in rows), page=self.page)


def _goes_on(rows: list[list[str]], following: list[str]) -> bool:
    """Return whether a row after an empty one has the columns of the table above, and values of the same kinds.

    The header of another table below has words where this one has numbers.
    """
    if len(rows) < _ROWS_OF_A_TABLE:
        return False
    last = rows[-1]
    here, above = ([bool(word) for word in row] for row in (following, last))
    if sum(here) < _COLUMNS_OF_A_TABLE or here != above:
        return False
    kinds = [(_is_number(one), _is_number(other)) for one, other in zip(following, last, strict=True)]
    return all(one == other for one, other in kinds) and (any(one for one, _ in kinds) or len(rows) > _CERTAIN_ROWS)


def _is_number(word: str) -> bool:
    return any(map(str.isdigit, word)) and not any(map(str.isalpha, word))


def cell_text(value: object, cell: Any) -> str:
    """Return a value roughly as Excel shows it.

    Of number formats, only percentages and leading zeros are applied.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float | int):
        if "%" in str(cell.number_format):
            return f"{value * 100:.10g}%"
        zeros = _LEADING_ZEROS.match(str(cell.number_format))
        if zeros and float(value).is_integer():
            return f"{int(value):0{len(zeros[1])}}"
        # Excel stores 15 digits; the 16th is noise of binary fractions.
        return str(value) if isinstance(value, int) else f"{value:.15g}"
    if isinstance(value, dt.datetime):
        whole_day = value.time() == dt.time()
        return value.date().isoformat() if whole_day else value.isoformat(" ", "minutes")
    if isinstance(value, dt.time):
        return value.isoformat("minutes")
    return str(value)
