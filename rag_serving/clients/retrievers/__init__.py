"""Retrievers for frameworks over a client, one module for each; the framework itself is installed by its user."""

from typing import Any

from rag_serving.results import Hit


def metadata_of(hit: Hit) -> dict[str, Any]:
    """Return what a framework keeps beside the text of a passage; only values that JSON has."""
    return hit.model_dump(mode="json", exclude={"text"})


def score_of(hit: Hit) -> float:
    """Return the score that orders the passages of one search; those of different searches are not comparable."""
    return hit.fused if hit.reranked is None else hit.reranked
