"""What a web page shows beside its paragraphs: questions on buttons, notes, formulas, pictures and spanning cells."""

from __future__ import annotations

import pytest

from rag_assets.extraction.formats import html
from tests.documents import blocks_of, case, extract


def text_of(body: str) -> str:
    return extract(f"<html><body>{body}</body></html>".encode(), "a.html").text


def test_the_questions_of_an_accordion_are_headings() -> None:
    headings = [text for kind, text in blocks_of(case("accordion.html")) if kind == "heading"]
    assert headings == ["Travel FAQ", "Who pays for a cancelled train ticket?", "May I fly business class?"]


@pytest.mark.parametrize(
    "button",
    [
        "<h3><span><button>Who pays?</button></span></h3>",
        "<button class='accordion'>Who pays?</button>",
        "<dl><dt><button>Who pays?</button></dt></dl>",
        "<button aria-expanded=false>Who pays?</button>",
        "<details><summary>Who pays?</summary></details>",
    ],
)
def test_the_title_of_a_text_that_unfolds_is_read(button: str) -> None:
    assert text_of(f"{button}<div>Legal does.</div>") == "Who pays?\n\nLegal does."


def test_buttons_that_are_commands_are_left_out() -> None:
    assert text_of("<p>Words <button>Copy</button></p><button type=submit>Send</button>") == "Words"


def test_an_aside_inside_the_content_is_read() -> None:
    assert "400 volts are live." in case("aside.html").text
    assert text_of("<h1>Filter</h1><aside>Switch it off first.</aside>") == "Filter\n\nSwitch it off first."


def test_headers_and_footers_of_sections_are_read_but_not_those_of_the_page() -> None:
    page = (
        "<header>Logo</header><section><header>Leave, version 7</header><p>30 days.</p><footer>By Legal</footer>"
        "</section><footer>Imprint</footer>"
    )
    assert text_of(page) == "Leave, version 7\n\n30 days.\n\nBy Legal"


def test_the_header_of_a_page_is_read_if_it_has_the_title() -> None:
    assert text_of("<header><nav>Menu</nav><h1>Leave</h1><p>Version 7</p></header>") == "Leave\n\nVersion 7"


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        ("<mi>E</mi><mo>=</mo><mi>m</mi><msup><mi>c</mi><mn>2</mn></msup>", "E=mc^2"),
        ("<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow> <mn>2</mn></mfrac>", "(a+b)/2"),
        ("<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>", "x_i^2"),
        ("<semantics><mi>y</mi><annotation encoding='application/x-tex'>\\y</annotation></semantics>", "y"),
    ],
)
def test_formulas_are_read_on_one_line(formula: str, text: str) -> None:
    assert text_of(f"<p>So <math>{formula}</math>.</p>") == f"So {text} ."
    assert text_of(f"<table><tr><td>a<td><math>{formula}</math></table>") == f"a | {text}"


def test_pictures_are_read_as_their_alternative_text() -> None:
    assert text_of("<p>Press<img src=x alt='the red\n button'>twice</p>") == "Press the red button twice"
    assert text_of("<p>A<img alt='IMG_1.jpg'><img alt=''><img alt=x aria-hidden=true> b</p>") == "A b"


def test_the_content_of_a_text_area_is_read() -> None:
    assert text_of("<form>Notes <textarea>Call first.</textarea></form>") == "Notes Call first."


def test_embedded_data_is_left_out_of_a_page() -> None:
    page = f"<p>One data:image/png;base64,{'QUJD' * 100} two<img src='data:image/png;base64,QUJD'></p>"
    assert text_of(page) == "One  two"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (
            "<tr><th rowspan=2>Who<th colspan=2>Days<tr><th>2024<th>2025<tr><td>All<td>29<td>30",
            "Who | Days | Days\nWho | 2024 | 2025\nAll | 29 | 30",
        ),
        (
            "<tr><td>Oslo<td rowspan=2>30 days<td>paid<tr><td>Bergen<td>unpaid<tr><td>Lisbon",
            "Oslo | 30 days | paid\nBergen | 30 days | unpaid\nLisbon",
        ),
        ("<tr><td>a<td>b<tr><td colspan=2>A note", "a | b\nA note"),
        ("<tr><td rowspan=3>2025<tr><td>Q1<tr><td>Q2", "2025 | Q1\n2025 | Q2"),
        ("<tr><td rowspan=3>2025", "2025"),
        ("<tr><td rowspan=0>2025<td>Q1<tr><td>Q2<tr><td>Q3", "2025 | Q1\n2025 | Q2\n2025 | Q3"),
        ("<thead><tr><th rowspan=9>a<th>b<tbody><tr><td>c<td>d", "a | b\nc | d"),
        ("<tr><td colspan=x rowspan=-1>a<td>b", "a | b"),
    ],
)
def test_cells_that_span_rows_or_columns_are_repeated(rows: str, text: str) -> None:
    assert text_of(f"<table>{rows}</table>") == text


def test_spanning_cells_do_not_multiply_a_page_beyond_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "MAX_REPEATED_CHARACTERS", 1_000)
    cells = "".join(f"<td colspan=1000 rowspan=60000>{'x' * 50}" for _ in range(5))
    text = text_of(f"<table><tr>{cells}{'<tr><td>a' * 100}</table>")
    assert text.count("x") < 1_500
    assert text.count("a") == 100
