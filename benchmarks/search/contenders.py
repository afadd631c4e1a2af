"""The contenders that are timed in this process: the client's searcher, and one filtered table.

Each maps the number of a question to the rows of the corpus that it found, best first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from benchmarks.search.lake import row_of
from benchmarks.search.measures import Stopwatch, Timing

if TYPE_CHECKING:
    import numpy.typing as npt

    from rag_serving.lake.catalog import Snapshot
    from rag_serving.lake.search.query import Mode
    from rag_serving.lake.shards import Shard
    from rag_serving.retrieval.searcher import Searcher

    Vectors = npt.NDArray[np.float32]
    Ask = Callable[[int], Awaitable[list[int]]]

K = 10
DEPTH = 30
IN_FLIGHT = 8
"""Concurrent searches in the engine; the client's default."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Texts and vectors of the questions, and the shard for each if only one is searched."""

    texts: Sequence[str]
    vectors: Vectors
    shards: Sequence[int]

    def __len__(self) -> int:
        return len(self.texts)


async def timed(ask: Ask, questions: Sequence[int], at_once: int) -> tuple[Timing, dict[int, list[int]]]:
    """Ask all questions, `at_once` concurrently; return the timing and the rows found for each."""
    waiting = iter(questions)
    milliseconds: list[float] = []
    found: dict[int, list[int]] = {}

    async def asker() -> None:
        for question in waiting:
            started = time.perf_counter()
            found[question] = await ask(question)
            milliseconds.append((time.perf_counter() - started) * 1000)

    watch = Stopwatch()
    await asyncio.gather(*(asker() for _ in range(at_once)))
    return watch.timing(milliseconds), found


def ours(
    searcher: Searcher,
    snapshot: Snapshot,
    fingerprint: str,
    questions: Questions,
    mode: Mode,
    shard: Callable[[int], Shard] | None,
) -> Ask:
    """Return the client's searcher; `shard` maps a number to the shard to search, and None searches all of them."""
    from rag_serving.lake.search.query import Query

    everything = [entry for _, entry in sorted(snapshot.entries.items())]

    async def ask(number: int) -> list[int]:
        entries = everything if shard is None else [snapshot.entries[shard(questions.shards[number])]]
        vectors = {fingerprint: questions.vectors[number]}
        hits, marks = await searcher.search(Query(questions.texts[number], K, mode=mode), vectors, entries, snapshot)
        if marks:
            raise RuntimeError(f"not everything was searched: {marks}")
        return [row_of(hit.chunk_id) for hit in hits]

    return ask


def filtered(
    table: Any, questions: Questions, mode: Mode, shard: Callable[[int], Shard], *, probes: int = 20, refine: int = 4
) -> Ask:
    """Return one LanceDB table of all rows, filtered by region and department, with our columns and fusion."""
    from lancedb.query import MatchQuery

    from rag_serving.lake.search.fusion import Ranking, fuse
    from rag_serving.lake.search.words import question_words

    gate = asyncio.Semaphore(IN_FLIGHT)
    columns = [name for name in table_columns() if name not in ("vector", "shard")]

    async def rows(search: Any, where: str) -> pa.Table:
        async with gate:
            return await search.where(where).limit(DEPTH).to_arrow()

    async def ask(number: int) -> list[int]:
        asked = shard(questions.shards[number])
        where = f"region = '{asked.region}' AND department = '{asked.department}'"
        vector = questions.vectors[number]
        nearest = table.query().nearest_to(vector).distance_type("cosine").nprobes(probes).refine_factor(refine)
        searches = [rows(nearest.select([*columns, "vector", "_distance"]), where)]
        if mode == "hybrid":
            words = MatchQuery(" ".join(question_words(questions.texts[number], ("en",)).words), "words")
            matching = table.query().nearest_to_text(words).select([*columns, "vector", "_score"])
            searches.append(rows(matching, where))
        found = await asyncio.gather(*searches)
        rankings = [Ranking(kind, "", part) for kind, part in zip(("vector", "text"), found, strict=False)]
        fused = fuse(questions.texts[number], rankings, {"": vector}, DEPTH)
        return [row_of(candidate.row["chunk_id"]) for candidate in fused[:K]]

    return ask


def nearest_rows(table: Any, questions: Questions, probes: int, refine: int, where: Callable[[int], str] | None) -> Ask:
    """Return the client's vector search of a table, with this number of probes and this refine factor.

    `where` maps the number of a question to its filter.
    """
    gate = asyncio.Semaphore(IN_FLIGHT)
    columns = [*(name for name in table_columns() if name != "shard"), "_distance"]

    async def ask(number: int) -> list[int]:
        search = table.query().nearest_to(questions.vectors[number]).distance_type("cosine")
        search = search.nprobes(probes).refine_factor(refine).limit(DEPTH).select(columns)
        if where is not None:
            search = search.where(where(number)).minimum_nprobes(probes).maximum_nprobes(0)
        async with gate:
            found = await search.to_arrow()
        return [row_of(chunk) for chunk in found["chunk_id"].to_pylist()]

    return ask


def table_columns() -> list[str]:
    """Return the columns that a search reads."""
    from rag_serving.lake.tables import shard_schema

    unread = ("tokens", "content_hash", "etag", "indexed_at")
    return [name for name in shard_schema(1, "").names if name not in unread]


def collapsed(corpus_texts: pa.ChunkedArray, ranked: Sequence[int], k: int = K) -> list[int]:
    """Return the first `k` rows of an exact ranking that do not repeat a better one, as the client does."""
    from rag_serving.lake.search.fusion import Candidate, distinct

    candidates = [
        Candidate({"chunk_id": "", "row": row, "text": corpus_texts[row].as_py(), "source": ""}, 0.0, None)
        for row in ranked
    ]
    return [candidate.row["row"] for candidate in distinct(candidates, k)]
