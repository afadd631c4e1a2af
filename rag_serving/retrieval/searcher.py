"""Search the published shards for a question: run the plan, rerank the candidates, return hits.

Tables are searched in `lake.search.engine`; rankings are fused in `lake.search.fusion`. A scope of few shards is
searched shard by shard. A wide scope uses the company index, one table of all shards; shards whose copy is out of date
are searched directly.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rag_serving.errors import LakeError, LakeUnavailable, RerankerUnavailable, first_line
from rag_serving.lake.catalog import Snapshot
from rag_serving.lake.catalog_entry import CatalogEntry
from rag_serving.lake.company_index import COMPANY
from rag_serving.lake.lance_errors import LANCE_ERRORS
from rag_serving.lake.search.engine import SearchEngine
from rag_serving.lake.search.fusion import Candidate, Ranking, distinct, fuse, joined
from rag_serving.lake.search.parameters import DEEPENING, MOST_DEPTH
from rag_serving.lake.search.plan import Target, company_target, plan, shard_target
from rag_serving.lake.search.query import Query
from rag_serving.lake.search.statistics import WordStatistics
from rag_serving.lake.tables import SHARDS
from rag_serving.results import Document, Hit
from rag_serving.retrieval.hits import document_of, hits_of
from rag_serving.retrieval.rerankers import MOST_RERANKED, Reranker

_log = logging.getLogger(__name__)


class SearchBackend(Protocol):
    """The searcher that a client needs; `Searcher` implements it."""

    async def search(
        self,
        query: Query,
        vectors: Mapping[str, npt.NDArray[np.float32]],
        entries: Sequence[CatalogEntry],
        snapshot: Snapshot,
    ) -> tuple[list[Hit], tuple[str, ...]]:
        """Return the best passages of the shards, and marks for what failed."""
        ...

    async def document(self, entry: CatalogEntry, doc_id: str, first: int, count: int) -> Document | None:
        """Return a published document with `count` of its passages from number `first` on; None if there is none."""
        ...

    async def warm(self, entries: Iterable[CatalogEntry], snapshot: Snapshot) -> None:
        """Open the tables for questions about these shards."""
        ...

    def follow(self, snapshot: Snapshot) -> None:
        """Warm new versions of open tables in the background."""
        ...

    @property
    def dropped_rows(self) -> int:
        """Rows found that were invalid, or of a shard that was not asked for."""
        ...

    async def close(self) -> None:
        """Close the tables."""
        ...


class Searcher:
    """Searches the published versions of shards and reranks the results."""

    def __init__(
        self,
        lake_uri: str,
        *,
        concurrency: int = 8,
        wide: int = 4,
        cache_bytes: int = 2**31,
        reranker: Reranker | None = None,
        link: str | None = None,
    ) -> None:
        """`link` is the template of links to documents."""
        self._engine = SearchEngine(lake_uri, concurrency=concurrency, cache_bytes=cache_bytes)
        self._wide = wide
        self._reranker = reranker
        self._link = link
        self._followed: Snapshot | None = None
        self._warming: asyncio.Task[None] | None = None

    async def search(
        self,
        query: Query,
        vectors: Mapping[str, npt.NDArray[np.float32]],
        entries: Sequence[CatalogEntry],
        snapshot: Snapshot,
    ) -> tuple[list[Hit], tuple[str, ...]]:
        """Return the best passages of the shards, and marks for what failed.

        `vectors` holds the question's vector by fingerprint. Raises `LakeUnavailable` if every table failed.
        """
        targets = plan(entries, snapshot.companies, query, self._wide)
        searched = await self._engine.rankings(query, vectors, targets)
        found, failed, problem = searched.found, searched.failed, searched.problem
        lost = {target.fingerprint for target in targets if target.folder == COMPANY and target.name in failed}
        if lost:  # search its shards directly, which is slower
            asked = {target.table for target in targets if target.folder == SHARDS}
            instead = [
                shard_target(entry)
                for entry in entries
                if entry.current.fingerprint in lost and entry.current.chunks and entry.table not in asked
            ]
            more = await self._engine.rankings(query, vectors, instead)
            targets, found = targets + instead, found + more.found
            failed, problem = failed + more.failed, more.problem or problem
        if problem is not None and len(failed) == len(targets):
            # Lance's errors contain paths, which callers must not see; they are in the log.
            raise LakeUnavailable("no shard could be searched; the log has the reason of each") from problem
        statistics = await self._statistics(found, snapshot)
        fused = fuse(query.question, found, vectors, query.depth, statistics)
        candidates = distinct(fused, MOST_RERANKED if self._reranker else query.k, query.per_document)
        if len(candidates) < query.k and query.per_document is not None and _may_go_deeper(query, found):
            deeper = replace(query, deepening=query.deepening * DEEPENING)
            return await self.search(deeper, vectors, entries, snapshot)
        reranked, marks = await self._reranked(query, candidates)
        best = sorted(candidates, key=lambda c: -reranked[c.row["chunk_id"]]) if reranked is not None else candidates
        try:
            best = await self._engine.completed(best[: query.k])
        except (*LANCE_ERRORS, LakeError) as error:  # a company table was deleted meanwhile, or is damaged
            _log.warning("cannot read the company index, searching its shards directly: %s", first_line(error))
            hits, more = await self.search(query, vectors, entries, replace(snapshot, companies={}))
            names = (target.name for target in targets if target.folder == COMPANY)
            return hits, tuple(dict.fromkeys((*failed, *names, *more)))
        return hits_of(joined(best) if query.join_neighbours else best, reranked, self._link), (*failed, *marks)

    async def document(self, entry: CatalogEntry, doc_id: str, first: int, count: int) -> Document | None:
        """Return a published document with `count` of its passages from number `first` on; None if there is none.

        Raises `LakeUnavailable`.
        """
        try:
            found = await self._engine.document(shard_target(entry), doc_id, first, count)
        except (*LANCE_ERRORS, LakeError) as error:
            _log.warning("cannot read a document of %s: %s", entry.shard, first_line(error))
            raise LakeUnavailable("the document cannot be read; the log has the reason") from error
        return document_of(found.rows, first, total=found.total, pages=found.pages, link=self._link)

    async def _statistics(self, found: Sequence[Ranking], snapshot: Snapshot) -> WordStatistics | None:
        """Return the statistics by which full-text rankings of several tables are compared."""
        if sum(ranking.kind == "text" for ranking in found) < 2:
            return None
        searched = {ranking.fingerprint for ranking in found}
        records = [record for of, record in snapshot.companies.items() if of in searched]
        largest = max(records, key=lambda record: (record.rows, record.fingerprint), default=None)
        return None if largest is None else await self._engine.statistics(largest)

    async def warm(self, entries: Iterable[CatalogEntry], snapshot: Snapshot) -> None:
        """Open the tables for questions about these shards, and load their indexes."""
        shards = list(entries)
        any_question = Query("", 1)
        for target in plan(shards, snapshot.companies, any_question, self._wide):
            await self._engine.warm(target)

    def follow(self, snapshot: Snapshot) -> None:
        """Open and warm new versions of open tables in the background, before a question needs them."""
        if snapshot is self._followed or (self._warming is not None and not self._warming.done()):
            return
        self._followed = snapshot
        open_now = {(folder, table) for folder, table, _ in self._engine.open_tables}
        entries = [entry for entry in snapshot.entries.values() if (SHARDS, entry.table) in open_now]
        targets = [
            *map(shard_target, entries),
            *(
                company_target(record, None)
                for record in snapshot.companies.values()
                if (COMPANY, record.fingerprint) in open_now
            ),
        ]
        new = [
            target
            for target in targets
            if (target.folder, target.table, target.version) not in self._engine.open_tables
        ]
        if new:
            self._warming = asyncio.create_task(self._warm_all(new))

    @property
    def dropped_rows(self) -> int:
        """Rows found that were invalid, or of a shard that was not asked for."""
        return self._engine.dropped_rows

    async def close(self) -> None:
        """Stop the background warming and close the tables."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        self._engine.close()

    async def _warm_all(self, targets: Sequence[Target]) -> None:
        for target in targets:
            try:
                await self._engine.warm(target)
            except LANCE_ERRORS as error:  # a question that needs the table will report it
                _log.warning("cannot warm %s: %s", target.table, first_line(error))
            self._engine.drop_other_versions(target)

    async def _reranked(
        self, query: Query, candidates: Sequence[Candidate]
    ) -> tuple[dict[str, float] | None, tuple[str, ...]]:
        if self._reranker is None or not candidates:
            return None, ()
        try:
            scores = await self._reranker.scores(query.question, [candidate.row["text"] for candidate in candidates])
        except RerankerUnavailable as error:
            _log.warning("hits keep their fused order: %s", error)
            return None, ("reranker_unavailable",)
        return {c.row["chunk_id"]: score for c, score in zip(candidates, scores, strict=True)}, ()


def _may_go_deeper(query: Query, found: Iterable[Ranking]) -> bool:
    """Return whether a ranking has further rows, after one document took most of those read."""
    return query.depth < MOST_DEPTH and any(ranking.rows.num_rows >= query.depth for ranking in found)
