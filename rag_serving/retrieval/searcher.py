"""Search over pinned versions of tables: by vector, by words, or by both, fused by rank.

A scope of a few shards is searched shard by shard. A wide one goes to the company index, one table for all of them,
except for the shards of which that does not hold what is published just now.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from rag_serving.errors import LakeUnavailable, RerankerUnavailable
from rag_serving.lake.catalog import Snapshot
from rag_serving.lake.catalog_entry import CatalogEntry
from rag_serving.lake.company_index import COMPANY, SHARD_COLUMN
from rag_serving.lake.search.fusion import ORIGIN, Candidate, Kind, Ranking, distinct, fuse, joined
from rag_serving.lake.search.parameters import FILTERED_PROBES, REFINE
from rag_serving.lake.search.plan import Target, company_target, plan, shard_target
from rag_serving.lake.search.query import Query
from rag_serving.lake.tables import SHARDS, connect_async
from rag_serving.results import Hit
from rag_serving.retrieval.hits import hits_of
from rag_serving.retrieval.rerankers import MOST_RERANKED, Reranker

if TYPE_CHECKING:
    import lancedb
    import numpy as np
    import numpy.typing as npt


_log = logging.getLogger(__name__)

_OPEN_TABLES = 512
_PATH_FORMAT = 2
"""Format of the tables from which on they have a path."""

_COLUMNS = (
    *("chunk_id", "doc_id", "ordinal", "text", "source", "path", "type", "title", "heading_path", "page", "start"),
    *("end", "region", "department", "modified_at", "stale"),
)
_FIRST_COLUMNS = ("chunk_id", "text", "source", SHARD_COLUMN)
"""What fusing needs of a row of a company table. There each column of each row is a read of its own, and all of them
together take longer than the search: the rest is read of what is shown alone."""
_LAST_COLUMNS = tuple(name for name in _COLUMNS if name not in (*_FIRST_COLUMNS, "region", "department"))


class SearchBackend(Protocol):
    """What the client needs of a searcher; see `Searcher`."""

    async def search(
        self,
        query: Query,
        vectors: Mapping[str, npt.NDArray[np.float32]],
        entries: Sequence[CatalogEntry],
        snapshot: Snapshot,
    ) -> tuple[list[Hit], tuple[str, ...]]: ...

    async def warm(self, entries: Iterable[CatalogEntry], snapshot: Snapshot) -> None: ...

    def follow(self, snapshot: Snapshot) -> None: ...

    async def close(self) -> None: ...


class Searcher:
    """Searches published versions; keeps tables open, each pinned to the version that the catalog named.

    All tables share the caches of one session. At most `concurrency` queries are in flight at once: more only wait for
    each other inside the engine.
    """

    def __init__(
        self,
        lake_uri: str,
        *,
        concurrency: int = 8,
        wide: int = 4,
        cache_bytes: int = 2**31,
        reranker: Reranker | None = None,
    ) -> None:
        self._lake_uri = lake_uri
        self._gate = asyncio.Semaphore(concurrency)
        self._wide = wide
        self._cache_bytes = cache_bytes
        self._reranker = reranker
        self._session: lancedb.Session | None = None
        self._connections: dict[str, lancedb.AsyncConnection] = {}
        self._tables: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self._followed: Snapshot | None = None
        self._warming: asyncio.Task[None] | None = None

    async def search(
        self,
        query: Query,
        vectors: Mapping[str, npt.NDArray[np.float32]],
        entries: Sequence[CatalogEntry],
        snapshot: Snapshot,
    ) -> tuple[list[Hit], tuple[str, ...]]:
        """The best passages of those shards, and marks for what was not done as it should have been.

        `vectors` holds the question's vector by fingerprint. Raises `LakeUnavailable` when nothing could be searched.
        """
        targets = plan(entries, snapshot.companies, query, self._wide)
        rankings, failed, problem = await self._rankings(query, vectors, targets)
        lost = {target.fingerprint for target in targets if target.folder == COMPANY and target.name in failed}
        if lost:  # its shards answer for themselves, if slower
            asked = {target.table for target in targets if target.folder == SHARDS}
            instead = [
                shard_target(entry)
                for entry in entries
                if entry.current.fingerprint in lost and entry.current.chunks and entry.table not in asked
            ]
            more, failed_too, problem_too = await self._rankings(query, vectors, instead)
            targets, rankings = targets + instead, rankings + more
            failed, problem = failed + failed_too, problem_too or problem
        if problem is not None and len(failed) == len(targets):
            raise LakeUnavailable(f"no shard could be searched: {_first_line(problem)}") from problem
        candidates = distinct(fuse(rankings, vectors, query.depth), MOST_RERANKED if self._reranker else query.k)
        reranked, marks = await self._reranked(query, candidates)
        best = sorted(candidates, key=lambda c: -reranked[c.row["chunk_id"]]) if reranked is not None else candidates
        try:
            best = await self._completed(best[: query.k])
        except (OSError, RuntimeError, ValueError) as error:  # a company table went away meanwhile
            _log.warning("cannot read from the company index: %s", _first_line(error))
            hits, more = await self.search(query, vectors, entries, replace(snapshot, companies={}))
            names = (target.name for target in targets if target.folder == COMPANY)
            return hits, tuple(dict.fromkeys((*failed, *names, *more)))
        return hits_of(joined(best) if query.join_neighbours else best, reranked), (*failed, *marks)

    async def warm(self, entries: Iterable[CatalogEntry], snapshot: Snapshot) -> None:
        """Open the tables that questions about those shards go to, and load their indexes."""
        shards = list(entries)
        any_question = Query("", 1)
        for target in plan(shards, snapshot.companies, any_question, self._wide):
            await self._warm(target)

    def follow(self, snapshot: Snapshot) -> None:
        """Have new versions of open tables opened and warmed in the background, before a question needs them."""
        if snapshot is self._followed or (self._warming is not None and not self._warming.done()):
            return
        self._followed = snapshot
        open_now = {(folder, table) for folder, table, _ in self._tables}
        entries = [entry for entry in snapshot.entries.values() if (SHARDS, entry.table) in open_now]
        targets = [
            *map(shard_target, entries),
            *(
                company_target(record, None)
                for record in snapshot.companies.values()
                if (COMPANY, record.fingerprint) in open_now
            ),
        ]
        new = [target for target in targets if (target.folder, target.table, target.version) not in self._tables]
        if new:
            self._warming = asyncio.create_task(self._warm_all(new))

    async def close(self) -> None:
        """End what goes on in the background, and let go of the tables."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        self._tables.clear()
        self._connections.clear()

    async def _warm_all(self, targets: Sequence[Target]) -> None:
        for target in targets:
            try:
                await self._warm(target)
            except (OSError, RuntimeError, ValueError) as error:  # the question that needs it will name it
                _log.warning("cannot warm %s: %s", target.table, _first_line(error))
            for key in [key for key in self._tables if key[:2] == (target.folder, target.table)]:
                if key[2] != target.version:
                    del self._tables[key]

    async def _warm(self, target: Target) -> None:
        async with self._gate:
            table = await self._table(target)
            for index in await table.list_indices():
                if index.columns in (["text"], ["vector"]):
                    await table.prewarm_index(index.name)

    async def _rankings(
        self, query: Query, vectors: Mapping[str, npt.NDArray[np.float32]], targets: Sequence[Target]
    ) -> tuple[list[Ranking], tuple[str, ...], Exception | None]:
        results = await asyncio.gather(
            *(self._search_table(query, vectors.get(target.fingerprint), target) for target in targets),
            return_exceptions=True,
        )
        rankings: list[Ranking] = []
        failed: list[str] = []
        problem: Exception | None = None
        for target, result in zip(targets, results, strict=True):
            if isinstance(result, (OSError, RuntimeError, ValueError, LakeUnavailable)):
                failed.append(target.name)
                problem = result
                _log.warning("cannot search %s: %s", target.name, _first_line(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                rankings += result
        return rankings, tuple(failed), problem

    async def _search_table(
        self, query: Query, vector: npt.NDArray[np.float32] | None, target: Target
    ) -> list[Ranking]:
        if query.path_prefix and target.format < _PATH_FORMAT:
            raise LakeUnavailable("the table is of an older form, without paths; index the shard again")
        table = await self._table(target)
        where = " AND ".join([*query.filters, *([target.scope] if target.scope else [])])
        runs: list[Coroutine[Any, Any, Ranking]] = []
        if query.mode != "text" and vector is not None:
            runs.append(self._nearest(table, query, vector, target, where))
        if query.mode != "vector":
            runs.append(self._matching(table, query, target, where, with_vector=vector is not None))
        return list(await asyncio.gather(*runs))

    async def _nearest(
        self, table: Any, query: Query, vector: npt.NDArray[np.float32], target: Target, where: str
    ) -> Ranking:
        probes = max(target.probes, FILTERED_PROBES) if query.filters else target.probes
        search = (
            table.query()
            .nearest_to(vector)
            .distance_type("cosine")
            .nprobes(probes)
            .refine_factor(REFINE)
            .limit(query.depth)
            .select([*_columns(target), "_distance"])
        )
        if where:
            # Goes on to further partitions while too few rows have met the filter.
            search = search.where(where).minimum_nprobes(probes).maximum_nprobes(0)
        return await self._ranking("vector", search, target)

    async def _matching(self, table: Any, query: Query, target: Target, where: str, *, with_vector: bool) -> Ranking:
        from lancedb.query import MatchQuery

        words = MatchQuery(query.question, "text")  # pyright: ignore[reportCallIssue]  # the rest has defaults
        vector = ["vector"] if with_vector else []
        search = table.query().nearest_to_text(words).limit(query.depth).select([*_columns(target), *vector, "_score"])
        if where:
            search = search.where(where)
        return await self._ranking("text", search, target)

    async def _ranking(self, kind: Kind, search: Any, target: Target) -> Ranking:
        late = target.folder == COMPANY
        async with self._gate:
            rows = await (search.with_row_id() if late else search).to_arrow()
        return Ranking(kind, target.fingerprint, rows, target if late else None)

    async def _completed(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates with all that hits need, of which company tables gave a part alone."""
        wanted: dict[Target, list[int]] = {}
        for candidate in candidates:
            if candidate.row[ORIGIN] is not None:
                wanted.setdefault(candidate.row[ORIGIN], []).append(candidate.row["_rowid"])
        rest: dict[str, Mapping[str, Any]] = {}
        for target, row_ids in wanted.items():
            table = await self._table(target)
            async with self._gate:
                rows = await table.take_row_ids(row_ids).select(["chunk_id", *_LAST_COLUMNS]).to_arrow()
            rest |= {row["chunk_id"]: row for row in rows.to_pylist()}
        return [
            candidate
            if candidate.row[ORIGIN] is None
            else replace(candidate, row={**candidate.row, **rest[candidate.row["chunk_id"]]})
            for candidate in candidates
        ]

    async def _reranked(
        self, query: Query, candidates: Sequence[Candidate]
    ) -> tuple[dict[str, float] | None, tuple[str, ...]]:
        if self._reranker is None or not candidates:
            return None, ()
        try:
            scores = await self._reranker.scores(query.question, [candidate.row["text"] for candidate in candidates])
        except RerankerUnavailable as error:
            _log.warning("hits stay in the order of their fusion: %s", error)
            return None, ("reranker_unavailable",)
        return {c.row["chunk_id"]: score for c, score in zip(candidates, scores, strict=True)}, ()

    async def _table(self, target: Target) -> Any:
        key = (target.folder, target.table, target.version)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        connection = await self._connection(target.folder)
        table = await connection.open_table(target.table)
        await table.checkout(target.version)
        self._tables[key] = table
        while len(self._tables) > _OPEN_TABLES:
            self._tables.popitem(last=False)
        return table

    async def _connection(self, folder: str) -> lancedb.AsyncConnection:
        import lancedb

        if self._session is None:
            self._session = lancedb.Session(
                index_cache_size_bytes=self._cache_bytes, metadata_cache_size_bytes=self._cache_bytes // 4
            )
        if folder not in self._connections:
            self._connections[folder] = await connect_async(self._lake_uri, folder, self._session)
        return self._connections[folder]


def _columns(target: Target) -> list[str]:
    if target.folder == COMPANY:
        return list(_FIRST_COLUMNS)
    return [name for name in _COLUMNS if name != "path" or target.format >= _PATH_FORMAT]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
