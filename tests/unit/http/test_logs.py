"""Logs of the service: an outage is no line for each request."""

from __future__ import annotations

import logging

from rag_serving.http.logs import FIELDS, WithoutRepetitions


def record(message: str, *arguments: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("rag_serving", level, __file__, 1, message, arguments, None)


def test_the_same_warning_is_written_once_a_minute_with_the_number_that_was_left_out() -> None:
    now = 0.0
    unrepeated = WithoutRepetitions(clock=lambda: now)
    assert [unrepeated.filter(record("no %s", "lake")) for _ in range(5)] == [True] + [False] * 4
    assert unrepeated.filter(record("no %s", "model"))
    now = 61.0
    later = record("no %s", "lake")
    assert unrepeated.filter(later)
    assert getattr(later, FIELDS) == {"repeated": 4}
    assert not unrepeated.filter(record("no %s", "lake"))


def test_lines_about_single_requests_are_all_written() -> None:
    unrepeated = WithoutRepetitions()
    assert all(unrepeated.filter(record("GET /v1/shards 200", level=logging.INFO)) for _ in range(5))
