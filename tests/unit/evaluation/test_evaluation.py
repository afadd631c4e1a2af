"""Retrieval metrics and the publish decision based on them, as pure functions."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_assets.evaluation.metrics import ResolvedQuestion, Retrieval, Scores, places_in, scores
from rag_assets.evaluation.records import KEPT, Evaluation, Record, replace_evaluations
from rag_assets.evaluation.verdict import Quality, judge
from rag_assets.publishing.checks import uncovered
from rag_serving.lake.search.fusion import Candidate

NONE = Scores(0, 0, 0, 0, 0)
EVALUATION = Evaluation(
    at=datetime(2026, 1, 1, tzinfo=UTC), run_id="a run", version=7, fingerprint="f" * 32, compared_with=6, questions=20
)
places = st.sets(st.integers(1, 10), max_size=4).map(lambda found: tuple(sorted(found)))
found_of = st.lists(places.flatmap(lambda at: st.tuples(st.just(at), st.integers(max(1, len(at)), 10))), max_size=8)


def retrieval(hit: float, ndcg: float) -> Retrieval:
    return Retrieval(NONE, replace(NONE, hit_at_10=hit, ndcg_at_10=ndcg))


def asked(*documents: str, quote: str = "") -> ResolvedQuestion:
    return ResolvedQuestion("?", tuple(frozenset(document.split("+")) for document in documents), quote)


def ranking(*documents: str) -> list[Candidate]:
    """Passages of the given documents; the text follows a colon."""
    parts = [document.partition(":") for document in documents]
    return [Candidate({"doc_id": name, "text": text}, 0.0, None) for name, _, text in parts]


def test_scores_match_their_textbook_definitions() -> None:
    found = scores([((1,), 1), ((3, 7), 2), ((), 1), ((6,), 1)])
    assert (found.hit_at_1, found.hit_at_5, found.hit_at_10) == (0.25, 0.5, 0.75)
    assert found.mrr_at_10 == pytest.approx((1 + 1 / 3 + 1 / 6) / 4)
    second = (1 / math.log2(4) + 1 / math.log2(8)) / (1 + 1 / math.log2(3))
    assert found.ndcg_at_10 == pytest.approx((1 + second + 1 / math.log2(7)) / 4)


@given(found_of)
def test_scores_lie_between_0_and_1_and_in_order(found: list[tuple[tuple[int, ...], int]]) -> None:
    of = scores(found)
    assert 0 <= of.hit_at_1 <= of.hit_at_5 <= of.hit_at_10 <= 1
    assert of.hit_at_1 <= of.mrr_at_10 + 1e-9
    assert 0 <= of.mrr_at_10 <= of.hit_at_10 + 1e-9
    assert 0 <= of.ndcg_at_10 <= 1 + 1e-9
    assert (of.ndcg_at_10 > 0) == (of.hit_at_10 > 0)


@given(found_of, st.integers(1, 9))
def test_a_passage_that_moves_up_worsens_no_score(found: list[tuple[tuple[int, ...], int]], place: int) -> None:
    before, after = scores([*found, ((place + 1,), 1)]), scores([*found, ((place,), 1)])
    assert after.ndcg_at_10 > before.ndcg_at_10
    assert after.mrr_at_10 > before.mrr_at_10
    assert after.hit_at_10 == before.hit_at_10


def test_a_document_counts_once_at_its_first_passage_and_under_any_of_its_ids() -> None:
    assert places_in(ranking("x", "b", "a", "b", "a"), asked("a", "b", "c")) == (2, 3)
    assert places_in(ranking("x", "a2", "a1"), asked("a1+a2")) == (2,)
    assert places_in(ranking(*["x"] * 10, "a"), asked("a")) == ()


def test_a_quote_must_occur_in_the_passage_ignoring_whitespace() -> None:
    found = ranking("a:no such words", "x:two  weeks of\nleave", "a:full two\n weeks  of leave")
    assert places_in(found, asked("a", quote="two weeks of leave")) == (3,)
    assert places_in(found, asked("a", quote="three weeks")) == ()


def test_a_copy_dropped_from_the_ranking_counts_at_the_rank_of_its_twin() -> None:
    twins = [replace(ranking("x")[0], copies=("b",)), *ranking("a")]
    assert places_in(twins, asked("a", "b")) == (1, 2)


@pytest.mark.parametrize(
    ("hit", "ndcg", "blocks"),
    [(0.9, 0.8, False), (0.85, 0.75, False), (0.84, 0.8, True), (0.9, 0.74, True), (1.0, 1.0, False)],
)
def test_a_drop_beyond_max_drop_blocks(hit: float, ndcg: float, blocks: bool) -> None:
    evaluation = replace(EVALUATION, head=retrieval(hit, ndcg), published=retrieval(0.9, 0.8))
    problems, warnings = judge(evaluation, Quality())
    assert (bool(problems), warnings) == (blocks, ())
    assert judge(evaluation, Quality(max_drop=1)) == ((), ())
    if problems:
        assert "RAG_QUALITY_MAX_DROP" in problems[0]


@pytest.mark.parametrize("questions", [1, 4])
def test_with_few_questions_a_drop_only_warns(questions: int) -> None:
    evaluation = replace(EVALUATION, questions=questions, head=retrieval(0, 0), published=retrieval(1, 1))
    problems, warnings = judge(evaluation, Quality())
    assert problems == ()
    assert len(warnings) == 2
    assert "too few questions to block" in warnings[0]


def test_a_first_version_has_no_baseline_and_passes() -> None:
    assert judge(replace(EVALUATION, head=retrieval(0, 0)), Quality()) == ((), ())


def test_index_recall_below_the_minimum_blocks_unless_the_minimum_is_zero() -> None:
    evaluation = replace(EVALUATION, questions=0, index_recall=0.89)
    assert "RAG_QUALITY_MIN_RECALL" in judge(evaluation, Quality())[0][0]
    assert judge(evaluation, Quality(min_recall=0))[0] == ()
    assert judge(replace(evaluation, index_recall=0.9), Quality())[0] == ()


def test_a_version_that_misses_most_of_its_own_documents_is_stopped() -> None:
    half = replace(EVALUATION, known_items=4, known_items_missed=("Leave", "leave.md"))
    most = replace(half, known_items_missed=("Leave", "leave.md", "E4711"))
    assert judge(half, Quality())[0] == ()
    assert judge(most, Quality())[0] == (
        "3 of 4 documents are not found by their own title, file name or code, such as 'Leave'",
    )
    assert judge(most, Quality(max_drop=1))[0] == ()


def test_invalid_lines_only_warn() -> None:
    problems, warnings = judge(replace(EVALUATION, invalid=3), Quality())
    assert (problems, len(warnings)) == ((), 1)


def test_only_the_newest_evaluations_are_kept_and_survive_a_round_trip() -> None:
    record = Record()
    for version in range(1, KEPT + 6):
        record = replace_evaluations(record, replace(EVALUATION, version=version, head=retrieval(0.5, 0.25)))
    assert [evaluation.version for evaluation in record.evaluations] == list(range(KEPT + 5, 5, -1))
    assert Record.model_validate_json(record.model_dump_json()) == record


@given(st.text("ab-|1 \n\t", max_size=60), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5))
def test_letters_and_digits_outside_the_spans_are_counted(text: str, pairs: list[tuple[int, int]]) -> None:
    spans = sorted((min(pair), max(pair)) for pair in pairs)
    covered = {place for start, end in spans for place in range(start, end)}
    expected = sum(letter.isalnum() and place not in covered for place, letter in enumerate(text))
    assert uncovered(text, spans) == expected
