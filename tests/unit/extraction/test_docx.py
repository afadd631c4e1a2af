"""What Word shows beside the body of a document: numbers of lists, notes, headers and footers, text boxes, charts."""

from __future__ import annotations

import io
import zipfile

import pytest

from tests.documents import blocks_of, case, extract

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
WORD_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml"
HANDLED = {"document": "document.main", "header": "header", "footer": "footer", "numbering": "numbering"}


def a_docx(body: str, **parts: str) -> bytes:
    """Return a document with this body, and with parts by their kind, which is also their relationship id."""
    roots = {"header": "hdr", "footer": "ftr"}
    files = {"document": f'<w:document {W} xmlns:r="{RELATIONS}"><w:body>{body}</w:body></w:document>'}
    for kind, content in parts.items():
        root = roots.get(kind, kind)
        files[kind] = content if content.startswith("<c:") else f"<w:{root} {W}>{content}</w:{root}>"
    types = "".join(
        f'<Override PartName="/word/{kind}.xml" ContentType="{WORD_TYPE}.{HANDLED.get(kind, kind)}+xml"/>'
        for kind in files
    )
    relations = "".join(f'<Relationship Id="{kind}" Type="{RELATIONS}/{kind}" Target="{kind}.xml"/>' for kind in parts)
    root = f'<Relationship Id="d" Type="{RELATIONS}/officeDocument" Target="word/document.xml"/>'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        xml = '<Default Extension="xml" ContentType="application/xml"/>'
        rels = '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{PACKAGE}/content-types">{xml}{rels}{types}</Types>')
        archive.writestr("_rels/.rels", f'<Relationships xmlns="{PACKAGE}/relationships">{root}</Relationships>')
        for kind, content in files.items():
            archive.writestr(f"word/{kind}.xml", content)
        name = "word/_rels/document.xml.rels"
        archive.writestr(name, f'<Relationships xmlns="{PACKAGE}/relationships">{relations}</Relationships>')
    return buffer.getvalue()


def paragraph(text: str, properties: str = "", after: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r>{after}</w:p>"


def numbered(text: str, level: int, number: int = 1) -> str:
    return paragraph(text, f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>')


def numbering(*levels: tuple[str, str], start: int = 1, nums: str = "") -> str:
    """Return a list definition with these formats and texts by level, and a num 1 for it."""
    written = "".join(
        f'<w:lvl w:ilvl="{depth}"><w:start w:val="{start}"/><w:numFmt w:val="{number_format}"/>'
        f'<w:lvlText w:val="{text}"/></w:lvl>'
        for depth, (number_format, text) in enumerate(levels)
    )
    num = '<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num>'
    return f'<w:abstractNum w:abstractNumId="7">{written}</w:abstractNum>{num}{nums}'


def test_notes_comments_numbers_and_headers_of_a_contract_are_read() -> None:
    assert blocks_of(case("contract.docx"))[:4] == [
        ("paragraph", "CONFIDENTIAL draft of 3 May, version 7.2"),
        ("heading", "Supply contract"),
        (
            "paragraph",
            (
                "The warranty lasts two years.\nFootnote: Except batteries, which have six months.\n"
                "Comment: The board must sign this clause."
            ),
        ),
        ("list", "1. Payment\n2. Delivery\n3. Liability is limited as in item 2."),
    ]


def test_inner_levels_of_a_list_are_numbered_by_their_own_format_and_start_again() -> None:
    lists = numbering(("decimal", "%1."), ("lowerLetter", "%2)"), ("upperRoman", "%1.%2.%3"))
    levels = [("one", 0), ("a", 1), ("b", 1), ("deep", 2), ("two", 0), ("again", 1)]
    body = "".join(numbered(text, level) for text, level in levels)
    assert extract(a_docx(body, numbering=lists), "a.docx").text.split("\n") == [
        "1. one",
        "  a) a",
        "  b) b",
        "    1.b.I deep",
        "2. two",
        "  a) again",
    ]


def test_a_list_continues_after_a_paragraph_and_restarts_where_its_numbering_says_so() -> None:
    restarted = (
        '<w:num w:numId="2"><w:abstractNumId w:val="7"/>'
        '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="5"/></w:lvlOverride></w:num>'
    )
    body = numbered("a", 0) + paragraph("Words.") + numbered("b", 0) + numbered("c", 0, 2) + numbered("d", 0, 2)
    document = extract(a_docx(body, numbering=numbering(("decimal", "(%1)"), nums=restarted)), "a.docx")
    assert document.text == "(1) a\n\nWords.\n\n(2) b\n(5) c\n(6) d"


def test_numbers_of_headings_and_table_cells_are_read() -> None:
    heading = paragraph("Scope", '<w:outlineLvl w:val="0"/><w:numPr><w:numId w:val="1"/></w:numPr>')
    table = f"<w:tbl><w:tr><w:tc>{numbered('Days', 1)}</w:tc><w:tc>{paragraph('30')}</w:tc></w:tr></w:tbl>"
    lists = numbering(("decimal", "%1"), ("decimal", "%1.%2"))
    document = extract(a_docx(heading + table, numbering=lists), "a.docx")
    assert blocks_of(document) == [("heading", "1 Scope"), ("table", "1.1 Days | 30")]


@pytest.mark.parametrize(
    ("number_format", "start", "shown"),
    [
        ("lowerLetter", 28, "bb"),
        ("upperLetter", 3, "C"),
        ("lowerRoman", 14, "xiv"),
        ("decimalZero", 7, "07"),
        ("lowerRoman", 999_999, "999999"),
        ("lowerLetter", 999_999, "999999"),
        ("cardinalText", 2, "2"),
    ],
)
def test_numbers_are_written_in_the_format_of_their_list(number_format: str, start: int, shown: str) -> None:
    lists = numbering((number_format, "%1."), start=start)
    assert extract(a_docx(numbered("x", 0), numbering=lists), "a.docx").text == f"{shown}. x"


def test_items_without_a_number_keep_a_dash() -> None:
    lists = numbering(("bullet", "\uf0b7"), ("none", ""))
    body = numbered("bullet", 0) + numbered("bare", 1) + numbered("undefined", 0, number=9)
    assert extract(a_docx(body, numbering=lists), "a.docx").text == "- bullet\n  - bare\n- undefined"


@pytest.mark.parametrize(("kind", "name"), [("footnote", "Footnote"), ("endnote", "Endnote"), ("comment", "Comment")])
def test_a_note_follows_the_paragraph_or_heading_that_refers_to_it(kind: str, name: str) -> None:
    reference = f'<w:r><w:{kind}Reference w:id="3"/></w:r>'
    again = f'<w:r><w:{kind}Reference w:id="3"/></w:r>'
    body = paragraph("Warranty", '<w:outlineLvl w:val="0"/>', reference) + paragraph("Body", after=again)
    note = f'<w:{kind} w:id="3">{paragraph("Not for")}{paragraph("batteries.")}</w:{kind}>'
    document = extract(a_docx(body, **{f"{kind}s": note}), "a.docx")
    assert blocks_of(document) == [
        ("heading", "Warranty"),
        ("paragraph", f"{name}: Not for batteries."),
        ("paragraph", "Body"),
    ]


def test_notes_that_refer_to_each_other_in_a_long_circle_are_each_read_once() -> None:
    count = 5_000
    following = [f'<w:r><w:footnoteReference w:id="{(number + 1) % count}"/></w:r>' for number in range(count)]
    notes = "".join(
        f'<w:footnote w:id="{number}">{paragraph("words", after=reference)}</w:footnote>'
        for number, reference in enumerate(following)
    )
    body = paragraph("Body", after='<w:r><w:footnoteReference w:id="0"/></w:r>')
    assert extract(a_docx(body, footnotes=notes), "a.docx").text.count("Footnote: ") == count


def test_headers_come_first_and_footers_last_and_each_text_once() -> None:
    references = (
        '<w:headerReference w:type="default" r:id="header"/><w:footerReference w:type="default" r:id="footer"/>'
    )
    first = paragraph("one", f"<w:sectPr>{references}</w:sectPr>")
    body = f"{first}{paragraph('two')}<w:sectPr>{references}</w:sectPr>"
    data = a_docx(body, header=paragraph("Draft 7"), footer=paragraph("Owner: Legal"))
    assert extract(data, "a.docx").text == "Draft 7\n\none\n\ntwo\n\nOwner: Legal"


def test_a_footer_of_page_numbers_and_a_first_page_header_that_is_turned_off_are_left_out() -> None:
    references = '<w:headerReference w:type="first" r:id="header"/><w:footerReference w:type="default" r:id="footer"/>'
    data = a_docx(f"{paragraph('one')}<w:sectPr>{references}</w:sectPr>", header=paragraph("A"), footer=paragraph("12"))
    assert extract(data, "a.docx").text == "one"


def test_the_text_of_a_box_follows_the_paragraph_that_it_is_anchored_in() -> None:
    box = f"<w:r><w:pict><w:txbxContent>{paragraph('Aside')}</w:txbxContent></w:pict></w:r>"
    body = paragraph("Begin", after=f"{box}<w:r><w:t> and end</w:t></w:r>")
    assert extract(a_docx(body), "a.docx").text == "Begin and end\nAside"


CHART = (
    '<c:chartSpace xmlns:c="http://schemas.openxmlformats.org/drawingml/2006/chart" '
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"><c:chart><c:title><c:tx><c:rich><a:p><a:r>'
    "<a:t>Sick days</a:t></a:r></a:p></c:rich></c:tx></c:title><c:plotArea><c:ser><c:tx><c:v>2025</c:v></c:tx>"
    '<c:cat><c:pt idx="0"><c:v>Oslo</c:v></c:pt></c:cat><c:val><c:pt idx="0"><c:v>4</c:v></c:pt></c:val></c:ser>'
    "<c:valAx><c:title><c:tx><c:rich><a:p><a:r><a:t>per person</a:t></a:r></a:p></c:rich></c:tx></c:title></c:valAx>"
    "</c:plotArea></c:chart></c:chartSpace>"
)


@pytest.mark.parametrize(("chart", "found"), [(CHART, True), ("<c:broken", False)])
def test_a_chart_is_read_with_its_titles_and_data_and_left_out_if_it_is_broken(chart: str, found: bool) -> None:
    reference = '<c:chart xmlns:c="http://schemas.openxmlformats.org/drawingml/2006/chart" r:id="chart"/>'
    data = a_docx(paragraph("Body", after=f"<w:r><w:drawing>{reference}</w:drawing></w:r>"), chart=chart)
    expected = [("paragraph", "Body")]
    if found:
        expected += [("paragraph", "Sick days"), ("paragraph", "per person"), ("table", "| 2025\nOslo | 4")]
    assert blocks_of(extract(data, "a.docx")) == expected
