"""The metrics of benchmarks.quality, checked character by character against the paper's definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.chunking import HALVES, half, intervals
from benchmarks.quality.spans import Chunk, Question, Scores, score

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6).map(
    lambda drawn: [(start, start + size) for start, size in drawn]
)


def chunk(start: int, end: int, corpus: str = "a") -> Chunk:
    return Chunk(corpus, start, end, "")


def test_scores_of_a_question_whose_answer_is_half_covered() -> None:
    question = Question("?", "a", ((10, 20), (30, 40)))
    found = [chunk(5, 20), chunk(100, 115), chunk(10, 20, "b")]
    scores = score(question, found, [*found[:2], chunk(20, 45), chunk(45, 60)])
    assert scores.recall == 10 / 20
    assert scores.precision == 10 / 40
    assert scores.iou == 10 / (40 + 10)
    # The chunk that starts where one reference ends touches it and the next; together the chunks cover both.
    assert scores.omega == 20 / 40


def test_retrieving_nothing_scores_zero() -> None:
    question = Question("?", "a", ((10, 20),))
    assert score(question, [], []) == Scores(0, 0, 0, 0)
    assert score(question, [chunk(20, 30, "b")], []) == Scores(0, 0, 0, 0)


@given(SPANS.filter(bool), SPANS, SPANS)
def test_scores_match_a_calculation_on_sets_of_characters(
    references: list[tuple[int, int]], retrieved: list[tuple[int, int]], corpus: list[tuple[int, int]]
) -> None:
    apart = [
        span for n, span in enumerate(references) if not any(span[0] < e and s < span[1] for s, e in references[:n])
    ]
    question = Question("?", "a", tuple(apart))
    scores = score(question, [chunk(*span) for span in retrieved], [chunk(*span) for span in corpus])
    wanted = {at for start, end in apart for at in range(start, end)}
    found = {at for start, end in retrieved for at in range(start, end)}
    taken = sum(end - start for start, end in retrieved)
    assert scores.recall == pytest.approx(len(wanted & found) / len(wanted))
    assert scores.precision == pytest.approx(len(wanted & found) / taken if taken else 0)
    union = taken + len(wanted - found)
    assert scores.iou == pytest.approx(len(wanted & found) / union)
    touching = [span for span in corpus if any(span[0] <= end and start <= span[1] for start, end in apart)]
    reached = {at for start, end in touching for at in range(start, end)}
    assert scores.omega == pytest.approx(len(wanted & reached) / len(wanted | reached))


def test_halves_are_about_equal_in_size_and_do_not_depend_on_other_questions() -> None:
    questions = [Question(f"What is rule {number}?", "a", ()) for number in range(400)]
    halves = [half(question) for question in questions]
    assert all(150 < halves.count(name) < 250 for name in HALVES)
    assert [half(question) for question in questions[::-1]] == halves[::-1]


def test_intervals_contain_the_difference_and_are_points_if_every_difference_is_equal() -> None:
    ones = [Scores(0.5, 0.25, number / 100, 0) for number in range(100)]
    others = [Scores(0.25, 0.25, (99 - number) / 100, 0) for number in range(100)]
    found = intervals(ones, others)
    assert found["recall"] == (25, 25, 25)
    assert found["precision"] == (0, 0, 0)
    difference, low, high = found["omega"]
    assert low < difference < high
    assert low < 0 < high
