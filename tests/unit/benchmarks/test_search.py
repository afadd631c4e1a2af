"""The search benchmark: sentence cutting, exact search, recall and percentiles."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.search.contenders import collapsed
from benchmarks.search.lake import chunk_id, row_of
from benchmarks.search.measures import nearest, percentile, recall
from benchmarks.search.passages import LENGTHS, cuttings, runs, sentences, widened


def test_text_is_cut_at_sentences_and_lines_and_short_ones_join_the_next() -> None:
    text = "# Leave\n\nEverybody has thirty days of leave a year. Yes. Ask the head of your department for it.\n"
    assert [text[start:end] for start, end in sentences(text)] == [
        "# Leave\n\nEverybody has thirty days of leave a year.",
        "Yes. Ask the head of your department for it.",
    ]


def test_japanese_sentences_are_cut_without_a_space() -> None:
    text = "休暇は年に三十日あります。" * 3 + "部長に申し込んでください。" * 3
    assert "".join(text[start:end] for start, end in sentences(text)) == text
    assert len(sentences(text)) > 1


@given(st.text(alphabet="ab .\n。", max_size=200))
def test_sentences_hold_all_text_except_whitespace_in_order(text: str) -> None:
    spans = sentences(text)
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


@given(st.integers(0, 30), st.sampled_from(list(cuttings())))
def test_a_cutting_splits_a_text_without_overlap(count: int, cutting: tuple[int, int]) -> None:
    length, offset = cutting
    parts = runs(count, length, offset)
    assert [at for first, behind in parts for at in range(first, behind)] == list(range(count))
    assert all(behind - first <= length for first, behind in parts)


def test_cuttings_are_unique() -> None:
    every = list(cuttings())
    assert len(every) == len(set(every)) == sum(LENGTHS)


def test_exact_search_compares_every_row() -> None:
    drawn = np.random.default_rng(3)
    vectors = drawn.standard_normal((70_000, 4), dtype=np.float32)
    questions = drawn.standard_normal((3, 4), dtype=np.float32)
    expected = np.argsort(-(questions @ vectors.T), axis=1)[:, :5]
    assert nearest(vectors, questions, 5).tolist() == expected.tolist()


def test_padding_with_zeros_changes_no_dot_product() -> None:
    vectors = np.eye(3, dtype=np.float32)
    wide = widened(vectors, 8)
    assert wide.shape == (3, 8)
    assert (wide @ wide.T == vectors @ vectors.T).all()


def test_recall_is_the_share_of_exact_results_found() -> None:
    assert recall([1, 2, 9], [1, 2, 3, 4]) == 0.5
    assert recall([], []) == 1.0


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (95, 4), (0, 1), (100, 4)])
def test_percentiles_are_measured_values(percent: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], percent) == expected


def test_rows_that_repeat_a_better_row_are_not_expected() -> None:
    texts = pa.chunked_array([["One passage about leave.", "one passage about leave", "Another about travel."]])
    assert collapsed(texts, [1, 0, 2], 2) == [1, 2]


def test_a_chunk_id_maps_back_to_its_row() -> None:
    assert [row_of(chunk_id(row)) for row in (0, 17, 1_012_000)] == [0, 17, 1_012_000]
