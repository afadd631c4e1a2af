"""The load benchmark: which questions are asked, and how the measurements of a step are judged."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from benchmarks.load.__main__ import judged
from benchmarks.load.people import Plan, questions_of

COMMON = [{"question": f"What is number {number}?", "regions": ["oslo"]} for number in range(20)]
PLAN = Plan("http://127.0.0.1:1", "key", 100, 10.0, 60.0, 5.0, COMMON, 0.5, 1_000)


def met(state: str, seconds: float, problem: str = "") -> dict[str, Any]:
    return {"at": 0.0, "state": state, "begun": seconds / 2, "whole": seconds, "problem": problem}


def test_half_of_the_questions_are_common_ones_and_the_others_never_repeat() -> None:
    texts = [body["question"] for body in islice(questions_of(PLAN), 2_000)]
    common = {body["question"] for body in COMMON}
    repeated = [text for text in texts if text in common]
    new = [text for text in texts if text not in common]
    assert 900 < len(repeated) < 1_100
    assert len(set(new)) == len(new)
    assert repeated.count(COMMON[0]["question"]) > repeated.count(COMMON[19]["question"])


@pytest.mark.parametrize(
    ("more", "sustained"),
    [
        ([], "yes"),
        ([met("exact", 0.3)] * 10, "no"),
        ([met("miss", 5.0)] * 100, "yes"),
        ([met("error", 0.1, "status 503")], "no"),
    ],
)
def test_a_rate_is_sustained_while_hits_are_fast_and_nothing_fails(more: list[dict[str, Any]], sustained: str) -> None:
    row = judged(PLAN, {"met": [met("exact", 0.01)] * 90 + more, "cores": {}})
    assert row["sustained"] == sustained
    assert row["questions/s"] == 10.0
