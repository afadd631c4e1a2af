"""PowerPoint and Excel extraction, and rules for every Office container: limits, dialects, macros."""

from __future__ import annotations

import datetime as dt
import io
import zipfile
from collections.abc import Callable
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from openpyxl.chart import BarChart, Reference
from openpyxl.comments import Comment
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.opc.package import Part
from pptx.opc.packuri import PackURI
from pptx.util import Inches

from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import read_object
from tests.documents import blocks_of, case, case_bytes, extract

Rewrite = Callable[[str, bytes], bytes]


def refusal(data: bytes, key: str) -> ExtractionError:
    with pytest.raises(ExtractionError) as caught:
        extract(data, key)
    return caught.value


def saved(file: Any) -> bytes:
    buffer = io.BytesIO()
    file.save(buffer)
    return buffer.getvalue()


def rewritten(data: bytes, rewrite: Rewrite) -> bytes:
    """Return the container with every entry passed through `rewrite(name, content)`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, rewrite(name, source.read(name)))
    return buffer.getvalue()


def a_docx() -> bytes:
    document = docx.Document()
    document.add_heading("Who", level=2)
    document.add_paragraph("words")
    return saved(document)


def a_pptx() -> bytes:
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = "Only slide"
    return saved(deck)


def an_xlsx(*rows: tuple[object, ...]) -> bytes:
    book = openpyxl.Workbook()
    for row in rows or (("a", "b"),):
        book.active.append(row)
    return saved(book)


# PowerPoint


def test_a_presentation_is_read_slide_by_slide_with_titles_lists_tables_and_notes() -> None:
    deck = pptx.Presentation()
    opening = deck.slides.add_slide(deck.slide_layouts[0])
    opening.shapes.title.text = "Parental leave"
    opening.placeholders[1].text = "For everyone"
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    # The title comes last in the file but must be read first.
    slide.shapes._spTree.append(slide.shapes.title._element)
    slide.shapes.title.text = "Who\vand when"
    body = slide.placeholders[1].text_frame
    body.text = "one"
    for words, level in (("two", 0), ("deeper", 1)):
        paragraph = body.add_paragraph()
        paragraph.text, paragraph.level = words, level
    table = slide.shapes.add_table(2, 2, 0, 0, Inches(2), Inches(1)).table
    for cell, words in zip((c for row in table.rows for c in row.cells), "ab1 ", strict=True):
        cell.text = words
    slide.notes_slide.notes_text_frame.text = "Speak slowly."
    document = extract(saved(deck), "a.pptx")
    assert document.title == "Parental leave"
    assert blocks_of(document) == [
        ("heading", "Parental leave"),
        ("paragraph", "For everyone"),
        ("heading", "Who and when"),
        ("list", "- one\n- two\n  - deeper"),
        ("table", "a | b\n1 |"),
        ("paragraph", "Speak slowly."),
    ]
    assert [(block.page, block.level) for block in document.blocks] == [(1, 1), (1, 0), (2, 2), (2, 0), (2, 0), (2, 0)]


def test_text_boxes_inside_groups_are_read_as_paragraphs_without_bullets() -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    inner = slide.shapes.add_group_shape().shapes.add_group_shape().shapes
    frame = inner.add_textbox(0, 0, 10, 10).text_frame
    frame.text = "first"
    frame.add_paragraph().text = "second"
    assert blocks_of(extract(saved(deck), "a.pptx")) == [("paragraph", "first"), ("paragraph", "second")]


def test_a_chart_is_read_as_its_title_and_data_table() -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    data = CategoryChartData()
    data.categories = ["north", "south"]
    data.add_series("2024", (1, 2))
    data.add_series("2025", (3, None))
    chart = slide.shapes.add_chart(XL_CHART_TYPE.BAR_CLUSTERED, 0, 0, 100, 100, data).chart
    chart.has_title = True
    chart.chart_title.text_frame.text = "Days by region"
    assert blocks_of(extract(saved(deck), "a.pptx")) == [
        ("paragraph", "Days by region"),
        ("table", "| 2024 | 2025\nnorth | 1 | 3\nsouth | 2 |"),
    ]


def test_page_numbers_footers_and_dates_of_slides_are_left_out() -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Title"
    for kind in ("sldNum", "ftr", "dt"):
        box = slide.shapes.add_textbox(0, 0, 1, 1)
        box.text_frame.text = f"{kind} words"
        properties = box._element.nvSpPr.nvPr
        properties.append(properties.makeelement(f"{{{properties.nsmap['p']}}}ph", {"type": kind}))
    assert extract(saved(deck), "a.pptx").text == "Title"


def test_comments_on_a_slide_are_read_after_it() -> None:
    p = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
    a = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
    old = f"<p:cmLst {p}><p:cm><p:text>Too long</p:text></p:cm></p:cmLst>"
    new = f"<cmLst {a}><cm><txBody><a:p><a:r><a:t>Why?</a:t></a:r></a:p></txBody></cm></cmLst>"
    for content, text in ((old, "Too long"), (new, "Why?")):
        deck = pptx.Presentation()
        slide = deck.slides.add_slide(deck.slide_layouts[5])
        slide.shapes.title.text = "Plan"
        part = Part(PackURI("/ppt/comments/comment1.xml"), "application/xml", slide.part.package, content.encode())
        slide.part.relate_to(part, "http://schemas.openxmlformats.org/officeDocument/2006/relationships/comments")
        assert blocks_of(extract(saved(deck), "a.pptx")) == [("heading", "Plan"), ("paragraph", f"Comment: {text}")]


# Excel


def test_a_workbook_is_read_sheet_by_sheet_and_empty_rows_separate_tables() -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Leave"
    sheet["B2"] = "Days of leave"
    for row, values in ((4, ("Who", "Days", "Paid")), (5, ("All", 30, None)), (6, ("Some", None, True))):
        for column, value in enumerate(values, start=3):
            sheet.cell(row, column, value)
    book.create_sheet("Empty")
    book.create_sheet("Other").append(["x", "y"])
    document = extract(saved(book), "london/people/leave_days.xlsx")
    assert document.title == "Leave days"
    assert blocks_of(document) == [
        ("heading", "Leave"),
        ("paragraph", "Days of leave"),
        ("table", "Who | Days | Paid\nAll | 30\nSome |  | TRUE"),
        ("heading", "Other"),
        ("table", "x | y"),
    ]
    assert [block.page for block in document.blocks] == [1, 1, 1, 3, 3]


def rows_of_a_sheet(*rows: tuple[object, ...]) -> list[tuple[str, str]]:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    return blocks_of(extract(saved(book), "a.xlsx"))[1:]


def test_an_empty_row_does_not_end_a_table_whose_columns_go_on() -> None:
    header = ("Pump", "Hours", "Where")
    first, second = ("P1", 20, "mill"), ("P2", 31, "bank")
    assert rows_of_a_sheet(header, first, (), second) == [
        ("table", "Pump | Hours | Where\nP1 | 20 | mill\nP2 | 31 | bank")
    ]


@pytest.mark.parametrize(
    "following",
    [
        pytest.param(("Valve", "Bars", "Where"), id="another header"),
        pytest.param(("P2", 31), id="fewer columns"),
        pytest.param(("note",), id="a note"),
    ],
)
def test_an_empty_row_ends_a_table_if_something_else_follows(following: tuple[object, ...]) -> None:
    found = rows_of_a_sheet(("Pump", "Hours", "Where"), ("P1", 20, "mill"), (), following)
    assert len(found) == 2
    assert found[0] == ("table", "Pump | Hours | Where\nP1 | 20 | mill")


def test_an_empty_row_separates_short_lists_without_numbers() -> None:
    assert len(rows_of_a_sheet(("Name", "Town"), ("Ola", "Oslo"), (), ("Mia", "Bergen"))) == 2


def test_dates_percentages_and_fractions_are_read_as_displayed() -> None:
    book = openpyxl.Workbook()
    moment = dt.datetime(2025, 4, 1, 9, 30)  # noqa: DTZ001, spreadsheets have no time zones
    book.active.append([dt.date(2025, 4, 1), moment, dt.time(8, 5), 0.1 + 0.2, 0.125, 7, "a\nb "])
    book.active["E1"].number_format = "0.0%"
    text = extract(saved(book), "a.xlsx").text
    assert text.endswith("2025-04-01 | 2025-04-01 09:30 | 08:05 | 0.3 | 12.5% | 7 | a b")


@pytest.mark.parametrize("state", ["hidden", "veryHidden"])
def test_hidden_sheets_are_read_and_marked(state: str) -> None:
    book = openpyxl.Workbook()
    book.active.append(["seen", "x"])
    book.create_sheet("Lists").append(["unseen", "x"])
    book["Lists"].sheet_state = state
    assert extract(saved(book), "a.xlsx").text == "Sheet\n\nseen | x\n\nLists (hidden)\n\nunseen | x"


def test_formulas_without_a_value_are_read_as_their_text_and_reported() -> None:
    data = case_bytes("prices.xlsx")
    text = extract(data, "prices.xlsx").text
    assert "Pipe | 100 | 19% | =B2*(1+C2) | 2026-03-01" in text
    assert "Cable | 1e-05 | 7.5% | =SUM(B2:B3)" in text
    (omission,) = read_object(data, "prices.xlsx").refused
    assert (omission.name, omission.reason) == ("formulas", QuarantineReason.INCOMPLETE)
    assert omission.detail == "2 formulas have no saved value; open the workbook in Excel and save it"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('<c r="B1"><f>A1&amp;"x"</f><v></v></c>', '1 | =A1&"x"'),
        ('<c r="B1"><f>A1</f></c>', "1 | =A1"),
        ('<c r="C1" s="0"><f t="shared" ref="C1:C2" si="0">A1+1</f><v/></c>', "1 |  | =A1+1"),
    ],
)
def test_every_spelling_of_a_formula_without_a_value_is_read(cell: str, text: str) -> None:
    data = sheet_of(f'<row r="1"><c r="A1"><v>1</v></c>{cell}</row>'.encode())
    assert extract(data, "a.xlsx").text == f"Sheet\n\n{text}"
    assert len(read_object(data, "a.xlsx").refused) == 1


@pytest.mark.parametrize(
    "cell", ['<c r="B1" t="str"><f>IF(A1,"","x")</f><v></v></c>', '<c r="B1"><f>A1</f><v>7</v></c>', '<c r="B1"/>']
)
def test_formulas_with_a_value_even_an_empty_text_are_not_reported(cell: str) -> None:
    data = sheet_of(f'<row r="1"><c r="A1"><v>1</v></c>{cell}</row>'.encode())
    assert "=" not in extract(data, "a.xlsx").text
    assert read_object(data, "a.xlsx").refused == ()


def test_a_formula_far_to_the_right_counts_towards_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.formats.xlsx._MAX_VISITED", 1000)
    data = sheet_of(b'<row r="1"><c r="A1"><v>1</v></c></row><!-- <c r="XFD1"><f>A1</f></c> -->')
    assert refusal(data, "a.xlsx").reason is QuarantineReason.TOO_LARGE


def test_leading_zeros_are_read_as_displayed() -> None:
    assert "Zip | 01067" in case("prices.xlsx").text
    book = openpyxl.Workbook()
    book.active.append([7, 7, 123456, 7.5, 7])
    for name, number_format in {"A1": "000", "B1": "0.00", "C1": "00000", "D1": "000", "E1": "0000;-0000"}.items():
        book.active[name].number_format = number_format
    assert extract(saved(book), "a.xlsx").text.endswith("007 | 7 | 123456 | 7.5 | 0007")


def test_comments_on_cells_are_read() -> None:
    assert "Comment on B2: Agreed with the supplier until December" in case("prices.xlsx").text
    book = openpyxl.Workbook()
    book.active.append(["a", "b"])
    book.active["B1"].comment = Comment("Ask\nLegal", "Ola")
    assert blocks_of(extract(saved(book), "a.xlsx"))[-1] == ("paragraph", "Comment on B1: Ask Legal")


def with_parts(data: bytes, owner: str, parts: dict[str, str]) -> bytes:
    """Return a container with parts, to which `owner` refers by relationships of these kinds."""
    folder, _, name = owner.rpartition("/")
    links = "".join(
        f'<Relationship Id="rId9{n}" Type="http://x/{kind}" Target="/xl/{kind}.xml"/>' for n, kind in enumerate(parts)
    )
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(f"{folder}/_rels/{name}.rels", f"<Relationships>{links}</Relationships>")
        for kind, content in parts.items():
            archive.writestr(f"xl/{kind}.xml", content)
    return buffer.getvalue()


def test_a_thread_of_comments_replaces_the_note_for_older_programs() -> None:
    thread = '<T><threadedComment ref="A1"><text>Why?</text></threadedComment></T>'
    old = '<c><comment ref="A1"><text><t>[Threaded comment] Why?</t></text></comment></c>'
    data = with_parts(an_xlsx(), "xl/worksheets/sheet1.xml", {"comments": old, "threadedComment": thread})
    assert blocks_of(extract(data, "a.xlsx"))[2:] == [("paragraph", "Comment on A1: Why?")]


def test_text_boxes_of_a_sheet_are_read_and_a_broken_part_is_left_out() -> None:
    a = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
    box = f"<d {a}><sp><txBody><a:p><a:r><a:t>Prices without freight</a:t></a:r></a:p></txBody></sp></d>"
    data = with_parts(an_xlsx(), "xl/worksheets/sheet1.xml", {"drawing": box, "comments": "<broken"})
    assert blocks_of(extract(data, "a.xlsx"))[2:] == [("paragraph", "Prices without freight")]


def test_titles_of_charts_are_read_on_sheets_and_on_sheets_of_their_own() -> None:
    book = openpyxl.Workbook()
    book.active.append(["a", 1])
    for add, title in ((book.active.add_chart, "Sick days"), (book.create_chartsheet("Graph").add_chart, "Rent")):
        chart = BarChart()
        chart.title = title
        chart.add_data(Reference(book.active, min_col=2, min_row=1, max_row=1))
        add(chart)
    found = blocks_of(extract(saved(book), "a.xlsx"))
    assert ("paragraph", "Sick days") in found
    assert found[found.index(("heading", "Graph")) + 1] == ("paragraph", "Rent")


def sheet_of(rows: bytes) -> bytes:
    """Return a workbook with one handwritten sheet."""
    sheet = (
        b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
        b'<dimension ref="A1:XFD1048576"/><sheetData>' + rows + b"</sheetData></worksheet>"
    )
    return rewritten(an_xlsx(), lambda name, content: sheet if name.endswith("sheet1.xml") else content)


def test_the_declared_dimensions_of_a_sheet_are_ignored() -> None:
    rows = b'<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>2</v></c></row>'
    assert extract(sheet_of(rows), "a.xlsx").text == "Sheet\n\n1\n\n2"


def test_a_sheet_with_more_rows_than_excel_allows_is_malformed() -> None:
    error = refusal(sheet_of(b'<row r="2000000000"><c r="A2000000000"><v>1</v></c></row>'), "a.xlsx")
    assert error.reason is QuarantineReason.MALFORMED
    assert "1,048,576" in error.detail


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [("MAX_CELLS", 3, "cells"), ("MAX_CHARACTERS", 3, "characters"), ("_MAX_VISITED", 3, "to the right")],
)
def test_a_workbook_over_the_limits_is_too_large(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, words: str
) -> None:
    monkeypatch.setattr(f"rag_assets.extraction.formats.xlsx.{limit}", value)
    error = refusal(an_xlsx(("a", "b"), ("c", "d")), "a.xlsx")
    assert error.reason is QuarantineReason.TOO_LARGE
    assert words in error.detail


# Every container


@pytest.mark.parametrize(
    ("data", "part"),
    [(a_docx(), "word/document.xml"), (a_pptx(), "ppt/presentation.xml"), (an_xlsx(), "xl/workbook.xml")],
)
def test_an_office_file_that_declares_entities_is_malformed(data: bytes, part: str) -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'

    def declare(name: str, content: bytes) -> bytes:
        start = content.find(b"?>") + 2 if content.startswith(b"<?xml") else 0
        return content[:start] + bomb + content[start:] if name == part else content

    error = refusal(rewritten(data, declare), "a")
    assert error.reason is QuarantineReason.MALFORMED
    assert "document type" in error.detail


@pytest.mark.parametrize("data", [a_docx(), a_pptx(), an_xlsx()])
def test_an_office_file_with_one_enormous_part_is_too_large(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("rag_assets.extraction.formats.ooxml.MAX_MARKUP_BYTES", 100)
    assert refusal(data, "a").reason is QuarantineReason.TOO_LARGE


@pytest.mark.parametrize(
    ("data", "ordinary", "variant"),
    [
        (
            a_docx(),
            b"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml",
            b"application/vnd.ms-word.document.macroEnabled.main+xml",
        ),
        (
            a_docx(),
            b"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml",
            b"application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
        ),
        (
            a_pptx(),
            b"application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml",
            b"application/vnd.openxmlformats-officedocument.presentationml.slideshow.main+xml",
        ),
        (
            an_xlsx(),
            b"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml",
            b"application/vnd.ms-excel.sheet.macroEnabled.main+xml",
        ),
    ],
)
def test_macro_enabled_files_templates_and_slide_shows_are_read_like_others(
    data: bytes, ordinary: bytes, variant: bytes
) -> None:
    changed = rewritten(data, lambda _, content: content.replace(ordinary, variant))
    assert changed != data
    assert extract(changed, "a").text == extract(data, "a").text


@pytest.mark.parametrize("data", [a_docx(), a_pptx(), an_xlsx(("a", 1))])
def test_the_strict_dialect_is_read_like_the_transitional_one(data: bytes) -> None:
    families = ("wordprocessingml", "presentationml", "spreadsheetml", "drawingml", "officeDocument")

    def strict(_: str, content: bytes) -> bytes:
        for family in families:
            ordinary = f"http://schemas.openxmlformats.org/{family}/2006/".encode()
            content = content.replace(ordinary, f"http://purl.oclc.org/ooxml/{family}/".encode())
        return content.replace(b"extended-properties", b"extendedProperties")

    assert extract(rewritten(data, strict), "a").text == extract(data, "a").text
