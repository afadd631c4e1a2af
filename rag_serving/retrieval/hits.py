"""Convert the candidates of a search to hits, and the rows of a document to the document."""

from collections.abc import Mapping, Sequence
from typing import Any

from rag_serving.lake.search.fusion import Candidate
from rag_serving.results import Document, Hit, Passage
from rag_serving.retrieval.source_links import source_link


def hits_of(
    candidates: Sequence[Candidate], reranked: Mapping[str, float] | None = None, link: str | None = None
) -> list[Hit]:
    """Return the candidates as hits, in order.

    `reranked` holds a reranker's scores by chunk id, `link` is the template of links to documents.
    """
    names = ("chunk_id", "doc_id", "text", "source", "type", "title", "page", "start", "end", "modified_at")
    return [
        Hit(
            rank=rank,
            fused=round(candidate.fused, 6),
            score=None if candidate.score is None else round(candidate.score, 4),
            reranked=None if reranked is None else reranked[candidate.row["chunk_id"]],
            shard=candidate.row["shard"],
            link=source_link(link, candidate.row["shard"], candidate.row.get("path", ""), candidate.row["source"]),
            heading_path=tuple(candidate.row["heading_path"] or ()),
            stale=candidate.row["stale"],
            also_in=candidate.also_in,
            path=candidate.row.get("path", ""),  # older tables lack some columns
            table_header=candidate.row.get("table_header", ""),
            **{name: candidate.row[name] for name in names},
        )
        for rank, candidate in enumerate(candidates, start=1)
    ]


def document_of(
    rows: Sequence[Mapping[str, Any]], first: int, *, total: int, pages: int | None, link: str | None
) -> Document | None:
    """Return the document with these of its `total` rows, from number `first` on; None without rows.

    `pages` is the number of its last page, `link` the template of links to documents.
    """
    if not rows:
        return None
    head = rows[0]
    shard, path = f"{head['region']}/{head['department']}", head.get("path", "")
    after = first + len(rows)
    return Document(
        shard=shard,
        path=path,
        link=source_link(link, shard, path, head["source"]),
        pages=pages,
        passages=tuple(map(_passage, rows)),
        next=after if after < total else None,
        total=total,
        **{name: head[name] for name in ("source", "title", "doc_id", "type", "modified_at", "etag", "stale")},
    )


def _passage(row: Mapping[str, Any]) -> Passage:
    return Passage(
        heading_path=tuple(row["heading_path"] or ()),
        table_header=row.get("table_header", ""),
        **{name: row[name] for name in ("start", "end", "page", "text")},
    )
