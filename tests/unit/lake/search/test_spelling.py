"""One typo is forgiven where no passage has the word."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rag_serving.lake.search.spelling import corrections, is_one_edit, misspelt

ROWS = pa.table({"words": ["parental leav reimburs", "travel expens"]})


@pytest.mark.parametrize("typo", ["reimbrus", "reimbus", "reimburrs", "reimburz"])
def test_a_swapped_missing_added_or_wrong_letter_is_one_edit(typo: str) -> None:
    assert is_one_edit(typo, "reimburs")
    assert corrections([typo], ROWS) == {typo: "reimburs"}


@pytest.mark.parametrize("other", ["reimburs", "rembus", "imburse", "reimbursed", ""])
def test_anything_else_is_not(other: str) -> None:
    assert not is_one_edit("reimburs", other)


def test_only_long_words_that_no_row_has_are_looked_up() -> None:
    assert misspelt(["reimbrus", "reimburs", "levs", "adr16"], [ROWS]) == ["reimbrus"]
