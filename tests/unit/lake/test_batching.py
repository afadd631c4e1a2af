"""Batching: passages with little padding, questions with few shapes.

A runtime keeps memory for every shape it has seen.
"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rag_serving.lake.embedders.batching import batches_by_length, batches_of_few_shapes


@given(st.lists(st.integers(1, 600), max_size=80))
def test_every_question_is_in_one_batch_of_bounded_tokens_and_a_power_of_two_rows(lengths: list[int]) -> None:
    batches = batches_of_few_shapes(lengths)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows).bit_count() == 1
        assert lengths[rows[0]] == max(lengths[row] for row in rows)
        assert len(rows) == 1 or len(rows) * lengths[rows[0]] <= 2048


@given(st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=40), min_size=50, max_size=200))
def test_common_questions_produce_at_most_48_shapes(asked: list[list[int]]) -> None:
    shapes = {(len(rows), -(-lengths[rows[0]] // 8)) for lengths in asked for rows in batches_of_few_shapes(lengths)}
    assert len(shapes) <= 6 * 8


@given(st.lists(st.integers(1, 600), max_size=80), st.integers(0, 40))
def test_every_passage_is_in_one_batch_with_bounded_rows_tokens_and_padding(lengths: list[int], most: int) -> None:
    encoded = [[0] * length for length in lengths]
    batches = batches_by_length(encoded, most_tokens=512, most_rows=6, most_padding=most)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        width = lengths[rows[0]]
        assert width == max(lengths[row] for row in rows)
        assert len(rows) <= 6
        assert len(rows) == 1 or len(rows) * width <= 512
        assert sum(width - lengths[row] for row in rows) <= most


@given(st.lists(st.integers(1, 600), min_size=1, max_size=80))
def test_a_batch_is_filled_before_the_next_one_starts(lengths: list[int]) -> None:
    batches = batches_by_length([[0] * length for length in lengths], most_tokens=512, most_rows=6, most_padding=14)
    for rows, following in pairwise(batches):
        width, length = lengths[rows[0]], lengths[following[0]]
        padding = sum(width - lengths[row] for row in (*rows, following[0]))
        assert len(rows) == 6 or (len(rows) + 1) * width > 512 or padding > 14
        assert length <= lengths[rows[-1]]
