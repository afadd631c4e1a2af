"""Promise 3, below Dagster: whatever a document does to its parser, it does to nobody else. With real processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rag_assets.errors import ParserUnavailable
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import read_object
from rag_assets.extraction.sandbox.pool import ParserLimits, ParserPool

POISON = (sys.executable, str(Path(__file__).parents[2] / "poison_parser.py"))
LIMITS = ParserLimits(seconds=2, memory=448 * 2**20)


@pytest.fixture
def poisoned() -> Iterator[ParserPool]:
    """Two processes that obey what a key asks of them."""
    pool = ParserPool(LIMITS, 2, command=POISON)
    yield pool
    pool.close()


def reason_of(pool: ParserPool, key: str) -> QuarantineReason | None:
    try:
        pool.read(b"text", key)
    except ExtractionError as error:
        return error.reason if error.detail else None
    return None


def children() -> set[int]:
    """Processes whose parent is this one."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.parametrize("name", ["leave.md", "page.html", "plain.txt"])
def test_a_document_is_read_as_it_is_in_this_process(name: str) -> None:
    data = "# Élan\n\nDie Straße, 人事.\n\n- one\n- two\n".encode()
    pool = ParserPool(ParserLimits(), 1)
    try:
        assert pool.read(data, f"oslo/people/{name}") == read_object(data, f"oslo/people/{name}")
    finally:
        pool.close()


def test_what_cannot_be_read_comes_back_with_the_parser_s_own_reason() -> None:
    pool = ParserPool(ParserLimits(), 1)
    try:
        assert reason_of(pool, "oslo/people/page.zip") is QuarantineReason.UNSUPPORTED_TYPE
        with pytest.raises(ExtractionError, match="no bytes"):
            pool.read(b"", "oslo/people/empty.txt")
        assert pool.started == 1
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("a/b/crash.pdf", QuarantineReason.CRASHED),
        ("a/b/quit.pdf", QuarantineReason.CRASHED),
        ("a/b/hang.pdf", QuarantineReason.TIMED_OUT),
        ("a/b/spin.pdf", QuarantineReason.TIMED_OUT),
        ("a/b/swell.pdf", QuarantineReason.OUT_OF_MEMORY),
    ],
)
def test_a_document_that_ends_its_parser_costs_itself_and_one_restart(
    poisoned: ParserPool, key: str, reason: QuarantineReason
) -> None:
    assert reason_of(poisoned, "a/b/before.txt") is None
    assert reason_of(poisoned, key) is reason
    assert reason_of(poisoned, "a/b/after.txt") is None
    assert poisoned.started == 2


def test_an_answer_that_is_none_costs_its_document_alone(poisoned: ParserPool) -> None:
    assert reason_of(poisoned, "a/b/babble.txt") is QuarantineReason.CRASHED
    assert reason_of(poisoned, "a/b/after.txt") is None


def test_what_a_parser_prints_does_not_get_between_the_answers(poisoned: ParserPool) -> None:
    assert [reason_of(poisoned, key) for key in ("a/b/print.txt", "a/b/print.txt", "a/b/c.txt")] == [None] * 3
    assert poisoned.started == 1


def test_a_parser_process_knows_none_of_the_secrets_of_this_one(
    poisoned: ParserPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never tell")
    monkeypatch.setenv("RAG_REDIS_URL", "redis://:never-tell@host")
    (part,) = poisoned.read(b"", "a/b/environment").parts
    assert "PATH=" in part.document.text
    assert "never" not in part.document.text


def test_poison_among_many_documents_read_at_once_costs_itself_alone(poisoned: ParserPool) -> None:
    names = [f"a/b/{'crash' if number % 10 == 3 else 'page'}{number}.txt" for number in range(100)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda key: reason_of(poisoned, key), names))
    assert [name for name, reason in zip(names, found, strict=True) if reason is not None] == [
        name for name in names if "crash" in name
    ]
    assert poisoned.started <= 2 + 10


def test_a_process_makes_room_for_a_fresh_one_after_so_many_documents() -> None:
    pool = ParserPool(ParserLimits(documents=3), 1)
    try:
        assert [reason_of(pool, "a/b/c.txt") for _ in range(7)] == [None] * 7
        assert pool.started == 3
    finally:
        pool.close()


def test_a_closed_pool_leaves_no_process_behind() -> None:
    before = children()
    pool = ParserPool(LIMITS, 2, command=POISON)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda key: reason_of(pool, key), ["a/b/c.txt", "a/b/crash.txt", "a/b/d.txt"]))
    pool.close()
    assert children() == before


def test_a_document_larger_than_the_memory_of_its_parser_costs_itself_alone(poisoned: ParserPool) -> None:
    assert reason_of(poisoned, "a/b/before.txt") is None
    with pytest.raises(ExtractionError, match="RAG_PARSE_MEMORY") as caught:
        poisoned.read(bytes(460 * 2**20), "a/b/large.txt")
    assert caught.value.reason is QuarantineReason.OUT_OF_MEMORY
    assert reason_of(poisoned, "a/b/after.txt") is None


def test_parsers_that_cannot_start_are_no_document_s_fault() -> None:
    pool = ParserPool(LIMITS, 1, command=(sys.executable, "-c", "raise SystemExit(1)"))
    try:
        with pytest.raises(ParserUnavailable, match="exit status 1"):
            pool.read(b"text", "a/b/c.txt")
    finally:
        pool.close()


def test_a_process_that_was_ended_from_outside_is_replaced(poisoned: ParserPool) -> None:
    before = children()
    assert reason_of(poisoned, "a/b/c.txt") is None
    (parser,) = children() - before
    os.kill(parser, 9)
    while parser in children():
        continue
    assert reason_of(poisoned, "a/b/d.txt") is None
