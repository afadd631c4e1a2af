"""Old and binary Excel workbooks (xls, xlsb), read like xlsx: the values that Excel saved, of visible sheets.

The library does not return number formats, so a percentage is shown as a fraction.
"""

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from rag_assets.extraction.document import DocumentBuilder, ExtractedDocument
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.legacy.ole import EXCEL, stream_of
from rag_assets.extraction.formats.ooxml import ZIP_SIGNATURE, measure, zip_names
from rag_assets.extraction.formats.xlsx import add_sheets, cell_text

XLS_MEDIA_TYPE: Final = "application/vnd.ms-excel"
XLSB_MEDIA_TYPE: Final = "application/vnd.ms-excel.sheet.binary.macroEnabled.12"


def looks_like_xls(data: bytes) -> bool:
    """Return whether the content is a binary Office container with a workbook."""
    return stream_of(data) == EXCEL


def looks_like_xlsb(data: bytes) -> bool:
    """Return whether the content is a zip with a binary workbook."""
    return data.startswith(ZIP_SIGNATURE) and "xl/workbook.bin" in zip_names(data)


def _extract(data: bytes, media_type: str) -> ExtractedDocument:
    """Parse a workbook; raise ExtractionError if it is damaged, encrypted, too large or unsafe to open."""
    if media_type == XLSB_MEDIA_TYPE:
        measure(data)
    document = DocumentBuilder(media_type)
    with _naming_its_errors():
        add_sheets(document, _visible_sheets(data))
    # The first heading is often "Sheet1"; the title then comes from the file's name.
    return replace(document.build(), title="")


@contextmanager
def _naming_its_errors() -> Generator[None]:
    """Turn the errors of the library into ExtractionError; a panic of it is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ not in ("python_calamine", "pyo3_runtime"):
            raise
        detail = "the workbook cannot be read; if it needs a password, remove it, else save it as xlsx"
        raise ExtractionError(QuarantineReason.MALFORMED, detail) from error


extract_xls = partial(_extract, media_type=XLS_MEDIA_TYPE)
extract_xlsb = partial(_extract, media_type=XLSB_MEDIA_TYPE)


@dataclass(frozen=True, slots=True)
class _Cell:
    """What `cell_text` wants to know of a cell besides its value."""

    number_format: str = ""


_CELL: Final = _Cell()


def _visible_sheets(data: bytes) -> Iterator[tuple[str, Iterator[list[str]]]]:
    import python_calamine

    workbook: Any = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
    for sheet in workbook.sheets_metadata:
        if sheet.visible == python_calamine.SheetVisibleEnum.Visible:
            yield sheet.name, _rows(workbook.get_sheet_by_name(sheet.name))


def _rows(sheet: Any) -> Iterator[list[str]]:
    return ([cell_text(value, _CELL) for value in row] for row in sheet.iter_rows())
