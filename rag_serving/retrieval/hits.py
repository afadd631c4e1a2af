"""Convert the candidates of a search to hits."""

from collections.abc import Mapping, Sequence

from rag_serving.lake.search.fusion import Candidate
from rag_serving.results import Hit


def hits_of(candidates: Sequence[Candidate], reranked: Mapping[str, float] | None = None) -> list[Hit]:
    """Return the candidates as hits, in order; `reranked` holds a reranker's scores by chunk id."""
    names = ("chunk_id", "doc_id", "text", "source", "type", "title", "page", "start", "end", "modified_at")
    return [
        Hit(
            rank=rank,
            fused=round(candidate.fused, 6),
            score=None if candidate.score is None else round(candidate.score, 4),
            reranked=None if reranked is None else reranked[candidate.row["chunk_id"]],
            shard=candidate.row["shard"],
            heading_path=tuple(candidate.row["heading_path"] or ()),
            stale=candidate.row["stale"],
            also_in=candidate.also_in,
            path=candidate.row.get("path", ""),  # older tables lack some columns
            table_header=candidate.row.get("table_header", ""),
            **{name: candidate.row[name] for name in names},
        )
        for rank, candidate in enumerate(candidates, start=1)
    ]
