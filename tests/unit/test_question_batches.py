"""Questions are embedded in batches of few shapes, for a runtime keeps memory for each that it met."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rag_serving.embedding import batches_of_few_shapes


@given(st.lists(st.integers(1, 600), max_size=80))
def test_every_question_is_in_one_batch_of_a_power_of_two_and_a_bounded_number_of_tokens(lengths: list[int]) -> None:
    batches = batches_of_few_shapes(lengths)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows).bit_count() == 1
        assert lengths[rows[0]] == max(lengths[row] for row in rows)
        assert len(rows) == 1 or len(rows) * lengths[rows[0]] <= 2048


@given(st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=40), min_size=50, max_size=200))
def test_common_questions_make_some_dozens_of_shapes(asked: list[list[int]]) -> None:
    shapes = {(len(rows), -(-lengths[rows[0]] // 8)) for lengths in asked for rows in batches_of_few_shapes(lengths)}
    assert len(shapes) <= 6 * 8
