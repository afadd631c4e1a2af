"""What a PDF shows beside lines of text: form fields, notes, attached files, columns, and pages that have no text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats import pdf_annotations
from rag_assets.extraction.registry import RefusedPart, read_object
from tests.documents import blocks_of, case, case_bytes, extract

HELVETICA = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
# A font whose glyphs have no names, so that their characters are unknown.
UNMAPPED = "<< /Type /Font /Subtype /Type0 /BaseFont /AAAAAA+X /Encoding /Identity-H /DescendantFonts [6 0 R] >>"
DESCENDANT = (
    "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /AAAAAA+X /FontDescriptor << /Type /FontDescriptor /Flags 4 >> "
    "/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> >>"
)
PICTURE = "BI /W 1 /H 1 /BPC 8 /CS /G ID x EI"
Placed = tuple[float, float, str]


def a_pdf(*pages: str, annotations: Sequence[str] = (), fields: bool = False, names: str = "") -> bytes:
    """Return a PDF of pages with this content; all of them have the annotations, which are also fields of a form."""
    first = 8
    annotated = range(first + 2 * len(pages), first + 2 * len(pages) + len(annotations))
    references = " ".join(f"{number} 0 R" for number in annotated)
    form = f"/AcroForm << /Fields [{references}] /DA (/F1 9 Tf) >>" if fields else ""
    kids = " ".join(f"{first + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {form} {names} >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        HELVETICA,
        UNMAPPED,
        "<< /Length 24 >>\nstream\nPumps are greased yearly\nendstream",
        DESCENDANT,
        "<< /Type /Filespec /F (pumps.txt) /UF (pumps.txt) /EF << /F 5 0 R >> >>",
    ]
    for number, content in enumerate(pages):
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R /F2 4 0 R >> >> "
            f"/Contents {first + 1 + 2 * number} 0 R /Annots [{references}] >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    out = b"%PDF-1.7\n"
    offsets: list[int] = []
    for number, content in enumerate([*objects, *annotations], start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(offsets) + 1
    end = f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + f"xref\n0 {size}\n0000000000 65535 f \n{table}{end}".encode()


def text_at(*placed: Placed) -> str:
    return "".join(f"BT /F1 10 Tf 1 0 0 1 {x} {y} Tm ({text}) Tj ET\n" for x, y, text in placed)


def in_unmapped_font(text: str) -> str:
    """Draw text as a font's glyphs, which are numbered from the space on."""
    glyphs = "".join(f"{ord(character) - 29:04x}" for character in text)
    return f"BT /F2 10 Tf 1 0 0 1 60 500 Tm <{glyphs}> Tj ET\n"


def field(kind: str, value: str, left: int, bottom: int, more: str = "") -> str:
    rectangle = f"/Rect [{left} {bottom} {left + 80} {bottom + 12}]"
    return f"<< /Type /Annot /Subtype /Widget /FT /{kind} /T (f{left}{bottom}) {rectangle} /V {value} /F 4 {more} >>"


def note(kind: str, contents: str, more: str = "") -> str:
    return f"<< /Type /Annot /Subtype /{kind} /Contents ({contents}) /Rect [60 300 200 320] /F 4 {more} >>"


def omissions(data: bytes) -> tuple[RefusedPart, ...]:
    return read_object(data, "a.pdf").refused


def test_the_values_and_the_note_of_a_filled_form_are_read() -> None:
    text = case("form.pdf").text
    assert "Name: Karla Muster" in text
    assert "Destination: Reykjavik in October" in text
    assert "Rejected by finance on 4 May" in text


def test_a_value_follows_the_label_beside_it_or_above_it() -> None:
    page = text_at((60, 700, "Name:"), (300, 700, "Date:"), (60, 650, "Reason"), (60, 550, "End."))
    values = [field("Tx", "(Karla)", 100, 698), field("Tx", "(4 May)", 340, 698), field("Tx", "(Fair)", 60, 634)]
    text = extract(a_pdf(page, annotations=values, fields=True), "a.pdf").text
    assert " ".join(text.split()) == "Name: Karla Date: 4 May Reason Fair End."


def test_a_value_far_from_any_label_is_read_last() -> None:
    page = text_at((60, 700, "Name:"), (60, 680, "Date:"))
    text = extract(a_pdf(page, annotations=[field("Tx", "(Karla)", 100, 100)], fields=True), "a.pdf").text
    assert text.split() == ["Name:", "Date:", "Karla"]


def test_values_of_a_page_with_too_many_fields_follow_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.formats.pdf_layout._MAX_COMPARISONS", 1)
    page = text_at((60, 700, "Name:"), (60, 680, "Date:"))
    text = extract(a_pdf(page, annotations=[field("Tx", "(Karla)", 100, 698)], fields=True), "a.pdf").text
    assert text.split() == ["Name:", "Date:", "Karla"]


def test_chosen_options_are_read_and_passwords_and_hidden_fields_are_not() -> None:
    page = text_at((60, 700, "Meal:"), (60, 650, "Paid"), (60, 600, "Late"), (60, 550, "Code:"), (60, 500, "Id:"))
    fields = [
        field("Ch", "(fish)", 100, 698, "/Ff 131072 /Opt [(meat) (fish)]"),
        field("Btn", "/Yes", 100, 648, "/AS /Yes /AP << /N << /Yes 5 0 R /Off 5 0 R >> >>"),
        field("Btn", "/Off", 100, 598, "/AS /Off /AP << /N << /Yes 5 0 R /Off 5 0 R >> >>"),
        field("Tx", "(secret)", 100, 548, "/Ff 8192"),
        field("Tx", "(unseen)", 100, 498).replace("/F 4", "/F 2"),
    ]
    text = extract(a_pdf(page, annotations=fields, fields=True), "a.pdf").text
    assert " ".join(text.split()) == "Meal: fish Paid [x] Late Code: Id:"


def test_text_written_on_a_page_and_comments_are_read() -> None:
    notes = [note("FreeText", "Rejected"), note("Highlight", "Ask Legal"), note("Link", "x"), note("Popup", "y")]
    document = extract(a_pdf(text_at((60, 700, "Plan.")), annotations=notes), "a.pdf")
    assert [text for _, text in blocks_of(document)] == ["Plan.", "Rejected", "Comment: Ask Legal"]


@pytest.mark.parametrize(
    "data",
    [
        a_pdf(
            text_at((60, 700, "See the file.")),
            names="/Names << /EmbeddedFiles << /Names [(pumps.txt) 7 0 R] >> >>",
        ),
        a_pdf(text_at((60, 700, "See the file.")), annotations=[note("FileAttachment", "x", "/FS 7 0 R")]),
    ],
    ids=["document", "page"],
)
def test_files_attached_to_a_pdf_are_documents_of_their_own(data: bytes) -> None:
    body, attached = read_object(data, "a.pdf").parts
    assert body.document.text == "See the file."
    assert (attached.name, attached.document.text) == ("pumps.txt", "Pumps are greased yearly")


def test_a_pdf_with_too_many_attached_files_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_annotations, "MAX_ATTACHMENTS", 1)
    files = [note("FileAttachment", "x", "/FS 7 0 R")] * 2
    with pytest.raises(ExtractionError) as caught:
        read_object(a_pdf(text_at((60, 700, "x")), annotations=files), "a.pdf")
    assert caught.value.reason is QuarantineReason.TOO_LARGE


def test_columns_that_were_drawn_row_by_row_are_read_one_after_the_other() -> None:
    words = " ".join(case("columns_by_row.pdf").text.split())
    left = " ".join(f"Left column line {number} about leave." for number in range(8))
    right = " ".join(f"Right column line {number} about pay." for number in range(8))
    assert words == f"{left} {right}"


def rows_at(columns: Sequence[Sequence[str]], lefts: Sequence[float], step: float = 12) -> str:
    return text_at(
        *(
            (left, 700 - step * row, text)
            for row, texts in enumerate(zip(*columns, strict=True))
            for left, text in zip(lefts, texts, strict=True)
            if text
        )
    )


def test_three_columns_between_full_lines_are_read_one_after_the_other() -> None:
    columns = [[f"{name} words of line {n} here" for n in "abcde"] for name in ("one", "two", "six")]
    page = text_at((60, 760, "A title over all of the columns of this page, which is long."))
    page += rows_at(columns, (60, 240, 420)) + text_at((60, 580, "The end of the page."))
    words = " ".join(extract(a_pdf(page), "a.pdf").text.split())
    body = " ".join(" ".join(column) for column in columns)
    assert words == f"A title over all of the columns of this page, which is long. {body} The end of the page."


@pytest.mark.parametrize(
    ("columns", "step"),
    [
        ([["Pump", "Valve", "Pipe", "Seal", "Hose"], ["in the mill", "at the bank", "outside", "spare", "old"]], 12),
        ([[f"Rent of building {n} in town" for n in "abcde"], ["12 300 400 eur"] * 5], 14),
        (
            [["Who pays for the train ticket?", "May I fly?"] * 3, ["The cost centre does.", "Above nine hours."] * 3],
            12,
        ),
    ],
    ids=["short cells", "numbers", "cells of different length"],
)
def test_the_rows_of_a_table_stay_together(columns: list[list[str]], step: float) -> None:
    words = " ".join(extract(a_pdf(rows_at(columns, (60, 320), step)), "a.pdf").text.split())
    assert words == " ".join(" ".join(row) for row in zip(*columns, strict=True))


def test_pages_without_text_are_reported_and_the_others_are_read() -> None:
    data = a_pdf(text_at((60, 700, "Cover")), PICTURE, "", PICTURE, PICTURE)
    assert extract(data, "a.pdf").text == "Cover"
    (omission,) = omissions(data)
    assert (omission.name, omission.reason) == ("pages without text", QuarantineReason.INCOMPLETE)
    assert omission.detail == "no text on pages 2, 4-5; run text recognition (OCR) on the file"


def test_the_scanned_pages_of_a_contract_are_reported() -> None:
    data = case_bytes("mixed_scan.pdf")
    assert "Signed contract, cover sheet" in extract(data, "a.pdf").text
    assert "pages 2-4" in omissions(data)[0].detail


def test_text_in_a_font_without_a_character_map_is_reported_instead_of_read() -> None:
    data = a_pdf(text_at((60, 700, "Cover")), in_unmapped_font("The contract ends with the parental leave of May"))
    assert extract(data, "a.pdf").text == "Cover"
    (omission,) = omissions(data)
    assert omission.name == "unreadable fonts"
    assert "on page 2;" in omission.detail


def test_a_pdf_of_unreadable_fonts_alone_is_empty_and_the_error_names_the_cause() -> None:
    with pytest.raises(ExtractionError) as caught:
        read_object(a_pdf(in_unmapped_font("The contract ends with the parental leave of May")), "a.pdf")
    assert caught.value.reason is QuarantineReason.EMPTY
    assert "character map" in caught.value.detail


def test_text_in_a_font_without_a_character_map_is_read_if_it_is_words() -> None:
    glyphs = "".join(f"{ord(character):04x}" for character in "The contract ends with the leave of May")
    data = a_pdf(f"BT /F2 10 Tf 1 0 0 1 60 500 Tm <{glyphs}> Tj ET\n")
    assert extract(data, "a.pdf").text == "The contract ends with the leave of May"
    assert omissions(data) == ()
