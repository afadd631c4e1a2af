"""Rerankers: the calls they make, the scores they return, and their failures."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rag_serving.errors import RerankerUnavailable
from rag_serving.retrieval.rerankers import HostedReranker, ScoringReranker


def scores(reranker: Any, passages: list[str]) -> list[float]:
    return asyncio.run(reranker.scores("how long?", passages))


def test_a_scoring_function_gets_pairs_of_question_and_passage() -> None:
    seen: list[Any] = []

    def predict(pairs: list[tuple[str, str]]) -> list[int]:
        seen.extend(pairs)
        return [len(passage) for _, passage in pairs]

    assert scores(ScoringReranker(predict), ["a", "bbb"]) == [1.0, 3.0]
    assert seen == [("how long?", "a"), ("how long?", "bbb")]


@pytest.mark.parametrize("result", [[1.0], None, ["x", "y"], RuntimeError("out of memory")])
def test_a_failing_scoring_function_makes_the_reranker_unavailable(result: Any) -> None:
    def predict(_pairs: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    with pytest.raises(RerankerUnavailable):
        scores(ScoringReranker(predict), ["a", "b"])


def hosted(results: Any) -> HostedReranker:
    async def call(**options: Any) -> Any:
        assert options["documents"] == ["a", "b"]
        assert options["top_n"] == 2
        if isinstance(results, Exception):
            raise results
        return SimpleNamespace(results=results)

    return HostedReranker("cohere/rerank-v3.5", call=call)


def test_a_hosted_reranker_returns_scores_in_the_order_of_the_passages() -> None:
    results = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]
    assert scores(hosted(results), ["a", "b"]) == [0.1, 0.9]


@pytest.mark.parametrize(
    "results",
    [
        [{"index": 1, "relevance_score": 0.9}],
        [{"index": 5, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.9}],
        [{"index": 0}, {"index": 1}],
        None,
        ValueError("key sk-secret refused"),
    ],
)
def test_a_hosted_reranker_that_fails_or_omits_scores_is_unavailable_without_leaking_keys(results: Any) -> None:
    with pytest.raises(RerankerUnavailable) as caught:
        scores(hosted(results), ["a", "b"])
    assert "sk-secret" not in str(caught.value)


def test_a_hosted_reranker_that_hangs_is_unavailable() -> None:
    async def call(**_options: Any) -> Any:
        await asyncio.sleep(60)

    reranker = HostedReranker("m", timeout=0.01, retries=0, call=call)
    reranker._timeout = -0.99  # offsets the extra second of grace, to keep the test fast
    with pytest.raises(RerankerUnavailable, match="TimeoutError"):
        scores(reranker, ["a"])
