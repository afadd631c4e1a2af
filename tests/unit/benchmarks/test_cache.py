"""The cache benchmark: timing and question wordings."""

from __future__ import annotations

import asyncio

from benchmarks.cache.ours import Misses, Question, others
from benchmarks.cache.timing import cycled, measured, percentile
from rag_serving.cache.normalization import normalise


def test_percentiles_are_measured_values() -> None:
    assert percentile([3, 1, 2, 4], 0.5) == 3
    assert percentile([1], 0.95) == 1


def test_every_kind_of_question_is_asked_and_its_served_share_computed() -> None:
    asked: list[str] = []

    async def ask(question: str) -> bool:
        asked.append(question)
        await asyncio.sleep(0)
        return question == "a"

    kinds = {"yes": lambda count: cycled(["a"], count), "half": lambda count: cycled(["a", "b"], count)}
    figures = asyncio.run(measured(kinds, ask, 8, 3))
    assert {kind: one.served for kind, one in figures.items()} == {"yes": 1.0, "half": 0.5}
    assert all(one.p50 <= one.p95 and one.per_second > 0 for one in figures.values())
    assert set(asked) == {"a", "b"}


def test_paraphrases_are_different_questions_to_the_exact_tier() -> None:
    question = "How many weeks of parental leave are on full pay?"
    assert normalise(question) not in {normalise(text) for text in others(question)}


def test_no_miss_question_is_asked_twice() -> None:
    misses = Misses([Question("Who pays?", {})])
    texts = [question.text for count in (3, 2) for question in misses(count)]
    assert len(set(texts)) == 5
