"""Reading golden questions, and the errors reported for invalid lines and files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rag_assets.evaluation.golden_questions import (
    MOST_BYTES,
    MOST_FILES,
    MOST_INVALID,
    MOST_QUESTIONS,
    GoldenQuestion,
    parse_lines,
    read_golden,
)
from rag_assets.sources.base import FetchedObject, ObjectGone, ObjectUnreadable, SourceObject
from rag_serving.lake.shards import Shard

SHARD = Shard("oslo", "people")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Files:
    """An in-memory source; `gone` is listed but cannot be found, and access to `locked` is denied."""

    def __init__(self, files: dict[str, bytes], *, gone: str = "", locked: str = "") -> None:
        self.files = files
        self.gone = gone
        self.locked = locked
        self.fetched: list[str] = []

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        for key in sorted(self.files):
            if key.startswith(prefix):
                yield [SourceObject(key, "etag", len(self.files[key]), NOW)]

    def shards(self) -> Iterator[Shard]:
        raise NotImplementedError

    def head(self, key: str) -> SourceObject | None:
        raise NotImplementedError

    def fetch(self, key: str) -> FetchedObject:
        self.fetched.append(key)
        if key == self.gone:
            raise ObjectGone(key)
        if key == self.locked:
            raise ObjectUnreadable(f"{key}: AccessDenied")
        return FetchedObject(self.files[key], "etag", NOW)

    def uri(self, key: str) -> str:
        raise NotImplementedError


def line(question: object = "Where?", document: object = "a.md", **more: object) -> bytes:
    return json.dumps({"question": question, "document": document, **more}).encode()


def parsed(data: bytes) -> list[tuple[int, GoldenQuestion | str]]:
    return list(parse_lines(data, SHARD))


def test_documents_are_named_relative_to_the_shard_or_the_source_and_may_be_several() -> None:
    written = b"\n".join(
        [
            line("Which of them?", ["a.md", "oslo/people/sub/b.md", "oslo/people/a.md"], quote=" two  words "),
            b"",
            line("And where?", "oslo/people/c.md", id=7),
        ]
    )
    assert parsed(b"\xef\xbb\xbf" + written + b"\r\n") == [
        (1, GoldenQuestion("Which of them?", ("oslo/people/a.md", "oslo/people/sub/b.md"), "two  words")),
        (3, GoldenQuestion("And where?", ("oslo/people/c.md",))),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        b"not json",
        b"[1]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"question": "q"}',
        line("  "),
        line("q" * 1001),
        line(7),
        line(document=[]),
        line(document=["x"] * 11),
        line(document={"a": 1}),
        line(document="x" * 1100),
        line(document="../../other/place.md"),
        line(document="_eval/more.jsonl"),
        line(document="a\u0000.md"),
        line(document="folder/"),
        line(quote="q" * 1001),
        b'{"question": "\\ud800", "document": "a"}',
    ],
)
def test_an_invalid_line_is_reported_and_the_others_are_read(wrong: bytes) -> None:
    first, second, third = parsed(b"\n".join([line("One?"), wrong, line("Three?")]))
    assert isinstance(first[1], GoldenQuestion)
    assert isinstance(third[1], GoldenQuestion)
    assert second[0] == 2
    assert isinstance(second[1], str)
    assert 0 < len(second[1]) <= 200


@given(st.binary(max_size=300) | st.lists(st.text(max_size=40)).map(lambda parts: "\n".join(parts).encode()))
def test_parsing_any_bytes_never_raises(data: bytes) -> None:
    for number, found in parsed(data):
        assert number >= 1
        assert isinstance(found, GoldenQuestion | str)


@example("0\x1f", ["a.md"])
@given(
    st.text(min_size=1, max_size=100).filter(lambda text: text.strip()),
    st.lists(st.from_regex(r"[a-zé_-]{1,8}(/[a-z]{1,8}){0,2}\.md", fullmatch=True), min_size=1, max_size=10),
)
def test_a_written_question_is_read_back_with_its_documents(question: str, documents: list[str]) -> None:
    documents = [name for name in documents if not name.startswith("_eval/")] or ["a.md"]
    ((_, found),) = parsed(line(question, documents))
    assert isinstance(found, GoldenQuestion)
    assert found.question == question.strip()
    assert found.documents == tuple(dict.fromkeys(f"oslo/people/{name}" for name in documents))


def test_files_are_read_in_key_order_and_other_files_are_ignored() -> None:
    source = Files(
        {
            "oslo/people/_eval/b.jsonl": line("Second?"),
            "oslo/people/_eval/a.jsonl": line("First?"),
            "oslo/people/_eval/notes.txt": b"Mine.",
            "oslo/people/_eval/sub/c.jsonl": line("Third?"),
            "oslo/people/_eval/.hidden.jsonl": line("Hidden?"),
            "oslo/people/_eval.jsonl": line("A document with this name?"),
            "oslo/people2/_eval/a.jsonl": line("Another shard's?"),
        }
    )
    golden = read_golden(source, SHARD)
    assert [question.question for question in golden.questions] == ["First?", "Second?", "Third?"]
    assert golden.invalid == ()
    assert len(source.fetched) == 3


def test_files_that_are_gone_inaccessible_or_too_large_are_reported() -> None:
    keys = [f"oslo/people/_eval/{name}.jsonl" for name in ("gone", "huge", "locked", "right")]
    source = Files(dict.fromkeys(keys, line()) | {keys[1]: b" " * (MOST_BYTES + 1)}, gone=keys[0], locked=keys[2])
    golden = read_golden(source, SHARD)
    assert len(golden.questions) == 1
    assert [(at.file, at.line) for at in golden.invalid] == [(key, 0) for key in keys[:3]]
    assert keys[1] not in source.fetched


def test_files_questions_and_invalid_lines_are_limited() -> None:
    many = Files({f"oslo/people/_eval/{number:03}.jsonl": line(f"{number}?") for number in range(MOST_FILES + 3)})
    golden = read_golden(many, SHARD)
    assert (len(golden.questions), len(golden.invalid), len(many.fetched)) == (MOST_FILES, 1, MOST_FILES)
    long = read_golden(Files({"oslo/people/_eval/a.jsonl": b"\n".join([line()] * (MOST_QUESTIONS + 5))}), SHARD)
    assert (len(long.questions), [at.line for at in long.invalid]) == (MOST_QUESTIONS, [MOST_QUESTIONS + 1])
    wrong = read_golden(Files({"oslo/people/_eval/a.jsonl": b"x\n" * 100_000}), SHARD)
    assert len(wrong.invalid) == MOST_INVALID + 1
