"""Rerankers: an optional second look at the passages that a search found, by a model that reads question and passage.

The interface, rerankers behind an API by litellm, and a face for scoring functions such as a cross-encoder's.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from rag_serving.errors import RerankerUnavailable

MOST_RERANKED = 50
"""Candidates that are shown to a reranker at most: what fusion puts below is not worth its time."""

Call = Callable[..., Awaitable[Any]]
"""litellm.arerank, or what stands for it: takes model, query, documents and options, gives an answer with `results`."""


class Reranker(Protocol):
    """Scores passages for a question."""

    async def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """One score a passage, higher for better. Raises `RerankerUnavailable`."""
        ...


class ScoringReranker:
    """A reranker of any function that scores pairs of question and passage.

    A cross-encoder of sentence-transformers is one: ``ScoringReranker(CrossEncoder("…").predict)``. It is called in a
    thread of its own, one question at a time.
    """

    def __init__(self, score_pairs: Callable[[list[tuple[str, str]]], Any]) -> None:
        self._score_pairs = score_pairs
        self._one_at_a_time = asyncio.Lock()

    async def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        pairs = [(question, passage) for passage in passages]
        try:
            async with self._one_at_a_time:
                found = await asyncio.to_thread(self._score_pairs, pairs)
            scores = [float(score) for score in found]
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise RerankerUnavailable(f"the reranker failed: {type(error).__name__}") from error
        if len(scores) != len(passages):
            raise RerankerUnavailable(f"the reranker gave {len(scores)} scores for {len(passages)} passages")
        return scores


class HostedReranker:
    """A reranker that litellm reaches, such as ``cohere/rerank-v3.5``; the provider's own variables hold its key.

    `call` is litellm's unless it is given.
    """

    def __init__(self, model: str, *, timeout: float = 10.0, retries: int = 1, call: Call | None = None) -> None:
        self.model = model
        self._timeout = timeout
        self._retries = retries
        self._call = call

    async def scores(self, question: str, passages: Sequence[str]) -> list[float]:
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
            # litellm's errors come from every provider's own tree; all of them mean that there are no scores. Their
            # texts may hold what was sent, so that only the kind is told.
            raise RerankerUnavailable(f"the reranker {self.model} gave no scores ({type(error).__name__})") from error
        if found.keys() != set(range(len(passages))):
            raise RerankerUnavailable(f"the reranker {self.model} scored {len(found)} of {len(passages)} passages")
        return [found[place] for place in range(len(passages))]


def _litellm_rerank() -> Call:
    # Without this, importing litellm fetches a price list from the network and waits for it.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm
    except ImportError as error:
        raise RerankerUnavailable("hosted rerankers need litellm: pip install 'rag-shards[serving]'") from error
    module: Any = litellm
    return module.arerank
