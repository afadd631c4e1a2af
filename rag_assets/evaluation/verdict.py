"""Decide whether an evaluated version may be published, by thresholds and by comparison with the published version."""

from collections.abc import Callable
from dataclasses import dataclass

from rag_assets.evaluation.records import Evaluation
from rag_assets.sources.base import Source
from rag_serving.lake.embedders.base import Embedder

FEWEST_QUESTIONS = 5
"""Fewer questions only warn: one of four is a quarter of the score, so a single answer that moves down by chance would
block a publish."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What an evaluation needs besides the tables, and its thresholds."""

    embedder: Callable[[], Embedder] | None = None
    """Loads the configured embedder; None: embed nothing."""
    source: Callable[[], Source] | None = None
    """Opens the source of golden questions; None: ask none."""
    max_drop: float = 0.05
    """How far hit@10 or nDCG@10 may fall below the published version's, as an absolute difference."""
    min_recall: float = 0.9
    """Minimum recall of the vector index; 0 disables it."""


MOST_KNOWN_ITEMS_MISSED = 0.5
"""Share of known items that may be missed: many documents can have one title."""


def judge(evaluation: Evaluation, quality: Quality) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the problems, which prevent a publish, and the warnings. Pure."""
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
    missed = evaluation.known_items_missed
    if quality.max_drop < 1 and len(missed) > MOST_KNOWN_ITEMS_MISSED * evaluation.known_items:
        recall.append(
            f"{len(missed)} of {evaluation.known_items} documents are not found by their own title, file name or code, "
            f"such as {missed[0]!r}"
        )
    warnings = [f"{evaluation.invalid} lines of golden questions are invalid"] if evaluation.invalid else []
    if evaluation.questions < FEWEST_QUESTIONS:
        return tuple(recall), tuple(warnings + [f"{drop}; too few questions to block" for drop in drops])
    return tuple(drops + recall), tuple(warnings)
