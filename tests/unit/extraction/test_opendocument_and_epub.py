"""OpenDocument files and EPUB books, and the limits of their containers."""

from __future__ import annotations

import pytest

from rag_assets.extraction.errors import QuarantineReason
from tests.container_files import a_zip, an_epub, an_opendocument
from tests.documents import extract, pieces, refusal

TEXT = """
<text:tracked-changes><text:p>deleted</text:p></text:tracked-changes>
<text:p text:style-name="P1">Travel</text:p>
<text:h text:outline-level="2">Rules</text:h>
<text:p>Book<text:s text:c="2"/>early<text:note><text:note-citation>1</text:note-citation><text:note-body>
<text:p>By train.</text:p></text:note-body></text:note><office:annotation><dc:creator xmlns:dc="urn:dc">Kim</dc:creator>
<text:p>Why?</text:p></office:annotation>.<text:line-break/>Always.</text:p>
<text:list text:style-name="L1"><text:list-item><text:p>one</text:p><text:list><text:list-item><text:p>deeper</text:p>
</text:list-item></text:list></text:list-item><text:list-item><text:p>two</text:p></text:list-item></text:list>
<table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>City</text:p></table:table-cell>
<table:table-cell><text:p>Rate</text:p></table:table-cell></table:table-row></table:table-header-rows>
<table:table-row><table:table-cell><text:p>Oslo</text:p></table:table-cell><table:table-cell><text:list><text:list-item>
<text:p>44</text:p></text:list-item><text:list-item><text:p>euros</text:p></text:list-item></text:list></table:table-cell>
</table:table-row></table:table>
"""
STYLES = """<style:style style:name="P1" style:parent-style-name="Title"/>
<text:list-style style:name="L1"><text:list-level-style-number/></text:list-style>"""


def test_a_text_has_title_headings_notes_comments_lists_and_tables_without_deletions() -> None:
    data = an_opendocument("text", TEXT, styles=STYLES)
    assert extract(data, "a.odt").title == "Travel"
    assert pieces(data, "a.odt") == [
        ("heading", "Travel"),
        ("heading", "Rules"),
        ("paragraph", "Book  early (By train.) (Comment: Why?).\nAlways."),
        ("list", "1. one\n  1. deeper\n2. two"),
        ("table", "City | Rate\nOslo | 44 euros"),
    ]


SHEETS = """
<table:table table:name="Rates"><table:table-row table:number-rows-repeated="2"><table:table-cell/></table:table-row>
<table:table-row><table:table-cell><text:p>City</text:p></table:table-cell><table:table-cell><text:p>Rate</text:p>
</table:table-cell></table:table-row>
<table:table-row table:number-rows-repeated="2"><table:table-cell><text:p>Oslo</text:p></table:table-cell>
<table:table-cell><office:annotation><text:p>new</text:p></office:annotation><text:p>44</text:p></table:table-cell>
</table:table-row>
<table:table-row table:number-rows-repeated="1048570"><table:table-cell table:number-columns-repeated="16384"/>
</table:table-row></table:table>
<table:table table:name="Secret" table:style-name="H"><table:table-row><table:table-cell><text:p>hidden</text:p>
</table:table-cell></table:table-row></table:table>
"""
HIDDEN = '<style:style style:name="H"><style:table-properties table:display="false"/></style:style>'


def test_a_spreadsheet_has_its_visible_sheets_with_repeated_rows_and_comments() -> None:
    assert pieces(an_opendocument("spreadsheet", SHEETS, styles=HIDDEN), "a.ods") == [
        ("heading", "Rates"),
        ("table", "City | Rate\nOslo | 44 (Comment: new)\nOslo | 44 (Comment: new)"),
    ]


ENDLESS_CELL = '<table:table-cell table:number-columns-repeated="999999999"/>'


@pytest.mark.parametrize(
    "row",
    [
        '<table:table-row table:number-rows-repeated="99999999999999999999">{cell}</table:table-row>',
        f"<table:table-row>{ENDLESS_CELL * 9}{{cell}}</table:table-row>",
    ],
)  # fmt: skip
def test_rows_and_cells_that_claim_to_be_repeated_endlessly_are_bounded(
    row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag_assets.extraction.formats.xlsx.MAX_CELLS", 10_000)
    cell = "<table:table-cell><text:p>x</text:p></table:table-cell>" * 2
    body = f'<table:table table:name="S">{row.format(cell=cell)}</table:table>'
    assert refusal(an_opendocument("spreadsheet", body), "a.ods").reason in (
        QuarantineReason.TOO_LARGE,
        QuarantineReason.EMPTY,
    )


SLIDES = """
<draw:page><draw:frame><draw:text-box><text:list><text:list-item><text:p>one</text:p></text:list-item></text:list>
</draw:text-box></draw:frame><draw:frame presentation:class="title">
<draw:text-box><text:p>Rules</text:p></draw:text-box>
</draw:frame><draw:frame presentation:class="footer"><draw:text-box><text:p>footer</text:p></draw:text-box></draw:frame>
<presentation:notes><draw:frame presentation:class="notes"><draw:text-box><text:p>Say hello.</text:p></draw:text-box>
</draw:frame></presentation:notes></draw:page><draw:page><draw:g><draw:custom-shape><text:p>Shape</text:p>
</draw:custom-shape></draw:g></draw:page>
"""


def test_a_presentation_is_read_slide_by_slide_with_titles_first_and_notes_last() -> None:
    document = extract(an_opendocument("presentation", SLIDES), "a.odp")
    assert [(block.page, document.text[block.start : block.end]) for block in document.blocks] == [
        (1, "Rules"),
        (1, "- one"),
        (1, "Say hello."),
        (2, "Shape"),
    ]


def test_an_opendocument_file_is_recognised_by_content_and_titled_by_its_metadata() -> None:
    meta = '<m xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Named</dc:title></m>'
    data = an_opendocument("text", "<text:p>words</text:p>", **{"meta.xml": meta})
    assert extract(data, "a.docx").title == "Named"


def test_an_opendocument_file_with_a_password_is_encrypted() -> None:
    manifest = {"META-INF/manifest.xml": "<manifest:encryption-data/>"}
    assert refusal(an_opendocument("text", "", **manifest), "a.odt").reason is QuarantineReason.ENCRYPTED


def page(words: str) -> str:
    return f'<html xmlns="http://www.w3.org/1999/xhtml"><body>{words}</body></html>'


def test_a_book_is_read_in_the_order_of_its_spine() -> None:
    pages = {
        "b.xhtml": page("<h2>Second</h2><p>more</p>"),
        "a.xhtml": page("<h2>First</h2>"),
        "x.xhtml": page("unused"),
    }
    data = an_epub(pages, spine=["a.xhtml", "b.xhtml", "a.xhtml"])
    assert extract(data, "a.epub").title == "Travel"
    assert pieces(data, "a.bin") == [("heading", "First"), ("heading", "Second"), ("paragraph", "more")]


def test_a_book_with_encrypted_pages_is_encrypted_and_one_with_encrypted_fonts_is_read() -> None:
    def encrypting(name: str) -> dict[str, str]:
        return {"META-INF/encryption.xml": f'<encryption><CipherReference URI="OEBPS/{name}"/></encryption>'}

    pages = {"a.xhtml": page("words")}
    assert refusal(an_epub(pages, **encrypting("a.xhtml")), "a.epub").reason is QuarantineReason.ENCRYPTED
    assert extract(an_epub(pages, **encrypting("font.otf")), "a.epub").text == "words"


BOMB = '<!DOCTYPE p [<!ENTITY a "words">]>'


@pytest.mark.parametrize(
    "data",
    [
        a_zip({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": BOMB + "<p>&a;</p>"}),
        a_zip({"mimetype": "application/epub+zip", "META-INF/container.xml": '<c><rootfile full-path="b.opf"/></c>',
               "b.opf": BOMB + "<p>&a;</p>"}),
        a_zip({"mimetype": "application/vnd.oasis.opendocument.text", "other.xml": "<p/>"}),
        a_zip({"mimetype": "application/epub+zip", "META-INF/container.xml": "<c/>"}),
        an_opendocument("text", "<text:section>" * 50_000 + "</text:section>" * 50_000),
        an_opendocument("text", "<text:p>words")[:-40],
    ],
)  # fmt: skip
def test_damaged_and_hostile_parts_are_malformed(data: bytes) -> None:
    assert refusal(data, "a.odt").reason is QuarantineReason.MALFORMED


@pytest.mark.parametrize("name", ["content.xml", "Pictures/a.png"])
def test_an_entry_that_inflates_beyond_the_limit_is_too_large(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.formats.ooxml.MAX_INFLATED_BYTES", 2**20)
    monkeypatch.setattr("rag_assets.extraction.formats.ooxml._RATIO_APPLIES_FROM", 2**20)
    data = a_zip({"mimetype": "application/vnd.oasis.opendocument.text", name: bytes(2**21)})
    assert len(data) < 2**14
    assert refusal(data, "a.odt").reason is QuarantineReason.TOO_LARGE
    # The declared size is not believed.
    lying = data.replace((2**21).to_bytes(4, "little"), (16).to_bytes(4, "little"))
    assert lying != data
    assert refusal(lying, "a.odt").reason is QuarantineReason.TOO_LARGE
