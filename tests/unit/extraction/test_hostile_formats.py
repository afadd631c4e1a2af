"""Random and damaged input in every format: nothing but ExtractionError is raised."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.errors import ExtractionError
from rag_assets.extraction.registry import read_object
from rag_assets.extraction.sandbox.pool import ParserLimits, ParserPool
from tests.container_files import a_zip, an_epub, an_opendocument

PAGE = "<html><body><h1>Leave</h1><p>30 days</p></body></html>"
MESSAGE = b"From: kim@example.org\nMessage-ID: <1@x>\nSubject: Leave\n\n30 days\n"
CALENDAR = b"BEGIN:VCALENDAR\nBEGIN:VEVENT\nSUMMARY:Leave\nDTSTART:20260101T100000Z\nEND:VEVENT\nEND:VCALENDAR\n"

SAMPLES = {
    "adoc": b"= Leave\n\n|===\n|City |Rate\n\n|Oslo |44\n|===\n\n----\ncode\n----\n* one\n",
    "epub": an_epub({"a.xhtml": PAGE}),
    "ics": CALENDAR,
    "ipynb": b'{"cells": [{"cell_type": "code", "source": ["x = 1"], "outputs": [{"text": "1"}]}]}',
    "json": b'{"policy": {"leave": [1, 2, {"days": 30}], "paid": true}}',
    "jsonl": b'{"a": 1}\n{"b": [1, "two"]}\n',
    "log": b"2026-01-01 leave is 30 days\n",
    "mbox": b"From kim Thu Jan  1 00:00:00 2026\n" + MESSAGE + b"\n",
    "mdx": b'import X from "x"\n\n# Leave\n\n<X title="a">\n  30 days\n</X>\n',
    "odp": an_opendocument("presentation", "<draw:page><draw:frame><text:p>Leave</text:p></draw:frame></draw:page>"),
    "ods": an_opendocument("spreadsheet", '<table:table table:name="S"><table:table-row><table:table-cell>'
                           "<text:p>Leave</text:p></table:table-cell></table:table-row></table:table>"),
    "odt": an_opendocument("text", "<text:h>Leave</text:h><text:list><text:list-item><text:p>30</text:p>"
                           "</text:list-item></text:list>"),
    "org": b"* Leave\n| a | b |\n#+BEGIN_SRC x\ncode\n#+END_SRC\n",
    "rst": b"Leave\n=====\n\n.. note:: 30 days\n\n+---+---+\n| a | b |\n+---+---+\n",
    "srt": b"1\n00:00:00,000 --> 00:00:01,000\nLeave is 30 days\n",
    "tex": rb"\section{Leave}\begin{tabular}{ll}a & b \\ \end{tabular} \"o \textbf{x}",
    "vtt": b"WEBVTT\n\n00:00.000 --> 00:01.000\n<v Kim>Leave\n",
    "xml": b'<policy kind="a"><leave>30 days</leave><p>More <b>text</b></p></policy>',
    "yaml": b"policy: &a\n  leave: [30, days]\nother: *a\n",
    "zip": a_zip({"a.md": "# Leave", "b/c.json": '{"a": 1}'}),
}  # fmt: skip


def read(data: bytes, suffix: str) -> ExtractedDocument | None:
    try:
        return read_object(data, f"oslo/people/file.{suffix}").parts[0].document
    except ExtractionError as error:
        return None if error.detail else pytest.fail("an error without a detail")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_extraction_errors(suffix: str, data: bytes) -> None:
    read(data, suffix)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.text(alphabet="\n\t []{}<>|:=-*#\\&;\"'`.$%+_/(),1ax", max_size=200))
def test_random_markup_raises_nothing_but_extraction_errors(suffix: str, text: str) -> None:
    read(text.encode(), suffix)


@pytest.mark.parametrize("suffix", sorted(SAMPLES))
def test_damaged_and_truncated_files_raise_nothing_but_extraction_errors(suffix: str) -> None:
    chance = random.Random(suffix)
    sample = SAMPLES[suffix]
    for _ in range(150):
        data = bytearray(sample[: chance.randrange(1, len(sample) + 1)] if chance.random() < 0.3 else sample)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        read(bytes(data), suffix)


@pytest.mark.parametrize("suffix", sorted(SAMPLES))
def test_every_sample_under_every_name_raises_nothing_but_extraction_errors(suffix: str) -> None:
    for other in SAMPLES:
        read(SAMPLES[suffix], other)


@pytest.mark.parametrize(
    "unit", ["a", "{", "[", "<a ", "`", "* ", "\\begin{", "|", "[[", ":x:`", "{/*", "<<", '\\"', " "]
)
def test_one_huge_line_is_read_in_time_linear_in_its_length(unit: str) -> None:
    # A pattern that takes quadratic time would need hours for this.
    data = (unit * (400_000 // len(unit))).encode()
    for suffix in ("adoc", "json", "mdx", "org", "rst", "srt", "tex", "vtt", "xml", "yaml"):
        read(data, suffix)


def test_a_parser_process_reads_every_format_like_this_process() -> None:
    pool = ParserPool(ParserLimits(), 1)
    try:
        for suffix, data in SAMPLES.items():
            key = f"oslo/people/file.{suffix}"
            assert pool.read(data, key) == read_object(data, key)
        assert pool.started == 1
    finally:
        pool.close()
