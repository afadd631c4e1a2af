"""Rerankers: an optional second ranking of the passages found, by a model that reads question and passage together.

Contains the protocol, rerankers behind an API (by litellm), and an adapter for scoring functions such as a
cross-encoder's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from rag_serving.errors import RerankerUnavailable
from rag_serving.litellm_calls import import_litellm

MOST_RERANKED = 50
"""Maximum candidates to rerank; those that fusion ranks lower are not worth the time."""

Call = Callable[..., Awaitable[Any]]
"""litellm.arerank or a replacement: takes model, query, documents and options; its response has `results`."""


class Reranker(Protocol):
    """Scores passages for a question."""

    async def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """Return one score per passage, higher for better; raises `RerankerUnavailable`."""
        ...


class ScoringReranker:
    """Adapts a function that scores pairs of question and passage, called in a thread for one question at a time.

    For a cross-encoder of sentence-transformers: ``ScoringReranker(CrossEncoder("…").predict)``.
    """

    def __init__(self, score_pairs: Callable[[list[tuple[str, str]]], Any]) -> None:
        self._score_pairs = score_pairs
        self._one_at_a_time = asyncio.Lock()

    async def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """Call the function with one pair per passage."""
        pairs = [(question, passage) for passage in passages]
        try:
            async with self._one_at_a_time:
                found = await asyncio.to_thread(self._score_pairs, pairs)
            scores = [float(score) for score in found]
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise RerankerUnavailable(f"the reranker failed: {type(error).__name__}") from error
        if len(scores) != len(passages):
            raise RerankerUnavailable(f"the reranker returned {len(scores)} scores for {len(passages)} passages")
        return scores


class HostedReranker:
    """A reranker that litellm supports, such as ``cohere/rerank-v3.5``; its key is in the provider's usual variables.

    `call` replaces litellm's function.
    """

    def __init__(self, model: str, *, timeout: float = 10.0, retries: int = 1, call: Call | None = None) -> None:
        self.model = model
        self._timeout = timeout
        self._retries = retries
        self._call = call

    async def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """Call the API once, with litellm's retries."""
        call = self._call or await asyncio.to_thread(_litellm_rerank)
        found: dict[int, float] = {}
        try:
            async with asyncio.timeout(self._timeout * (self._retries + 1) + 1):
                answer = await call(
                    model=self.model,
                    query=question,
                    documents=list(passages),
                    top_n=len(passages),
                    num_retries=self._retries,
                    timeout=self._timeout,
                )
            for result in answer.results:
                found[int(result["index"])] = float(result["relevance_score"])
        except Exception as error:
            # litellm's errors have no common base class; only the class is shown, because messages may quote the input.
            raise RerankerUnavailable(f"the reranker {self.model} failed ({type(error).__name__})") from error
        if found.keys() != set(range(len(passages))):
            raise RerankerUnavailable(f"the reranker {self.model} scored {len(found)} of {len(passages)} passages")
        return [found[place] for place in range(len(passages))]


def _litellm_rerank() -> Call:
    return import_litellm().arerank
