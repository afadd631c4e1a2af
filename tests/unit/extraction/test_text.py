"""Rules for every format: detection, decoding, refusals, and the guarantees of blocks."""

from __future__ import annotations

import io
import unicodedata
import zipfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rag_assets.extraction.document import BlockKind, ExtractedDocument
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import EXTRACTOR_VERSION, heading_text, read_object
from tests.documents import case, extract


def assert_blocks_hold_the_text(document: ExtractedDocument) -> None:
    text = document.text
    assert unicodedata.is_normalized("NFC", text)
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    covered = 0
    for block in document.blocks:
        assert covered <= block.start < block.end <= len(text)
        assert not text[covered : block.start].strip()
        piece = text[block.start : block.end]
        assert piece == piece.strip()
        assert (1 <= block.level <= 6) if block.kind is BlockKind.HEADING else block.level == 0
        covered = block.end
    assert not text[covered:].strip()


def pieces(document: ExtractedDocument) -> list[tuple[BlockKind, str]]:
    return [(block.kind, document.text[block.start : block.end]) for block in document.blocks]


def read_if_it_has_text(
    data: bytes,
    key: str,
    *accepted: QuarantineReason,
) -> ExtractedDocument | None:
    """Extract, or return None for a refusal with an `accepted` reason (default: empty or unsupported)."""
    try:
        return extract(data, key)
    except ExtractionError as error:
        if error.reason in (accepted or (QuarantineReason.EMPTY, QuarantineReason.UNSUPPORTED_TYPE)):
            return None
        raise


def refusal(data: bytes, key: str) -> ExtractionError:
    with pytest.raises(ExtractionError) as caught:
        extract(data, key)
    return caught.value


JAPANESE = """育児休業は、入社から一年を過ぎたすべての社員が取得できます。
申請は開始日の一か月前までに、人事部の窓口またはポータルサイトから行ってください。
期間は最長で二年間です。延長を希望する場合は、上長と相談のうえ、改めて申請が必要になります。
給与の扱いについては、別紙「休業中の給与」をご覧ください。"""

NAMES = [
    f"a{suffix}" for suffix in (".pdf", ".docx", ".html", ".md", ".txt", "", ".bin", ".csv", ".rtf", ".eml", ".xlsx")
]
MARKDOWN_LINES = st.sampled_from(
    [
        "",
        "   ",
        "# Title",
        "##",
        "Setext",
        "====",
        "---",
        "- item",
        "  - nested",
        "    1. deeper",
        "10) ten",
        "| a | b |",
        "|---|---|",
        "```python",
        "```",
        "~~~",
        "    indented",
        "> quoted",
        "> - quoted item",
        "[ref]: https://example.com",
        "<div>",
        "</div>",
        "<!-- open",
        "-->",
        "title: x",
        "日本語の文です。",
        "\tTab",
        "\u3000全角",
        "a\u0301\r",
        "\x00\x0b\u2028",
        "\ufeff",
        "plain words",
    ]
)
HTML_PIECES = st.sampled_from(
    [
        "<p>",
        "</p>",
        "<h1>",
        "<h2>",
        "</h2>",
        "<ul>",
        "<li>",
        "</ul>",
        "<ol>",
        "</ol>",
        "<table>",
        "<tr>",
        "<td>",
        "<th>",
        "<caption>",
        "</td>",
        "</table>",
        "<pre>",
        "</pre>",
        "<br>",
        "<div>",
        "</div>",
        "<article>",
        "<header>",
        "</header>",
        "<script>",
        "</script>",
        "<template>",
        "</template>",
        "<!--",
        "-->",
        "<title>",
        "</title>",
        "&nbsp;",
        "&#0;",
        "&#xD800;",
        "\n  ",
        "two words ",
        "日本語",
        "e\u0301",
    ]
)


@given(st.lists(MARKDOWN_LINES | st.text(max_size=20), max_size=30).map("\n".join))
@example("---\ntitle: x\n---\n")
@example("[a]: b\ntext\n\n[c]: d")
def test_blocks_of_any_markdown_cover_all_of_its_text(source: str) -> None:
    document = read_if_it_has_text(source.encode("utf-8", errors="replace"), "page.md")
    if document is not None:
        assert_blocks_hold_the_text(document)
        assert document.title


@given(st.lists(HTML_PIECES | st.text(max_size=10), max_size=40).map("".join))
@example("<table><tr><td><table><tr><td>x<h1>y</table></table>")
@example("<ul><li><pre>a\n b</pre></ul><li>x")
def test_blocks_of_any_html_cover_all_of_its_text(source: str) -> None:
    page = ("<!doctype html>" + source).encode("utf-8", errors="replace")
    document = read_if_it_has_text(page, "page.html")
    if document is not None:
        assert_blocks_hold_the_text(document)


@given(st.text(max_size=200), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_blocks_of_any_text_in_any_unicode_encoding_cover_all_of_it(source: str, encoding: str) -> None:
    document = read_if_it_has_text(source.encode(encoding, errors="replace"), "note.txt")
    if document is not None:
        assert_blocks_hold_the_text(document)


@given(st.binary(max_size=300), st.sampled_from(NAMES))
@example(b"%PDF-1.7", "a.pdf")
@example(b"PK\x03\x04", "a.docx")
@example(b"{\\rtf1\\", "a.rtf")
@example(b'"', "a.csv")
def test_any_bytes_are_read_or_raise_an_extraction_error(data: bytes, key: str) -> None:
    document = read_if_it_has_text(data, key, *QuarantineReason)
    if document is not None:
        assert_blocks_hold_the_text(document)


@pytest.mark.parametrize(
    ("data", "key", "media_type"),
    [
        (b"# Words", "a/b.md", "text/markdown"),
        (b"# Words", "a/b.MARKDOWN", "text/markdown"),
        (b"Words", "a/b.txt", "text/plain"),
        (b"Words", "a/NOTICE", "text/plain"),
        (b"<!DOCTYPE html><p>Words", "a/b.md", "text/html"),
        (b"<?xml version='1.0'?>\n<!-- x --><html><p>Words</p></html>", "a/b.xml", "text/html"),
        ("<html><p>Words".encode("utf-16"), "a/b", "text/html"),
        (b"<p>Words", "a/b.htm", "text/html"),
        (b"<p>Words", "a/b.md", "text/markdown"),
        (b"A PDF begins with %PDF-1.7", "a/b.md", "text/markdown"),
    ],
)
def test_the_format_is_detected_from_content_then_extension(data: bytes, key: str, media_type: str) -> None:
    assert extract(data, key).media_type == media_type


@pytest.mark.parametrize(
    ("data", "key", "words"),
    [
        (b"a,b\n1,2", "a.cfg", "a .cfg file"),
        (b"\x89PNG\r\n\x1a\n", "a.png", "a PNG image"),
        (b"\x89PNG\r\n\x1a\n", "a.txt", "a PNG image"),
        (bytes(range(32)) * 8, "a.txt", "a binary file"),
        (b"words", "a.pdf", "named .pdf"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 words", "a.doc", "old binary kind"),
    ],
)
def test_the_refusal_of_an_unsupported_type_names_it_and_the_supported_formats(
    data: bytes, key: str, words: str
) -> None:
    error = refusal(data, key)
    assert error.reason is QuarantineReason.UNSUPPORTED_TYPE
    assert words in error.detail
    assert "Markdown" in error.detail
    assert str(error) == f"unsupported_type: {error.detail}"


@pytest.mark.parametrize(
    ("entry", "words"), [("xl/other.xml", "an Excel file of another kind"), ("visio/document.xml", "a Visio drawing")]
)
def test_the_refusal_of_another_kind_of_zip_names_it(entry: str, words: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(entry, "x")
    error = refusal(buffer.getvalue(), "a.docx")
    assert error.reason is QuarantineReason.UNSUPPORTED_TYPE
    assert words in error.detail


@pytest.mark.parametrize("data", [b"", b" \n\t", b"---\ntitle: Only this\n---\n", b"***\n\n- \n", "—！？".encode()])
def test_a_document_without_letters_or_digits_is_empty(data: bytes) -> None:
    assert refusal(data, "a.md").reason is QuarantineReason.EMPTY


def test_a_password_protected_office_file_is_encrypted() -> None:
    data = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le")
    assert refusal(data, "a.docx").reason is QuarantineReason.ENCRYPTED


def test_text_over_the_limit_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.decoding.MAX_TEXT_BYTES", 8)
    for key in ("a.txt", "a.md", "a.html"):
        error = refusal(b"word word word", key)
        assert error.reason is QuarantineReason.TOO_LARGE
        assert "limit" in error.detail


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-8-sig", "Größe 概要"),
        ("utf-16", "Größe 概要"),
        ("utf-32", "Größe 概要"),
        ("cp1252", "Die Größe der Übung hängt von den Schülern ab, für die sie gemacht wurde. " * 5),
        ("shift_jis", JAPANESE),
        ("euc_jp", JAPANESE),
        ("euc_jp", "育児休業は、すべての社員が取得できます。"),
        ("iso2022_jp", "概要"),
        ("cp1252", "Größe"),
        ("cp1252", "Señor Muñoz llegó tarde – a las 5."),
        ("cp1252", "L’été à la plage, naïve façade"),
        ("cp1252", "Æblegrød på øen"),
        ("cp1250", "Pracownik może wziąć urlop"),
        ("cp1250", "Příliš žluťoučký kůň"),
        ("cp1250", "Gyűjtemény és árvíztűrő tükörfúrógép"),
        ("cp1254", "Tüm çalışanlar izin hakkına sahiptir"),
        ("cp1251", "Привет, мир"),
        ("cp1253", "Όλοι οι εργαζόμενοι δικαιούνται άδεια"),
    ],
)
def test_text_is_decoded_from_common_encodings(encoding: str, words: str) -> None:
    assert extract(words.encode(encoding), "a.txt").text == words.strip()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text", ["Leave is 30 days.", "Отпуск длится\n30 дней.", "休暇は30日です。\n翌年まで有効です。", "Größe: 3 € 😀"]
)
def test_utf16_without_a_byte_order_mark_is_recognised(text: str, encoding: str) -> None:
    assert extract(text.encode(encoding), "a.txt").text == text


def test_a_stray_zero_byte_does_not_make_text_utf16() -> None:
    assert extract(b"Leave is\0 thirty days.", "a.txt").text == "Leave is thirty days."
    assert extract("Größe\0 und Länge".encode("cp1252"), "a.txt").text == "Größe und Länge"


def test_the_source_of_an_embedded_picture_is_left_out_of_markdown() -> None:
    text = case("base64_image.md").text
    assert len(text) < 200
    assert all(words in text for words in ("# Quarterly plan", "The budget is 40,000 euros.", "Approval by Friday."))


def test_a_picture_written_as_percent_encoded_markup_is_left_out() -> None:
    picture = "data:image/svg+xml;charset=utf-8,%3Csvg%20width='5'%3E%3C/svg%3E".replace("'", "%27")
    assert extract(f"Logo: ![logo]({picture}) here".encode(), "a.md").text == "Logo: ![logo]() here"
    assert extract(b"Use data:image/png for pictures.", "a.md").text == "Use data:image/png for pictures."


def test_one_invalid_byte_does_not_make_utf8_decode_as_another_encoding() -> None:
    text = extract("概要と動機 ".encode() * 20 + b"\xe3", "a.txt").text
    assert text.startswith("概要と動機 概要と動機")


def test_html_is_decoded_with_its_declared_charset() -> None:
    page = '<html><meta charset="shift_jis"><p>概要</p>'.encode("shift_jis")
    assert extract(page, "a.html").text == "概要"


def test_offsets_refer_to_text_with_normalised_line_ends_controls_and_accents() -> None:
    document = extract("e\x00\u0301a\r\nb\rc\x0c\ud55c\u00ad".encode(), "a.txt")
    assert document.text == "éa\nb\nc\n한"
    assert_blocks_hold_the_text(document)


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("london/people/parental-leave_policy.txt", "Parental leave policy"),
        ("london/people/onboarding/_index.txt", "Onboarding"),
        ("london/people/README", "People"),
        ("tokyo/概要.txt", "概要"),
    ],
)
def test_a_document_without_a_title_is_titled_after_its_file(key: str, title: str) -> None:
    assert extract(b"words", key).title == title


def test_empty_lines_separate_paragraphs_of_plain_text() -> None:
    document = extract(b"\n  one\ntwo\n \t\nthree  \n", "a.txt")
    assert pieces(document) == [(BlockKind.PARAGRAPH, "one\ntwo"), (BlockKind.PARAGRAPH, "three")]


def test_the_heading_text_of_formats_without_markup_is_unchanged() -> None:
    document = extract(b"<h1># of *new* employees</h1>x", "a.html")
    assert heading_text(document, document.blocks[0]) == "# of *new* employees"


@pytest.mark.parametrize("key", ["a.md", "a.txt", "a.html", "a.csv"])
def test_a_file_embedded_as_a_data_uri_is_left_out(key: str) -> None:
    data = "iVBORw0KGgo" * 2000
    source = f"The budget is 40 000 euros. ![chart](data:image/png;base64,{data}==) Approval by Friday."
    text = extract(source.encode(), key).text
    assert "iVBOR" not in text
    assert "40 000 euros" in text
    assert "Approval by Friday." in text


def test_the_extractor_has_a_version() -> None:
    assert EXTRACTOR_VERSION == "4"


def test_an_unexpected_parser_error_makes_the_document_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise RecursionError("too\ndeep")

    monkeypatch.setattr("rag_assets.extraction.formats.markdown._parser", fail)
    error = refusal(b"words", "a.md")
    assert error.reason is QuarantineReason.MALFORMED
    assert "RecursionError: too deep" in error.detail
    assert isinstance(error.__cause__, RecursionError)


def test_the_text_of_one_document_is_bounded_and_what_was_cut_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.document.MAX_CHARACTERS", 50)
    paragraph = "Harbour dues are paid on arrival."
    found = read_object(f"{paragraph}\n\n{paragraph}\n\n{paragraph}\n".encode(), "dues.txt")
    document = found.parts[0].document
    assert document.text == f"{paragraph}\n\nHarbour dues ar"
    assert [(block.start, block.end) for block in document.blocks] == [(0, 33), (35, 50)]
    (refused,) = found.refused
    assert (refused.name, refused.reason) == ("the rest of the text", QuarantineReason.INCOMPLETE)
    assert refused.detail == "only the first 49% of its 103 characters were read; split the file"


def test_a_document_within_the_bound_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.document.MAX_CHARACTERS", 50)
    found = read_object(("x" * 50).encode(), "dues.txt")
    assert len(found.parts[0].document.text) == 50
    assert not found.refused
