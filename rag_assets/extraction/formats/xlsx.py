"""Excel workbooks (xlsx, xlsm and their templates): a page with a heading per sheet, row by row.

Values are those that Excel saved; formulas are not computed. The declared size of a sheet is ignored. Hidden sheets are
skipped: they have lists for formulas, not text for readers.
"""

import datetime as dt
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line, table_row
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.ooxml import safe_package

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
_ADVICE: Final = "keep the data in a database, or split the workbook"


def extract_xlsx(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its container is unsafe to open."""
    package = safe_package(data)

    import openpyxl

    document = DocumentBuilder(XLSX_MEDIA_TYPE)
    limits = _Limits()
    with warnings.catch_warnings():
        # It warns about extensions that saving would lose; nothing is saved here.
        warnings.simplefilter("ignore")
        workbook = openpyxl.load_workbook(io.BytesIO(package), read_only=True, data_only=True, keep_links=False)
        try:
            title = one_line(str(workbook.properties.title or ""))
            for page, sheet in enumerate(workbook.worksheets, start=1):
                if sheet.sheet_state == "visible":
                    _SheetReader(document, page, limits).read(sheet)
        finally:
            workbook.close()
    # The first heading is often "Sheet1"; the title then comes from the file's name.
    return replace(document.build(), title=title)


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


@dataclass(slots=True)
class _SheetReader:
    """Turns the rows of one sheet into blocks. An empty row ends a block unless the columns of its table go on."""

    document: DocumentBuilder
    page: int
    limits: _Limits
    _rows: list[list[str]] = field(default_factory=list[list[str]])
    _gap: bool = False
    """Whether an empty row came after the last one."""

    def read(self, sheet: Any) -> None:
        sheet.reset_dimensions()
        self.read_rows(sheet.title, ([cell_text(cell.value, cell) for cell in row] for row in sheet.iter_rows()))

    def read_rows(self, title: str, rows: Iterable[list[str]]) -> None:
        heading = False
        for number, words in enumerate(rows, start=1):
            if number > MAX_ROWS:
                detail = f"a sheet has more than {MAX_ROWS:,} rows, which Excel does not allow; save it again"
                raise ExtractionError(QuarantineReason.MALFORMED, detail)
            self.limits.visit(len(words))
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
    """Return a value roughly as Excel shows it; number formats other than percentages are ignored."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float | int):
        if "%" in str(cell.number_format):
            return f"{value * 100:.10g}%"
        # Excel stores 15 digits; the 16th is noise of binary fractions.
        return str(value) if isinstance(value, int) else f"{value:.15g}"
    if isinstance(value, dt.datetime):
        whole_day = value.time() == dt.time()
        return value.date().isoformat() if whole_day else value.isoformat(" ", "minutes")
    if isinstance(value, dt.time):
        return value.isoformat("minutes")
    return str(value)
