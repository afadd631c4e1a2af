"""Old and binary Office files. No library writes them, so some tests need real files."""

from __future__ import annotations

import datetime as dt
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import read_object
from tests.container_files import a_zip
from tests.documents import extract, pieces, refusal

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
XLS = OLE + "Workbook".encode("utf-16-le")


class Visibility(Enum):
    Visible = 1
    Hidden = 2


class Panic(BaseException):
    pass


Panic.__module__ = "pyo3_runtime"


@pytest.fixture
def calamine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the library that returns the sheets of this dictionary, or raises `error`."""
    sheets: dict[str, Any] = {}

    def load(_: object) -> SimpleNamespace:
        if error := sheets.pop("error", None):
            raise error
        return SimpleNamespace(
            sheets_metadata=[SimpleNamespace(name=name, visible=visible) for name, (visible, _) in sheets.items()],
            get_sheet_by_name=lambda name: SimpleNamespace(iter_rows=lambda: iter(sheets[name][1])),
        )

    module = ModuleType("python_calamine")
    vars(module).update(CalamineWorkbook=SimpleNamespace(from_filelike=load), SheetVisibleEnum=Visibility)
    monkeypatch.setitem(sys.modules, "python_calamine", module)
    return sheets


@pytest.mark.parametrize("data", [XLS, a_zip({"xl/workbook.bin": "x"})])
def test_the_visible_sheets_of_old_and_binary_workbooks_are_read_like_xlsx(
    data: bytes, calamine: dict[str, Any]
) -> None:
    calamine["Rates"] = (
        Visibility.Visible,
        [["", "", ""], ["City", "Rate", "From"], ["Oslo", 44.0, dt.date(2026, 3, 1)]],
    )
    calamine["Lists"] = (Visibility.Hidden, [["hidden"]])
    assert pieces(data, "oslo/people/per-diem.xls") == [
        ("heading", "Rates"),
        ("table", "City | Rate | From\nOslo | 44 | 2026-03-01"),
    ]
    assert extract(data, "oslo/people/per-diem.xls").title == "Per diem"


def test_a_panic_of_the_library_makes_the_workbook_malformed(calamine: dict[str, Any]) -> None:
    calamine["error"] = Panic("index out of range")
    assert refusal(XLS, "a.xls").reason is QuarantineReason.MALFORMED


def test_a_word_document_with_a_workbook_inside_is_no_workbook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # without LibreOffice
    error = refusal(XLS + "WordDocument".encode("utf-16-le"), "a.doc")
    assert error.reason is QuarantineReason.UNSUPPORTED_TYPE
    assert "old Word document" in error.detail


def test_an_encrypted_office_file_is_no_workbook() -> None:
    assert refusal(XLS + "EncryptedPackage".encode("utf-16-le"), "a.xls").reason is QuarantineReason.ENCRYPTED


@pytest.mark.corpus
def test_real_old_workbooks_and_outlook_messages_are_read(real_files: Path) -> None:
    docling = real_files / "mixed-docling"
    assert "Year | Freshwater Ducks" in extract((docling / "xls/sources/legacy_sample.xls").read_bytes(), "a.xls").text
    data = (docling / "email/sources/msg_with_attachment.msg").read_bytes()
    message, attachment = read_object(data, "a.msg").parts
    assert message.document.title == "Email with Attachment"
    assert 'From: "Alice Example" <alice@example.com>' in message.document.text
    assert (attachment.name, "dummy content" in attachment.document.text) == ("test.txt", True)


@pytest.mark.corpus
def test_broken_old_files_raise_nothing_but_extraction_errors(real_files: Path) -> None:
    found = [path for path in (real_files / "office-poi-broken").rglob("*") if path.suffix in (".xls", ".xlsb", ".msg")]
    assert found
    for path in found:
        try:
            read_object(path.read_bytes(), path.name)
        except ExtractionError:
            continue
