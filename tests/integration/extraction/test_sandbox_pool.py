"""Promise 3, without Dagster: a document that crashes its parser affects no other document. Uses real processes."""

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
    """A pool of two processes that fail in the way a document's key names."""
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
    """Return the ids of this process's children."""
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
def test_a_parser_process_returns_the_same_result_as_this_process(name: str) -> None:
    data = "# Élan\n\nDie Straße, 人事.\n\n- one\n- two\n".encode()
    pool = ParserPool(ParserLimits(), 1)
    try:
        assert pool.read(data, f"oslo/people/{name}") == read_object(data, f"oslo/people/{name}")
    finally:
        pool.close()


def test_an_unreadable_document_is_refused_with_the_parsers_own_reason() -> None:
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
def test_a_document_that_kills_its_parser_fails_alone_and_costs_one_restart(
    poisoned: ParserPool, key: str, reason: QuarantineReason
) -> None:
    assert reason_of(poisoned, "a/b/before.txt") is None
    assert reason_of(poisoned, key) is reason
    assert reason_of(poisoned, "a/b/after.txt") is None
    assert poisoned.started == 2


def test_a_malformed_parser_reply_fails_only_its_own_document(poisoned: ParserPool) -> None:
    assert reason_of(poisoned, "a/b/babble.txt") is QuarantineReason.CRASHED
    assert reason_of(poisoned, "a/b/after.txt") is None


def test_output_printed_by_a_parser_does_not_corrupt_its_replies(poisoned: ParserPool) -> None:
    assert [reason_of(poisoned, key) for key in ("a/b/print.txt", "a/b/print.txt", "a/b/c.txt")] == [None] * 3
    assert poisoned.started == 1


def test_a_parser_process_does_not_inherit_secrets_from_the_environment(
    poisoned: ParserPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never tell")
    monkeypatch.setenv("RAG_REDIS_URL", "redis://:never-tell@host")
    (part,) = poisoned.read(b"", "a/b/environment").parts
    assert "PATH=" in part.document.text
    assert "never" not in part.document.text


def test_poisonous_documents_among_many_read_in_parallel_fail_alone(poisoned: ParserPool) -> None:
    names = [f"a/b/{'crash' if number % 10 == 3 else 'page'}{number}.txt" for number in range(100)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda key: reason_of(poisoned, key), names))
    assert [name for name, reason in zip(names, found, strict=True) if reason is not None] == [
        name for name in names if "crash" in name
    ]
    assert poisoned.started <= 2 + 10


def test_a_parser_process_is_replaced_after_a_number_of_documents() -> None:
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


def test_a_document_larger_than_its_parsers_memory_fails_alone(poisoned: ParserPool) -> None:
    assert reason_of(poisoned, "a/b/before.txt") is None
    with pytest.raises(ExtractionError, match="RAG_PARSE_MEMORY") as caught:
        poisoned.read(bytes(460 * 2**20), "a/b/large.txt")
    assert caught.value.reason is QuarantineReason.OUT_OF_MEMORY
    assert reason_of(poisoned, "a/b/after.txt") is None


def test_parsers_that_cannot_start_raise_parser_unavailable_and_blame_no_document() -> None:
    pool = ParserPool(LIMITS, 1, command=(sys.executable, "-c", "raise SystemExit(1)"))
    try:
        with pytest.raises(ParserUnavailable, match="exit status 1"):
            pool.read(b"text", "a/b/c.txt")
    finally:
        pool.close()


def test_a_parser_process_killed_from_outside_is_replaced(poisoned: ParserPool) -> None:
    before = children()
    assert reason_of(poisoned, "a/b/c.txt") is None
    (parser,) = children() - before
    os.kill(parser, 9)
    while parser in children():
        continue
    assert reason_of(poisoned, "a/b/d.txt") is None
