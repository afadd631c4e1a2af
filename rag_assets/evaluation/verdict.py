"""Whether a measured version may be published: thresholds and the comparison with the published version."""

from collections.abc import Callable
from dataclasses import dataclass

from rag_assets.evaluation.records import Evaluation
from rag_assets.sources.base import Source
from rag_serving.lake.embedders.base import Embedder

FEWEST_QUESTIONS = 5
"""Fewer only warn: one of four is a quarter of the score, so that a single answer that moves down a place, which may
be chance, would keep a shard from its readers."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What a shard's evaluation needs beyond its tables, and what it must come to."""

    embedder: Callable[[], Embedder] | None = None
    """Loads the configured embedder; without it nothing is embedded."""
    source: Callable[[], Source] | None = None
    """Where golden questions lie; without it none are asked."""
    max_drop: float = 0.05
    """By how much the head's hit@10 and nDCG@10 may be below the published version's."""
    min_recall: float = 0.9
    """The least recall of the vector index; 0 lets any pass."""


def judge(evaluation: Evaluation, quality: Quality) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the problems that stop a publish, and the warnings that do not. Pure.

    `assess` calls it; `publish` and the check `retrieval_holds` act on it.
    """
    drops: list[str] = []
    if evaluation.head is not None and evaluation.published is not None:
        head, before = evaluation.head.hybrid, evaluation.published.hybrid
        for name, now, then in (
            ("hit@10", head.hit_at_10, before.hit_at_10),
            ("nDCG@10", head.ndcg_at_10, before.ndcg_at_10),
        ):
            if then - now > quality.max_drop + 1e-9:
                drops.append(
                    f"{name} of {evaluation.questions} golden questions fell from {then:.3f} to {now:.3f} "
                    f"(RAG_QUALITY_MAX_DROP is {quality.max_drop:g})"
                )
    recall: list[str] = []
    if evaluation.index_recall is not None and evaluation.index_recall < quality.min_recall - 1e-9:
        recall.append(
            f"the vector index finds {evaluation.index_recall:.3f} of the nearest passages "
            f"(RAG_QUALITY_MIN_RECALL is {quality.min_recall:g})"
        )
    warnings = [f"{evaluation.invalid} lines of golden questions are not read"] if evaluation.invalid else []
    if evaluation.questions < FEWEST_QUESTIONS:
        return tuple(recall), tuple(warnings + [f"{drop}; too few questions to block" for drop in drops])
    return tuple(drops + recall), tuple(warnings)
