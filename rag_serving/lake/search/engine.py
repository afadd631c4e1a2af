"""Search pinned versions of tables, and keep the tables open.

`plan` decides which tables to search for a scope; `fusion` merges their rankings.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rag_serving.errors import LakeError, LakeUnavailable, first_line
from rag_serving.lake.company_index import COMPANY, SHARD_COLUMN, CompanyRecord
from rag_serving.lake.lance_errors import LANCE_ERRORS
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.search.admission import admitted
from rag_serving.lake.search.fusion import ORIGIN, Candidate, Kind, Ranking
from rag_serving.lake.search.parameters import CORRECTION_DEPTH, FILTERED_PROBES, REFINE
from rag_serving.lake.search.plan import Target
from rag_serving.lake.search.query import Query
from rag_serving.lake.search.spelling import corrections, misspelt
from rag_serving.lake.search.statistics import STATISTICS, WordStatistics
from rag_serving.lake.search.words import question_words
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import connect_async

if TYPE_CHECKING:
    import lancedb

_log = logging.getLogger(__name__)

_OPEN_TABLES = 512
_PATH_FORMAT = 2
"""First format of tables with the column `path`."""
_WORDS_FORMAT = 3
"""First format of tables with the columns `words`, `language` and `table_header`."""

_COLUMNS = (
    *("chunk_id", "doc_id", "ordinal", "text", "source", "path", "type", "title", "heading_path", "table_header"),
    *("page", "start", "end", "region", "department", "modified_at", "stale"),
)
_ADDED = {"path": _PATH_FORMAT, "table_header": _WORDS_FORMAT}
"""First format of tables that have a column; those without an entry are in all."""
_TEXT_COLUMNS = ("words", "language")
"""Columns that only full-text rankings need."""
_FIRST_COLUMNS = ("chunk_id", "doc_id", "text", "source", "title", SHARD_COLUMN)
"""Columns of a company table that fusion needs. Reading every column of every row there takes longer than the search,
so the others are read only for the final hits."""


@dataclass(frozen=True, slots=True)
class Rankings:
    """The results of the tables of a plan."""

    found: tuple[Ranking, ...]
    failed: tuple[str, ...]
    """Names of the targets that failed."""
    problem: Exception | None
    """The last failure."""


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """Rows of a document, the number of all of them, and the number of its last page, if it has pages."""

    rows: Sequence[Mapping[str, Any]]
    total: int
    pages: int | None


class SearchEngine:
    """Searches tables, each pinned to its target's version. Belongs to one event loop.

    All tables share the caches of one session. At most `concurrency` queries run at once; more would only wait for each
    other inside Lance.
    """

    def __init__(self, lake_uri: str, *, concurrency: int = 8, cache_bytes: int = 2**31) -> None:
        self._lake_uri = lake_uri
        self._slots = asyncio.Semaphore(concurrency)
        self._cache_bytes = cache_bytes
        self._session: lancedb.Session | None = None
        self._connections: dict[str, lancedb.AsyncConnection] = {}
        self._statistics: dict[tuple[str, int], WordStatistics | None] = {}
        self._tables: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self.dropped_rows = 0
        """Rows found that were invalid, or of a shard that was not asked for."""

    @property
    def open_tables(self) -> tuple[tuple[str, str, int], ...]:
        """Folder, name and version of every open table."""
        return tuple(self._tables)

    async def rankings(
        self, query: Query, vectors: Mapping[str, npt.NDArray[np.float32]], targets: Sequence[Target]
    ) -> Rankings:
        """Search all targets concurrently; a table that fails is reported in the result.

        `vectors` holds the question's vector by fingerprint.
        """
        alone = len(targets) == 1
        results = await asyncio.gather(
            *(self._search_table(query, vectors.get(target.fingerprint), target, alone=alone) for target in targets),
            return_exceptions=True,
        )
        found: list[Ranking] = []
        by_words: dict[int, Target] = {}
        failed: list[str] = []
        problem: Exception | None = None
        for target, result in zip(targets, results, strict=True):
            if isinstance(result, (*LANCE_ERRORS, LakeError)):
                failed.append(target.name)
                problem = result
                _log.warning("cannot search %s: %s", target.name, first_line(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                by_words |= {len(found) + place: target for place, ranking in enumerate(result) if ranking.words}
                found += result
        if not alone:
            await self._correct(query, vectors, found, by_words)
        return Rankings(tuple(found), tuple(failed), problem)

    async def statistics(self, record: CompanyRecord) -> WordStatistics | None:
        """Return the word statistics of a company table; None, with a log line, if they cannot be read."""
        key = (record.fingerprint, record.version)
        if key not in self._statistics:
            try:
                objects = await asyncio.to_thread(open_object_store, self._lake_uri)
                stored = await asyncio.to_thread(objects.get, f"{STATISTICS}/{record.fingerprint}.npz")
                read = None if stored is None else WordStatistics.from_bytes(stored.data)
            except LakeError as error:
                _log.warning("cannot read the word statistics: %s", first_line(error))
                read = None
            self._statistics = {**{old: kept for old, kept in self._statistics.items() if old[0] != key[0]}, key: read}
        return self._statistics[key]

    async def completed(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates with all columns of hits; searches of company tables read only some of them."""
        wanted: dict[Target, list[int]] = {}
        for candidate in candidates:
            if candidate.row[ORIGIN] is not None:
                wanted.setdefault(candidate.row[ORIGIN], []).append(candidate.row["_rowid"])
        rest: dict[str, Mapping[str, Any]] = {}
        for target, row_ids in wanted.items():
            table = await self._table(target)
            columns = _last_columns(target)
            async with self._slots:
                rows = await table.take_row_ids(row_ids).select(columns).to_arrow()
            rest |= {row["chunk_id"]: row for row in self._admitted(rows, columns, target).to_pylist()}
        return [
            candidate
            if candidate.row[ORIGIN] is None
            else replace(candidate, row={**candidate.row, **rest[candidate.row["chunk_id"]]})
            for candidate in candidates
            if candidate.row[ORIGIN] is None or candidate.row["chunk_id"] in rest
        ]

    async def document(self, target: Target, doc_id: str, first: int, count: int) -> "DocumentRows":
        """Return rows of a document from its passage number `first` on, in order.

        `doc_id` must look like one that the pipeline writes. Raises `LANCE_ERRORS` or `LakeCorrupt`.
        """
        table = await self._table(target)
        of_document = sql_in("doc_id", [doc_id])
        outline = await self._rows(table, of_document, ("ordinal", "page", "region", "department"), target)
        places = sorted(zip(outline["ordinal"].to_pylist(), outline["page"].to_pylist(), strict=True))
        wanted = [ordinal for ordinal, _ in places[first : first + count]]
        pages = [page for _, page in places if page is not None]
        rows: list[dict[str, Any]] = []
        if wanted:
            within = f"{of_document} AND ordinal >= {wanted[0]} AND ordinal <= {wanted[-1]}"
            found = await self._rows(table, within, (*_all_columns(target), "etag"), target)
            rows = sorted(found.to_pylist(), key=lambda row: row["ordinal"])
        return DocumentRows(rows, total=len(places), pages=max(pages, default=None))

    async def _rows(self, table: Any, where: str, columns: Sequence[str], target: Target) -> Any:
        async with self._slots:
            rows = await table.query().where(where).select(list(columns)).to_arrow()
        return self._admitted(rows, columns, target)

    async def warm(self, target: Target) -> None:
        """Open the target's table and load its indexes; what does not fit into the cache is read when it is needed."""
        async with self._slots:
            table = await self._table(target)
            for index in await table.list_indices():
                if index.columns in (["words"], ["text"], ["vector"]):
                    try:
                        await table.prewarm_index(index.name)
                    except LANCE_ERRORS as error:
                        _log.warning(
                            "index %s of %s was not loaded completely; if memory allows, raise RAG_SEARCH_CACHE_BYTES",
                            index.name,
                            target.table,
                        )
                        _log.debug("cannot load the index: %s", error)

    def drop_other_versions(self, target: Target) -> None:
        """Close other versions of the target's table."""
        for key in self.open_tables:
            if key[:2] == (target.folder, target.table) and key[2] != target.version:
                del self._tables[key]

    def close(self) -> None:
        """Close all tables."""
        self._tables.clear()
        self._connections.clear()

    async def _search_table(
        self, query: Query, vector: npt.NDArray[np.float32] | None, target: Target, *, alone: bool
    ) -> list[Ranking]:
        if query.path_prefix and target.format < _PATH_FORMAT:
            raise LakeUnavailable("the table has an older format without paths; index the shard again")
        table = await self._table(target)
        where = _where(query, target)
        runs: list[Coroutine[Any, Any, Ranking]] = []
        if query.mode != "text" and vector is not None:
            runs.append(self._nearest(table, query, vector, target, where))
        if query.mode != "vector":
            matching = self._matching_alone if alone else self._matching
            runs.append(matching(table, query, target, where, dimensions=None if vector is None else len(vector)))
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
            # Search further partitions while too few rows match the filter.
            search = search.where(where).minimum_nprobes(probes).maximum_nprobes(0)
        return await self._ranking("vector", search, target, _columns(target))

    async def _matching(
        self,
        table: Any,
        query: Query,
        target: Target,
        where: str,
        *,
        dimensions: int | None,
        words: tuple[str, ...] = (),
    ) -> Ranking:
        """Search by words; `dimensions` are those of the question's vector, if it has one for this table."""
        columns = [*_columns(target), *([] if dimensions is None else ["vector"])]
        if target.format < _WORDS_FORMAT:
            match = _match(query.question, "text")
        else:
            words = words or question_words(query.question, target.languages).words
            columns += _TEXT_COLUMNS
            match = _match(" ".join(words), "words")
        search = table.query().nearest_to_text(match).limit(query.depth).select([*columns, "_score"])
        search = search.where(where) if where else search
        ranking = await self._ranking("text", search, target, columns, dimensions)
        return replace(ranking, words=words)

    async def _matching_alone(
        self, table: Any, query: Query, target: Target, where: str, *, dimensions: int | None
    ) -> Ranking:
        """Search the only table by words, and correct them while the vectors are searched."""
        ranking = await self._matching(table, query, target, where, dimensions=dimensions)
        return await self._corrected(query, target, ranking, [ranking.rows], dimensions=dimensions)

    async def _correct(
        self,
        query: Query,
        vectors: Mapping[str, npt.NDArray[np.float32]],
        found: list[Ranking],
        by_words: Mapping[int, Target],
    ) -> None:
        """Search again for the words that no table has, as the tables spell them; replaces rankings in `found`.

        If that fails, the first ranking stays.
        """
        tables = [found[place].rows for place in by_words]

        async def replaced(place: int, target: Target) -> None:
            vector = vectors.get(target.fingerprint)
            dimensions = None if vector is None else len(vector)
            found[place] = await self._corrected(query, target, found[place], tables, dimensions=dimensions)

        results = await asyncio.gather(*(replaced(*item) for item in by_words.items()), return_exceptions=True)
        for result in results:
            if isinstance(result, (*LANCE_ERRORS, LakeError)):
                _log.warning("cannot look for another spelling: %s", first_line(result))
            elif isinstance(result, BaseException):
                raise result

    async def _corrected(
        self, query: Query, target: Target, ranking: Ranking, tables: Sequence[Any], *, dimensions: int | None
    ) -> Ranking:
        """Return the ranking by the words as the table spells them, if no row of `tables` has them as they are."""
        unknown = misspelt(ranking.words, tables)
        if not unknown:
            return ranking
        table, where = await self._table(target), _where(query, target)
        # Lance's fuzzy search of all words would find everything. It counts two swapped letters as two edits.
        fuzzy = _match(" ".join(unknown), "words", fuzziness=2, prefix_length=1)
        columns = ["words", *([SHARD_COLUMN] if target.folder == COMPANY else ["region", "department"])]
        search = table.query().nearest_to_text(fuzzy).limit(CORRECTION_DEPTH).select([*columns, "_score"])
        similar = await self._ranking("text", search.where(where) if where else search, target, columns)
        right = corrections(unknown, similar.rows)
        if not right:
            return ranking
        spelt = tuple(right.get(word, word) for word in ranking.words)
        return await self._matching(table, query, target, where, dimensions=dimensions, words=spelt)

    async def _ranking(
        self, kind: Kind, search: Any, target: Target, columns: Sequence[str], dimensions: int | None = None
    ) -> Ranking:
        late = target.folder == COMPANY
        async with self._slots:
            rows = await (search.with_row_id() if late else search).to_arrow()
        rows = self._admitted(rows, columns, target, dimensions)
        return Ranking(kind, target.fingerprint, rows, target if late else None, target.read)

    def _admitted(self, rows: Any, columns: Sequence[str], target: Target, dimensions: int | None = None) -> Any:
        kept = admitted(rows, columns, target.shards, dimensions)
        dropped = rows.num_rows - kept.num_rows
        if dropped:
            self.dropped_rows += dropped
            _log.error("dropped %d rows of %s that are invalid or of other shards", dropped, target.table)
        return kept

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

    async def _connection(self, folder: str) -> "lancedb.AsyncConnection":
        import lancedb

        if self._session is None:
            self._session = lancedb.Session(
                index_cache_size_bytes=self._cache_bytes, metadata_cache_size_bytes=self._cache_bytes // 4
            )
        if folder not in self._connections:
            self._connections[folder] = await connect_async(self._lake_uri, folder, self._session)
        return self._connections[folder]


def _match(words: str, column: str, **options: Any) -> Any:
    from lancedb.query import MatchQuery

    return MatchQuery(words, column, **options)


def _where(query: Query, target: Target) -> str:
    """Return the filter of a query on a table; empty for all rows."""
    return " AND ".join([*query.filters, *([target.scope] if target.scope else [])])


def _columns(target: Target) -> list[str]:
    return list(_FIRST_COLUMNS) if target.folder == COMPANY else _all_columns(target)


def _last_columns(target: Target) -> list[str]:
    known = {*_FIRST_COLUMNS, "region", "department"} - {"chunk_id"}
    return [name for name in _all_columns(target) if name not in known]


def _all_columns(target: Target) -> list[str]:
    return [name for name in _COLUMNS if target.format >= _ADDED.get(name, 1)]
