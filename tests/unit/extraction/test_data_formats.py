"""Data in text files: JSON, YAML, XML, notebooks, calendars and subtitles."""

from __future__ import annotations

import json

import pytest

from rag_assets.extraction.errors import QuarantineReason
from tests.documents import extract, pieces, refusal


def texts(data: bytes, key: str) -> list[str]:
    return [text for _, text in pieces(data, key)]


# JSON and YAML


def test_json_values_have_the_path_of_their_keys_and_objects_are_blocks() -> None:
    value = {"policy": {"leave": {"days": 30}, "paid": True}, "tags": ["a", "b"], "empty": None}
    assert texts(json.dumps(value).encode(), "a.json") == [
        "policy.leave.days: 30",
        "policy.paid: true",
        "tags: a, b",
    ]


def test_each_object_of_a_json_list_is_a_block() -> None:
    value = [{"name": "Kim", "role": "cook"}, {"name": "Ola"}]
    assert texts(json.dumps(value).encode(), "a.json") == ["name: Kim\nrole: cook", "name: Ola"]


def test_numbers_of_json_keep_their_digits() -> None:
    assert texts(b'{"a": 12345678901234567890.10}', "a.json") == ["a: 12345678901234567890.10"]


def test_long_lists_of_numbers_are_cut_and_long_lists_of_words_are_not() -> None:
    numbers, words = list(range(1000)), [f"word{number}" for number in range(1000)]
    text = extract(json.dumps({"vector": numbers, "words": words}).encode(), "a.json").text
    assert "(1000 values)" in text
    assert "999" not in text.partition("words")[0]
    assert "word999" in text


def test_each_line_of_json_lines_is_a_block_and_half_a_line_is_kept() -> None:
    assert texts(b'{"a": "x", "b": 1}\n\n{"a": "y"}\n{"a": "cut', "a.jsonl") == ["a: x\nb: 1", "a: y", '{"a": "cut']


def test_invalid_json_is_malformed_and_the_error_names_the_line() -> None:
    error = refusal(b'{"a": 1,\n"b"}', "a.json")
    assert error.reason is QuarantineReason.MALFORMED
    assert "line 2" in error.detail


def test_yaml_values_have_the_path_of_their_keys_in_every_document_of_a_file() -> None:
    data = b"# comment\nleave:\n  days: 30\n  note: |\n    one\n    two\n---\nother: [a, ~, b]\n"
    assert texts(data, "a.yaml") == ["leave.days: 30\nleave.note: one\ntwo", "other: a, b"]


def test_yaml_tags_construct_nothing_and_aliases_are_not_followed() -> None:
    data = b"a: &x !!python/object/apply:os.system ['echo hi']\nb: *x\n"
    assert extract(data, "a.yml").text == "a: echo hi\nb: *x"


def test_yaml_aliases_cannot_multiply() -> None:
    lines = ["a0: &a0 [word, word]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert len(extract("\n".join(lines).encode(), "a.yaml").text) < 4000


def test_a_template_of_yaml_is_read_as_plain_text() -> None:
    document = extract(b"{{ if .Values.a }}\nname: {{ .Values.b }}\n", "a.yaml")
    assert ".Values.b" in document.text
    assert document.media_type == "text/plain"


@pytest.mark.parametrize(
    ("key", "opening", "closing"),
    [("a.json", "[", "]"), ("a.json", '{"a":', "}"), ("a.yaml", "[", "]"), ("a.yaml", "{a: ", "}")],
)
@pytest.mark.parametrize("depth", [150, 100_000])
def test_data_that_is_nested_too_deeply_is_malformed(key: str, opening: str, closing: str, depth: int) -> None:
    error = refusal((opening * depth + "1" + closing * depth).encode(), key)
    assert error.reason is QuarantineReason.MALFORMED
    assert "nested" in error.detail


def test_the_text_of_values_below_long_paths_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.extraction.formats.data.records.MAX_CHARACTERS", 1000)
    value = {"k" * 90: {f"v{n}": "word" for n in range(20)}}
    assert refusal(json.dumps(value).encode(), "a.json").reason is QuarantineReason.TOO_LARGE


# XML


def test_values_of_xml_have_the_names_of_their_elements_and_attributes() -> None:
    data = b'<staff><person role="cook" id="7"><name>Kim</name><city>Oslo</city></person><note>all</note></staff>'
    assert texts(data, "a.xml") == ["person (role cook)\nname: Kim\ncity: Oslo", "note: all"]


def test_xml_documents_have_headings_and_paragraphs_with_running_text() -> None:
    data = b"""<book xmlns="urn:x"><title>Travel</title><section><title>Rules</title>
    <para>Book <b>early</b>, by
    train.</para></section></book>"""
    assert extract(data, "a.xml").title == "Travel"
    assert pieces(data, "a.xml") == [
        ("heading", "Travel"),
        ("heading", "Rules"),
        ("paragraph", "Book early, by train."),
    ]


def test_an_element_with_text_and_elements_is_running_text() -> None:
    assert texts(b"<r><x>Leave is <n>30</n> days</x><y>1</y></r>", "a.xml") == ["Leave is 30 days", "y: 1"]


ENTITIES = "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10))
BOMB = f"<!DOCTYPE r [<!ENTITY a0 'words'>{ENTITIES}]><r><v>&a9;</v><w>kept</w></r>"


def test_entities_that_a_file_declares_are_never_expanded() -> None:
    assert texts(BOMB.encode(), "a.xml") == ["v: &a9;\nw: kept"]


def test_entities_in_attributes_that_multiply_are_refused() -> None:
    assert refusal(BOMB.replace("<v>", "<v x='&a9;'>").encode(), "a.xml").reason is QuarantineReason.MALFORMED


def test_nothing_outside_an_xml_file_is_read(tmp_path: object) -> None:
    secret = f"{tmp_path}/secret.txt"
    with open(secret, "w") as file:  # noqa: PTH123
        file.write("secret words")
    data = f'<!DOCTYPE r [<!ENTITY e SYSTEM "file://{secret}">]><r><v>&e;</v><w>kept</w></r>'
    text = extract(data.encode(), "a.xml").text
    assert "secret words" not in text
    assert "kept" in text


def test_named_characters_of_html_are_known_in_xml_with_a_document_type() -> None:
    assert extract(b'<!DOCTYPE r SYSTEM "r.dtd"><r><v>a&eacute;b</v></r>', "a.xml").text == "v: aéb"


def test_xml_in_an_encoding_that_the_parser_does_not_know_is_decoded() -> None:
    data = '<?xml version="1.0" encoding="shift_jis"?><r><v>概要</v></r>'.encode("shift_jis")
    assert extract(data, "a.xml").text == "v: 概要"


@pytest.mark.parametrize("data", [b"<a><b>cut", b"no xml", b"<a>&undeclared;</a>", b"<a>" * 2000 + b"</a>" * 2000])
def test_xml_that_is_not_well_formed_or_too_deep_is_malformed(data: bytes) -> None:
    assert refusal(data, "a.xml").reason is QuarantineReason.MALFORMED


# Notebooks


def notebook(*cells: dict[str, object]) -> bytes:
    return json.dumps({"nbformat": 4, "cells": cells}).encode()


def test_a_notebook_has_its_markdown_its_code_and_the_beginning_of_its_outputs() -> None:
    data = notebook(
        {"cell_type": "markdown", "source": ["# *Rates*\n", "\n", "Per diem."]},
        {
            "cell_type": "code",
            "source": "print(44)",
            "outputs": [
                {"output_type": "stream", "text": ["44\n"]},
                {"output_type": "execute_result", "data": {"text/plain": "x" * 5000, "image/png": "iVBOR"}},
                {"output_type": "error", "ename": "KeyError", "evalue": "oslo"},
            ],
        },
    )
    assert extract(data, "a.ipynb").title == "Rates"
    assert pieces(data, "a.ipynb") == [
        ("heading", "# *Rates*"),
        ("paragraph", "Per diem."),
        ("code", "print(44)"),
        ("code", "44"),
        ("code", "x" * 2000 + " …"),
        ("code", "KeyError: oslo"),
    ]


@pytest.mark.parametrize("data", [b"[1]", b'{"a": 1}', b"{"])
def test_json_that_is_no_notebook_is_malformed(data: bytes) -> None:
    assert refusal(data, "a.ipynb").reason is QuarantineReason.MALFORMED


# Calendars and subtitles

CALENDAR = """BEGIN:VCALENDAR\r
X-WR-CALNAME:Office\r
BEGIN:VEVENT\r
SUMMARY:Summer party\\, at last\r
DTSTART;TZID=Europe/Oslo:20260619T180000\r
DTEND:20260619T220000Z\r
LOCATION:Roof\r
ORGANIZER;CN="Kim Lie":mailto:kim@example.org\r
DESCRIPTION:Bring\\nsun\r
  cream.\r
BEGIN:VALARM\r
DESCRIPTION:hidden\r
END:VALARM\r
END:VEVENT\r
END:VCALENDAR\r
"""


@pytest.mark.parametrize("key", ["a.ics", "a.txt"])
def test_a_calendar_has_summary_times_place_people_and_description_of_its_events(key: str) -> None:
    assert extract(CALENDAR.encode(), key).title == "Office"
    assert pieces(CALENDAR.encode(), key) == [
        ("heading", "Summer party, at last"),
        (
            "paragraph",
            "Start: 2026-06-19 18:00 Europe/Oslo\nEnd: 2026-06-19 22:00 UTC\nPlace: Roof\nOrganizer: Kim Lie",
        ),
        ("paragraph", "Bring\nsun cream."),
    ]


def test_webvtt_has_what_each_speaker_says_without_time_codes() -> None:
    data = b"""WEBVTT

NOTE hidden

STYLE
hidden

1
00:00.000 --> 00:02.000 align:left
<v Ann>Leave is <b>30</b>

00:02.000 --> 00:03.000
<v Ann>Leave is 30

00:03.000 --> 00:04.000
<v.loud Bo>Days &amp; nights?
"""
    assert texts(data, "a.vtt") == ["Ann: Leave is 30", "Bo: Days & nights?"]


def test_srt_has_its_text_as_paragraphs_without_numbers_and_time_codes() -> None:
    cues = [f"{n}\r\n00:00:{n:02},000 --> 00:00:{n + 1:02},000\r\n{{\\an8}}Sentence {n} " + "word " * 30 + "ends.\r\n"
            for n in range(1, 6)]  # fmt: skip
    paragraphs = texts("\r\n".join(cues).encode(), "a.srt")
    assert [paragraph.count("Sentence") for paragraph in paragraphs] == [3, 2]
    assert not any("-->" in paragraph or "an8" in paragraph for paragraph in paragraphs)


def test_a_log_is_plain_text() -> None:
    assert pieces(b"2026-01-01 the leave is 30 days\n", "a.log") == [("paragraph", "2026-01-01 the leave is 30 days")]
