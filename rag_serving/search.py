"""Hybrid search over pinned versions of shard tables: vector and full text, fused by reciprocal rank.

Reciprocal rank fusion after Cormack, Clarke and Büttcher (SIGIR 2009), with their constant of 60.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_serving.catalog import CatalogEntry
from rag_serving.errors import LakeUnavailable
from rag_serving.results import Hit
from rag_serving.shards import Shard
from rag_serving.tables import SHARDS, connect_async

if TYPE_CHECKING:
    import lancedb
    import numpy.typing as npt

_FUSION = 60
_OPEN_TABLES = 512
_COLUMNS = [
    *(
        "chunk_id",
        "doc_id",
        "text",
        "vector",
        "source",
        "type",
        "title",
        "heading_path",
        "page",
        "start",
        "end",
    ),
    *("region", "department", "modified_at", "stale"),
]


class Searcher:
    """Searches published versions; keeps tables open, each pinned to the version that the catalog named."""

    def __init__(self, lake_uri: str, *, concurrency: int = 8) -> None:
        self._lake_uri = lake_uri
        self._gate = asyncio.Semaphore(concurrency)
        self._connection: lancedb.AsyncConnection | None = None
        self._tables: OrderedDict[tuple[Shard, int], Any] = OrderedDict()

    async def search(
        self,
        question: str,
        vectors: Mapping[str, npt.NDArray[np.float32]],
        entries: Sequence[CatalogEntry],
        k: int,
    ) -> tuple[list[Hit], tuple[str, ...]]:
        """The `k` best passages of those shards, and the shards that could not be searched (marked, not hidden).

        `vectors` holds the question's vector by fingerprint. Raises `LakeUnavailable` when no shard could be searched.
        """
        searched = [entry for entry in entries if entry.current.chunks]
        results = await asyncio.gather(
            *(self._search_shard(question, vectors[entry.current.fingerprint], entry, k) for entry in searched),
            return_exceptions=True,
        )
        by_vector: list[dict[str, Any]] = []
        by_text: list[dict[str, Any]] = []
        failed: list[str] = []
        problem: BaseException | None = None
        for entry, result in zip(searched, results, strict=True):
            if isinstance(result, (OSError, RuntimeError, ValueError, LakeUnavailable)):
                failed.append(f"shard_unavailable:{entry.shard}")
                problem = result
            elif isinstance(result, BaseException):
                raise result
            else:
                by_vector += result[0]
                by_text += result[1]
        if problem is not None and len(failed) == len(searched):
            raise LakeUnavailable(f"no shard could be searched: {_first_line(problem)}") from problem
        return _fuse(by_vector, by_text, vectors, entries, k), tuple(failed)

    async def _search_shard(
        self, question: str, vector: npt.NDArray[np.float32], entry: CatalogEntry, k: int
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        from lancedb.query import MatchQuery

        async with self._gate:
            table = await self._table(entry)
            nearest = (
                table.query()
                .nearest_to(vector)
                .distance_type("cosine")
                .nprobes(20)
                .refine_factor(4)
                .limit(k)
                .select([*_COLUMNS, "_distance"])
            )
            words = MatchQuery(question, "text")  # pyright: ignore[reportCallIssue]  # the rest has defaults
            matching = table.query().nearest_to_text(words).limit(k).select([*_COLUMNS, "_score"])
            return (await nearest.to_arrow()).to_pylist(), (await matching.to_arrow()).to_pylist()

    async def _table(self, entry: CatalogEntry) -> Any:
        key = (entry.shard, entry.current.version)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        if self._connection is None:
            self._connection = await connect_async(self._lake_uri, SHARDS)
        table = await self._connection.open_table(entry.table)
        await table.checkout(entry.current.version)
        self._tables[key] = table
        while len(self._tables) > _OPEN_TABLES:
            self._tables.popitem(last=False)
        return table


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _fuse(
    by_vector: list[dict[str, Any]],
    by_text: list[dict[str, Any]],
    vectors: Mapping[str, npt.NDArray[np.float32]],
    entries: Sequence[CatalogEntry],
    k: int,
) -> list[Hit]:
    """Merge the shards' lists into one ranking each, then both rankings into one."""
    by_vector.sort(key=lambda row: (row["_distance"], row["chunk_id"]))
    by_text.sort(key=lambda row: (-row["_score"], row["chunk_id"]))
    fused: dict[str, float] = {}
    rows: dict[str, dict[str, Any]] = {}
    for ranking in (by_vector[:k], by_text[:k]):
        for rank, row in enumerate(ranking, start=1):
            fused[row["chunk_id"]] = fused.get(row["chunk_id"], 0.0) + 1 / (_FUSION + rank)
            rows.setdefault(row["chunk_id"], row)
    fingerprints = {entry.shard.key: entry.current.fingerprint for entry in entries}
    best = sorted(fused, key=lambda chunk_id: (-fused[chunk_id], chunk_id))[:k]
    hits: list[Hit] = []
    for rank, chunk_id in enumerate(best, start=1):
        row = rows[chunk_id]
        shard = f"{row['region']}/{row['department']}"
        vector = np.asarray(row["vector"], dtype=np.float32)
        hits.append(
            Hit(
                rank=rank,
                fused=round(fused[chunk_id], 6),
                score=round(float(vector @ vectors[fingerprints[shard]]), 4),
                shard=shard,
                heading_path=tuple(row["heading_path"] or ()),
                **{
                    name: row[name]
                    for name in (
                        "chunk_id",
                        "doc_id",
                        "text",
                        "source",
                        "type",
                        "title",
                        "page",
                        "start",
                        "end",
                        "stale",
                    )
                },
                modified_at=row["modified_at"],
            )
        )
    return hits
