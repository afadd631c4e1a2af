"""Delimited text and rich text: structure is kept, and odd input loses no words and takes no excessive time."""

from __future__ import annotations

import csv
import io
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rag_assets.extraction.document import BlockKind, ExtractedDocument
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from tests.documents import extract


def pieces(document: ExtractedDocument) -> list[tuple[str, str]]:
    return [(str(block.kind), document.text[block.start : block.end]) for block in document.blocks]


# Delimited text

CELLS = st.text(st.characters(categories=["L", "N"], min_codepoint=33), min_size=1, max_size=8).map(
    lambda words: unicodedata.normalize("NFC", words)
)


@given(
    st.integers(2, 4).flatmap(
        lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=2, max_size=8)
    ),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_table_survives_a_csv_round_trip(
    rows: list[list[str]], delimiter: str, quoting: int, encoding: str
) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, quoting=quoting).writerows(rows)
    document = extract(buffer.getvalue().encode(encoding), "a.csv")
    assert pieces(document) == [("table", "\n".join(" | ".join(row) for row in rows))]
    assert document.media_type == "text/csv"


@pytest.mark.parametrize(
    ("source", "table"),
    [
        ('name;"days, paid"\nAnna;"1,5"\nBo;"2,5"', "name | days, paid\nAnna | 1,5\nBo | 2,5"),
        ("sep=|\na,1|b\nc,2|d", "a,1 | b\nc,2 | d"),
        ('a,"two\nlines",c\n1,2,3', "a | two lines | c\n1 | 2 | 3"),
        ("a,b\n\n,\n1,2", "a | b\n1 | 2"),
        ("a,b\n1,2,3\n4", "a | b\n1 | 2 | 3\n4"),
        ("City\nParis\nOslo", "City\nParis\nOslo"),
    ],
)
def test_csv_variants_that_occur_in_practice_are_read(source: str, table: str) -> None:
    assert pieces(extract(source.encode(), "a.csv")) == [("table", table)]


def test_an_unclosed_quote_swallows_no_rows() -> None:
    source = 'size,name\n5",screen\n' + "6,words of a long table\n" * 10_000
    text = extract(source.encode(), "a.csv").text
    assert text.count("6 | words of a long table") == 10_000


def test_prose_with_commas_in_a_txt_file_is_not_a_table() -> None:
    assert extract(b"One, two.\nThree, four.", "a.txt").media_type == "text/plain"


def test_a_line_of_five_megabytes_is_read() -> None:
    assert extract(b"word " * 1_000_000, "a.csv").text.count("word") == 1_000_000


# Rich text


def rtf(body: str, head: str = "") -> bytes:
    return ("{\\rtf1\\ansi\\ansicpg1252\\deff0" + head + body + "}").encode("latin-1")


def test_rich_text_keeps_headings_lists_and_tables() -> None:
    head = (
        "{\\fonttbl{\\f0\\fswiss Arial;}}{\\colortbl;\\red0\\green0\\blue0;}"
        "{\\stylesheet{\\s0 Normal;}{\\s1\\sbasedon0 heading 1;}{\\*\\cs2 Other;}}"
        "{\\info{\\title Leave policy}{\\author Alice}}"
    )
    body = (
        "{\\header Confidential\\par}\\pard\\plain\\s1 Who\\par\n"
        "\\pard\\plain Everyone, \\b really\\b0 .\\line Second line.\\par\n"
        "\\pard{\\listtext\\'b7\\tab}\\ls1 one\\par{\\listtext\\'b7\\tab}\\ls1\\ilvl1 two\\par\n"
        "\\trowd\\cellx1\\cellx2\\pard\\intbl Who\\cell Days\\cell\\row\n"
        "\\trowd\\cellx1\\cellx2\\pard\\intbl All\\par more\\cell 30\\cell\\row\n"
        "\\pard\\outlinelevel2 Details\\par\\pard\\plain last"
    )
    document = extract(rtf(body, head), "a.rtf")
    assert document.title == "Leave policy"
    assert document.media_type == "application/rtf"
    assert pieces(document) == [
        ("heading", "Who"),
        ("paragraph", "Everyone, really.\nSecond line."),
        ("list", "- one\n  - two"),
        ("table", "Who | Days\nAll more | 30"),
        ("heading", "Details"),
        ("paragraph", "last"),
    ]
    assert [block.level for block in document.blocks if block.kind is BlockKind.HEADING] == [1, 3]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("Gr\\'f6\\'dfe", "Größe"),
        ("\\u27010\\'3f\\u35201?", "概要"),
        ("\\uc2\\u-10179 ??\\u-8704 ?? x", "\U0001f600 x"),
        ("{\\f1 \\'8aT\\'97v}", "概要"),
        ("{\\f2 \\'cf\\'f0}\\'e4", "Прä"),
        ("a\\~b\\emdash c\\{d\\}\\-e", "a\u00a0b\u2014c{d}e"),
        ("a{\\v hidden}b{\\*\\unknown x}c{\\pict 00ff}d", "abcd"),
        ("a\\bin3 {{{b", "ab"),
        ('{\\field{\\*\\fldinst HYPERLINK "https://example.com"}{\\fldrslt here}}', "here"),
        ("{\\upr{x}{\\*\\ud{y}}}", "xy"),
        ("open { braces { and no end", "open  braces  and no end"),
    ],
)
def test_rich_text_is_decoded_by_its_fonts_and_escapes(body: str, text: str) -> None:
    fonts = "{\\fonttbl{\\f0 Arial;}{\\f1\\fnil\\fcharset128 MS Gothic;}{\\f2\\fcharset204 Arial;}}"
    assert extract(rtf(body, fonts), "a.txt").text == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("Two years.{\\footnote\\pard{\\super\\chftn}Except\\par {\\b batteries}.} Paid.\\par next",
         "Two years. Paid.\nFootnote: Except batteries.\n\nnext"),
        ("Body{\\footnote\\ftnalt At the end.}", "Body\nFootnote: At the end."),
        ("Body{\\*\\annotation{\\*\\annref 1}Ask Legal.}", "Body\nComment: Ask Legal."),
        ("\\outlinelevel0 Warranty{\\footnote Note}\\par", "Warranty\n\nFootnote: Note"),
        ("\\trowd\\pard\\intbl Days{\\footnote Paid}\\cell 30\\cell\\row", "Days Footnote: Paid | 30"),
        ("a{\\pict\\par{\\footnote not this}}b{\\footnote Note}", "ab\nFootnote: Note"),
    ],
)  # fmt: skip
def test_notes_of_rich_text_follow_their_paragraph(body: str, text: str) -> None:
    assert extract(rtf(body), "a.rtf").text == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{\\b Bold \\*\\unknown 5 and more} after", "Bold 5 and more after"),
        ("one \\*\\bkmkstart two\\par three", "one two\n\nthree"),
        ("a{\n\\*\n\\unknown x}b", "ab"),
    ],
)
def test_a_destination_in_the_middle_of_a_group_does_not_remove_the_text_after_it(body: str, text: str) -> None:
    assert extract(rtf(body), "a.rtf").text == text


@given(
    st.lists(
        st.sampled_from(
            ["{", "}", "\\par ", "\\cell", "\\row", "\\trowd", "\\intbl", "\\pard", "\\u9731?", "\\uc3", "\\'e4", "\\*",
             "\\footnote", "\\unknown",
             "\\f1", "\\fonttbl", "\\stylesheet", "\\s1", "\\info", "\\title", "\\bin5", "\\ls1", "\\v", "\\ud", "\\",
             "\\u-10179", "words ", "heading 1;", "\\fcharset128", "\\cpg99999", "\\ansicpg0"]
        )
        | st.text(max_size=5),
        max_size=40,
    ).map("".join)
)  # fmt: skip
@example("\\u-10179 ")
@example("}" * 5 + "words")
def test_any_rich_text_is_read_or_refused_as_empty(body: str) -> None:
    data = b"{\\rtf1 " + body.encode("utf-8", errors="replace")
    try:
        document = extract(data, "a.rtf")
    except ExtractionError as error:
        assert error.reason is QuarantineReason.EMPTY  # noqa: PT017, an empty document is one of two valid outcomes
        return
    assert unicodedata.is_normalized("NFC", document.text)
    assert not [c for c in document.text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert document.blocks[-1].end == len(document.text)


def test_a_million_open_braces_are_read() -> None:
    assert extract(b"{\\rtf1 " + b"{" * 1_000_000 + b" deep", "a.rtf").text == "deep"
