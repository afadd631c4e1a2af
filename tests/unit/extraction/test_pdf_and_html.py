"""Markdown, HTML, Word and PDF extraction: titles, headings, lists, tables, pages and refusals."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence

import docx
import pytest
from docx.document import Document

from rag_assets.extraction.document import BlockKind, ExtractedDocument
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import heading_text
from tests.documents import extract


def pieces(document: ExtractedDocument) -> list[tuple[str, str]]:
    return [(str(block.kind), document.text[block.start : block.end]) for block in document.blocks]


def refusal(data: bytes, key: str) -> ExtractionError:
    with pytest.raises(ExtractionError) as caught:
        extract(data, key)
    return caught.value


# Markdown


def test_markdown_keeps_its_source_and_is_split_into_typed_blocks() -> None:
    source = (
        "# Leave\n\nSome *words*.\n\n- one\n- two\n  - three\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "```sh\nls\n```\n\nDates\n-----\n> quoted\n\n[ref]: https://example.com\n"
    )
    document = extract(source.encode(), "a.md")
    assert document.text == source.strip()
    assert pieces(document) == [
        ("heading", "# Leave"),
        ("paragraph", "Some *words*."),
        ("list", "- one\n- two\n  - three"),
        ("table", "| a | b |\n|---|---|\n| 1 | 2 |"),
        ("code", "```sh\nls\n```"),
        ("heading", "Dates\n-----"),
        ("paragraph", "> quoted"),
        ("paragraph", "[ref]: https://example.com"),
    ]
    assert [block.level for block in document.blocks if block.kind is BlockKind.HEADING] == [1, 2]


@pytest.mark.parametrize(
    ("front_matter", "title"),
    [
        ("title: Parental leave", "Parental leave"),
        ('title: "A \\"quoted\\" title"  ', 'A "quoted" title'),
        ("title: 'It''s here'", "It's here"),
        ("title: >\n  Folded over\n  lines\nother: x", "Folded over lines"),
        ("title: Words # a comment", "Words"),
        ("navTitle: Other\nsub:\n  title: Nested", "Heading"),
        ("title:\nother: x", "Heading"),
    ],
)
def test_front_matter_provides_the_title_and_is_removed_from_the_text(front_matter: str, title: str) -> None:
    document = extract(f"---\n{front_matter}\n---\n\n# Heading\n\nwords".encode(), "a.md")
    assert document.title == title
    assert document.text == "# Heading\n\nwords"


def test_prose_between_horizontal_rules_at_the_top_is_not_front_matter() -> None:
    assert extract(b"---\nJust prose here\n---\nmore", "a.md").text == "---\nJust prose here\n---\nmore"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("## Plain ##", "Plain"),
        ("# The [link](https://example.com/a_b) and `code`", "The link and code"),
        ("### **Bold** snake_case and _soft_ {#anchor}", "Bold snake_case and soft"),
        ("# C#", "C#"),
        ("Two\nlines\n=====", "Two lines"),
        ("# <a name='x'></a>Q&amp;A \\*", "Q&A *"),
        ("# [![badge](b.svg)](x) Name", "badge Name"),
        ("## 概要", "概要"),
    ],
)
def test_heading_text_has_no_markup(source: str, words: str) -> None:
    document = extract(f"{source}\n\ntext".encode(), "a.md")
    assert heading_text(document, document.blocks[0]) == words
    assert document.title == words


def test_a_heading_of_half_a_million_brackets_is_read_quickly() -> None:
    assert extract(b"# " + b"[" * 500_000 + b"a", "a.md").blocks


# HTML


def test_html_is_read_in_order_without_navigation_and_other_page_chrome() -> None:
    page = """<!doctype html><html><head><title> The
      title </title><style>p {}</style></head><body><nav>Menu</nav><header>Banner</header>
      <article><header><h1>Parental &amp; leave</h1></header>
      <p>First <b>bold</b>
      line<br>second&nbsp;line</p>loose<div>words</div>
      <ul><li>one</li><li>two<ol><li>inner</li></ol></li><li><p>three</p><p>more</p></li></ul>
      <table><caption>Days</caption><tr><th>Who</th><th>Days</th></tr><tr><td>All</td><td>1<br>0</td></tr></table>
      <pre>
def f():
    return 1
</pre><script>var x;</script><noscript>no</noscript><template>no</template></article>
      <aside>Ad</aside><footer>Imprint</footer></body></html>"""
    document = extract(page.encode(), "a.html")
    assert document.title == "The title"
    assert pieces(document) == [
        ("heading", "Parental & leave"),
        ("paragraph", "First bold line\nsecond line"),
        ("paragraph", "loose"),
        ("paragraph", "words"),
        ("list", "- one\n- two\n  1. inner\n- three\n  more"),
        ("table", "Days\nWho | Days\nAll | 1 0"),
        ("code", "def f():\n    return 1"),
    ]


def test_ordered_lists_keep_their_numbers() -> None:
    page = b"<html><ol start=9><li>nine<li>ten<ul><li>x</ul>more<li>eleven</ol><ol><li>one</ol>"
    assert extract(page, "a.html").text == "9. nine\n10. ten\n  - x\n  more\n11. eleven\n\n1. one"


def test_without_a_title_element_the_first_heading_is_the_title() -> None:
    assert extract(b"<html><h2>Other</h2><h1>The <i>one</i></h1>", "a.html").title == "The one"


def test_headings_inside_a_layout_table_are_kept() -> None:
    page = b"<html><table><tr><td><h2>News</h2><p>words</td><td><table><tr><td>a<td>b</table></table>"
    assert pieces(extract(page, "a.html")) == [
        ("heading", "News"),
        ("paragraph", "words"),
        ("table", "a | b"),
    ]


def test_html_nested_thousands_of_levels_deep_is_read() -> None:
    page = b"<html>" + b"<div>" * 5_000 + b"<ul><li>" * 1_000 + b"deep"
    assert extract(page, "a.html").text == "- deep"


def test_html_nested_too_deeply_is_malformed() -> None:
    error = refusal(b"<html>" + b"<div>" * 200_000 + b"deep", "a.html")
    assert error.reason is QuarantineReason.MALFORMED
    assert "deep" in error.detail


# Word


def saved(document: Document) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def a_docx(words: str = "words") -> bytes:
    document = docx.Document()
    document.add_paragraph(words)
    return saved(document)


def with_entry(data: bytes, name: str, content: bytes, **attributes: int) -> bytes:
    """Return the zip `data` with one more entry whose directory record is falsified by `attributes`."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        for attribute, value in attributes.items():
            setattr(archive.getinfo(name), attribute, value)
    return buffer.getvalue()


def test_a_word_document_is_read_in_order_with_headings_lists_and_tables() -> None:
    document = docx.Document()
    document.add_paragraph("Parental leave", style="Title")
    document.add_heading("Who", level=1)
    document.add_paragraph("Everyone.")
    document.add_paragraph("one", style="List Bullet")
    document.add_paragraph("two", style="List Number")
    table = document.add_table(rows=2, cols=2)
    for cell, words in zip((c for row in table.rows for c in row.cells), "ab1 ", strict=True):
        cell.text = words
    document.add_heading("Details", level=3)
    document.add_paragraph("Tab\tand\nbreak.")
    found = extract(saved(document), "a.docx")
    assert found.title == "Parental leave"
    assert pieces(found) == [
        ("heading", "Parental leave"),
        ("heading", "Who"),
        ("paragraph", "Everyone."),
        ("list", "- one\n1. two"),
        ("table", "a | b\n1 |"),
        ("heading", "Details"),
        ("paragraph", "Tab\tand\nbreak."),
    ]
    assert [block.level for block in found.blocks] == [1, 1, 0, 0, 0, 3, 0]


def test_a_word_document_is_detected_by_content_and_titled_by_its_properties() -> None:
    document = docx.Document()
    document.core_properties.title = "Leave policy"
    document.add_heading("Introduction", level=1)
    found = extract(saved(document), "some/file.bin")
    assert found.title == "Leave policy"
    assert found.media_type.endswith("wordprocessingml.document")


def test_a_style_derived_from_a_heading_is_a_heading() -> None:
    document = docx.Document()
    style = document.styles.add_style("Company heading", 1)
    style.base_style = document.styles["Heading 2"]
    document.add_paragraph("Who", style=style)
    assert extract(saved(document), "a.docx").blocks[0].level == 2


def test_a_zip_bomb_is_too_large() -> None:
    error = refusal(with_entry(a_docx(), "word/media/a.bin", bytes(64 * 2**20)), "a.docx")
    assert error.reason is QuarantineReason.TOO_LARGE
    assert "MiB" in error.detail


def test_a_false_declared_size_makes_a_container_malformed() -> None:
    data = with_entry(a_docx(), "word/media/a.bin", bytes(2**20), file_size=1024)
    assert refusal(data, "a.docx").reason is QuarantineReason.MALFORMED


def test_a_container_with_too_many_entries_is_too_large() -> None:
    buffer = io.BytesIO(a_docx())
    with zipfile.ZipFile(buffer, "a") as archive:
        for number in range(10_001):
            archive.writestr(f"word/{number}", b"")
    assert refusal(buffer.getvalue(), "a.docx").reason is QuarantineReason.TOO_LARGE


def test_a_truncated_container_is_malformed() -> None:
    assert refusal(a_docx()[:-100], "a.docx").reason is QuarantineReason.MALFORMED


def test_a_word_document_with_broken_xml_is_malformed() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(a_docx())) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"<w:broken" if name == "word/document.xml" else source.read(name))
    error = refusal(buffer.getvalue(), "a.docx")
    assert error.reason is QuarantineReason.MALFORMED
    assert error.__cause__ is not None


# PDF


def a_pdf(
    pages: Sequence[Sequence[str]], *, title: str = "", trailer: str = "", sizes: Mapping[str, int] | None = None
) -> bytes:
    """Return a PDF with these lines of text on each page, in 10 points unless `sizes` has another size."""
    sizes = sizes or {}
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in enumerate(pages):
        shown = "".join(f"/F1 {sizes.get(line, 10)} Tf ({line}) Tj T* " for line in lines)
        stream = f"BT /F1 10 Tf 12 TL 20 780 Td {shown}ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects.append(f"<< /Title ({title}) >>")
    out = b"%PDF-1.4\n"
    offsets: list[int] = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    count = len(objects) + 1
    entries = f"/Size {count} /Root 1 0 R /Info {len(objects)} 0 R {trailer}"
    end = f"trailer\n<< {entries} >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + f"xref\n0 {count}\n0000000000 65535 f \n{table}{end}".encode()


def test_a_pdf_is_read_page_by_page_as_paragraphs_and_lists() -> None:
    data = a_pdf(
        [
            [
                "Parental leave",
                "Everyone who has worked here for at least one year may take parental leave, which the",
                "law calls by another name. It is paid in full.",
                "The second paragraph stands by itself and is as long as the lines of the first one are.",
                "- one",
                "- two",
            ],
            ["Second page."],
        ],
        title="Leave policy",
    )
    document = extract(data, "a.pdf")
    assert document.title == "Leave policy"
    assert document.media_type == "application/pdf"
    assert pieces(document) == [
        ("paragraph", "Parental leave"),
        (
            "paragraph",
            (
                "Everyone who has worked here for at least one year may take parental leave, which the "
                "law calls by another name. It is paid in full."
            ),
        ),
        (
            "paragraph",
            "The second paragraph stands by itself and is as long as the lines of the first one are.",
        ),
        ("list", "- one\n- two"),
        ("paragraph", "Second page."),
    ]
    assert [block.page for block in document.blocks] == [1, 1, 1, 1, 2]


PROSE = "This line of prose is about number {0} and goes on for as long as lines of a page do, or so."


def test_larger_lines_of_a_pdf_are_headings_with_levels_by_size() -> None:
    # "Not this one." ends like a sentence.
    sizes = {"Parental leave": 20, "in all of our offices": 20, "Who": 14, "Not this one.": 14, "When": 14}
    pages = [
        ["Parental leave", "in all of our offices", *[PROSE.format(n) for n in "abc"], "Who"],
        [*[PROSE.format(n) for n in "defg"], "Not this one.", "When", PROSE.format("h")],
    ]
    document = extract(a_pdf(pages, sizes=sizes), "a.pdf")
    headings = [block for block in document.blocks if block.kind is BlockKind.HEADING]
    assert [(document.text[b.start : b.end], b.level, b.page) for b in headings] == [
        ("Parental leave in all of our offices", 1, 1),
        ("Who", 2, 1),
        ("When", 2, 2),
    ]
    assert document.title == "Parental leave in all of our offices"


def test_a_pdf_with_mostly_large_text_has_no_headings() -> None:
    lines = ["A slide with large words", "small words", "and more large words here"]
    sizes = {lines[0]: 30, lines[2]: 20}
    assert {block.kind for block in extract(a_pdf([lines], sizes=sizes), "a.pdf").blocks} == {BlockKind.PARAGRAPH}


def test_running_headers_and_footers_of_a_pdf_are_kept_once() -> None:
    data = a_pdf([["Leave policy", PROSE.format(n), f"Page {n} of 6", "Confidential"] for n in range(1, 7)])
    document = extract(data, "a.pdf")
    assert document.text.count("Leave policy") == document.text.count("Confidential") == 1
    assert "Page 2" not in document.text
    assert document.text.count("This line of prose") == 6
    assert {block.page for block in document.blocks} == set(range(1, 7))


def test_alternating_headers_of_left_and_right_pages_are_each_kept_once() -> None:
    data = a_pdf([["Left" if n % 2 else "Right", PROSE.format(n)] for n in range(1, 11)])
    text = extract(data, "a.pdf").text
    assert (text.count("Left"), text.count("Right")) == (1, 1)


@pytest.mark.parametrize(
    "pages",
    [
        [["Leave", PROSE.format(n)] for n in range(1, 4)],
        [[f"Rent in {2000 + n * n}: {n * 7}", PROSE.format(n)] for n in range(1, 9)],
        [[("Yes" if n in (1, 4, 6) else PROSE.format(n)), PROSE.format(n + 100)] for n in range(1, 9)],
    ],
)
def test_similar_lines_of_content_are_not_mistaken_for_running_headers(pages: list[list[str]]) -> None:
    words = " ".join(" ".join(page) for page in pages).split()
    assert extract(a_pdf(pages), "a.pdf").text.split() == words


def test_pypdf_reads_a_file_that_pdfium_cannot_open() -> None:
    # PDFium does not accept the misspelled catalog type; the pages are intact.
    data = a_pdf([["Parental leave"], ["second page"]]).replace(b"/Type /Catalog", b"/Type /Katalog")
    document = extract(data, "a.pdf")
    assert "Parental leave" in document.text


@pytest.mark.parametrize("limit", ["MAX_PAGES", "MAX_CHARACTERS"])
def test_a_pdf_over_the_limits_is_too_large(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(f"rag_assets.extraction.formats.pdf.{limit}", 3)
    assert refusal(a_pdf([["words"]] * 4), "a.pdf").reason is QuarantineReason.TOO_LARGE


def test_words_hyphenated_at_line_ends_are_joined_where_that_is_safe() -> None:
    lines = [
        "The policy says that all of the employ-",
        "ees may use the self-",
        "service desk, and self-service is open to Rolls-",
        "Royce too.",
    ]
    text = extract(a_pdf([lines]), "a.pdf").text
    assert "employees" in text
    assert "the self-service desk" in text
    assert "Rolls-Royce" in text


def test_a_pdf_title_generated_by_a_program_is_ignored() -> None:
    assert extract(a_pdf([["words"]], title="Microsoft Word - x.doc"), "a/leave.pdf").title == "Leave"


def test_a_pdf_without_text_is_empty_and_the_error_suggests_ocr() -> None:
    error = refusal(a_pdf([[]]), "a.pdf")
    assert error.reason is QuarantineReason.EMPTY
    assert "OCR" in error.detail


def test_a_pdf_that_is_only_a_header_is_malformed() -> None:
    assert refusal(b"%PDF-1.4\nnothing else", "a.pdf").reason is QuarantineReason.MALFORMED


def test_a_password_protected_pdf_is_encrypted() -> None:
    # No password opens this file: the check value of the user password is all zeroes.
    zeroes = "00" * 32
    trailer = (
        f"/ID [<{'00' * 16}> <{'00' * 16}>] "
        f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{zeroes}> /U <{zeroes}> /P -4 >> "
    )
    error = refusal(a_pdf([["words"]], trailer=trailer), "a.pdf")
    assert error.reason is QuarantineReason.ENCRYPTED
    assert "password" in error.detail
