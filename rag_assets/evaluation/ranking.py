"""Rank golden questions over one version of a shard's table, with the search of serving."""

import asyncio
from collections.abc import Sequence

from rag_assets.evaluation.index_recall import CUTOFF, Vector
from rag_assets.evaluation.metrics import Places, ResolvedQuestion, places_in
from rag_serving.errors import LakeUnavailable, first_line
from rag_serving.lake.search.engine import SearchEngine
from rag_serving.lake.search.fusion import Candidate, distinct, fuse
from rag_serving.lake.search.plan import Target
from rag_serving.lake.search.query import Mode, Query

_CACHE_BYTES = 64 * 2**20
_MODES: tuple[Mode, ...] = ("vector", "text", "hybrid")


def places(lake_uri: str, target: Target, asked: Sequence[ResolvedQuestion], vectors: Sequence[Vector]) -> list[Places]:
    """Return the ranks of each question's documents; raise `LakeUnavailable` if the version cannot be searched."""
    pairs = [(question.question, vector) for question, vector in zip(asked, vectors, strict=True)]
    return [
        Places(**{mode: places_in(ranking, question) for mode, ranking in found.items()})
        for question, found in zip(asked, rankings(lake_uri, target, pairs), strict=True)
    ]


def rankings(
    lake_uri: str, target: Target, questions: Sequence[tuple[str, Vector]]
) -> list[dict[Mode, list[Candidate]]]:
    """Return the ten best passages for each question, by mode of search."""

    async def search_all() -> list[dict[Mode, list[Candidate]]]:
        engine = SearchEngine(lake_uri, cache_bytes=_CACHE_BYTES)
        return list(await asyncio.gather(*(_rank(engine, target, *question) for question in questions)))

    return asyncio.run(search_all())


async def _rank(engine: SearchEngine, target: Target, question: str, vector: Vector) -> dict[Mode, list[Candidate]]:
    query = Query(question, CUTOFF)
    vectors = {target.fingerprint: vector}
    searched = await engine.rankings(query, vectors, [target])
    if searched.problem is not None:
        raise LakeUnavailable(f"cannot search {target.name}: {first_line(searched.problem)}") from searched.problem
    ranked: dict[Mode, list[Candidate]] = {}
    for mode in _MODES:
        chosen = [ranking for ranking in searched.found if mode in ("hybrid", ranking.kind)]
        ranked[mode] = distinct(fuse(question, chosen, vectors, query.depth), CUTOFF)
    return ranked
