"""Excel workbooks (xlsx, xlsm and their templates): a page and a heading for each sheet, row by row.

Values are those that Excel stored when it saved; formulas are not computed. What a sheet declares about its own size
is not believed. Hidden sheets are left out: they hold lists for the program, not text for a reader.
"""

import datetime as dt
import io
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument, one_line, table_row
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.ooxml import holds_part, open_package

XLSX_MEDIA_TYPE: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"

MAX_ROWS: Final = 1_048_576
"""Of one sheet, as in Excel. A row may claim any number, and the library walks through all before it."""
MAX_CELLS: Final = 5_000_000
MAX_CHARACTERS: Final = 64 * 1024 * 1024
# Cells that are looked at, empty ones too: one filled cell far to the right makes a long row.
_MAX_VISITED: Final = 40_000_000
_ADVICE: Final = "keep the data in a database, or split the workbook"


def looks_like_xlsx(data: bytes) -> bool:
    """Whether the content is a zip that holds an Excel workbook of XML parts."""
    return holds_part(data, "xl/workbook")


def extract_xlsx(data: bytes) -> ExtractedDocument:
    """Raises ExtractionError: too_large beyond the limits, or where the container is not safe to open."""
    package = open_package(data)

    import openpyxl

    document = DocumentBuilder(XLSX_MEDIA_TYPE)
    limits = _Limits()
    with warnings.catch_warnings():
        # It warns of every extension that it does not keep; nothing is written back here.
        warnings.simplefilter("ignore")
        workbook = openpyxl.load_workbook(io.BytesIO(package), read_only=True, data_only=True, keep_links=False)
        try:
            title = one_line(str(workbook.properties.title or ""))
            for page, sheet in enumerate(workbook.worksheets, start=1):
                if sheet.sheet_state == "visible":
                    _SheetReader(document, page, limits).read(sheet)
        finally:
            workbook.close()
    # Not the first heading, which is more often "Sheet1" than a title; the name of the file says more.
    return replace(document.build(), title=title)


@dataclass(slots=True)
class _Limits:
    """What has been read of a workbook so far, all sheets together."""

    cells: int = 0
    characters: int = 0
    visited: int = 0

    def add(self, words: list[str]) -> None:
        self.cells += sum(map(bool, words))
        self.characters += sum(map(len, words))
        if self.cells > MAX_CELLS:
            raise ExtractionError(QuarantineReason.TOO_LARGE, f"more than {MAX_CELLS:,} filled cells; {_ADVICE}")
        if self.characters > MAX_CHARACTERS:
            detail = f"its cells hold more than {MAX_CHARACTERS // 2**20} million characters; {_ADVICE}"
            raise ExtractionError(QuarantineReason.TOO_LARGE, detail)

    def visit(self, cells: int) -> None:
        self.visited += cells
        if self.visited > _MAX_VISITED:
            raise ExtractionError(QuarantineReason.TOO_LARGE, f"its rows reach too far to the right; {_ADVICE}")


@dataclass(slots=True)
class _SheetReader:
    """Turns the rows of one sheet into blocks: rows without an empty one between them belong together."""

    document: DocumentBuilder
    page: int
    limits: _Limits
    _rows: list[list[str]] = field(default_factory=list[list[str]])

    def read(self, sheet: Any) -> None:
        sheet.reset_dimensions()
        heading = False
        for number, row in enumerate(sheet.iter_rows(), start=1):
            if number > MAX_ROWS:
                detail = f"a sheet claims more than {MAX_ROWS:,} rows, which Excel does not allow; save it anew"
                raise ExtractionError(QuarantineReason.MALFORMED, detail)
            self.limits.visit(len(row))
            words = [cell_text(cell.value, cell) for cell in row]
            while words and not words[-1]:
                words.pop()
            if not words:
                self._end_region()
                continue
            if not heading:
                # Here, because a sheet without words is not worth a heading.
                self.document.add(BlockKind.HEADING, one_line(sheet.title), level=1, page=self.page)
                heading = True
            self.limits.add(words)
            self._rows.append(words)
        self._end_region()

    def _end_region(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        if all(sum(map(bool, row)) == 1 for row in rows):
            # Words down one column are a note or a title.
            note = "\n".join(table_row(filter(None, row)) for row in rows)
            self.document.add(BlockKind.PARAGRAPH, note, page=self.page)
            return
        first = min(next(index for index, word in enumerate(row) if word) for row in rows)
        self.document.add(BlockKind.TABLE, "\n".join(table_row(row[first:]) for row in rows), page=self.page)


def cell_text(value: object, cell: Any) -> str:
    """A value as a reader sees it in the sheet, as far as one can tell without the layout of numbers."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float | int):
        if "%" in str(cell.number_format):
            return f"{value * 100:.10g}%"
        # Fifteen digits are what a sheet holds; the sixteenth is the noise of binary fractions.
        return str(value) if isinstance(value, int) else f"{value:.15g}"
    if isinstance(value, dt.datetime):
        whole_day = value.time() == dt.time()
        return value.date().isoformat() if whole_day else value.isoformat(" ", "minutes")
    if isinstance(value, dt.time):
        return value.isoformat("minutes")
    return str(value)
