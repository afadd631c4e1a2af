"""Retrieval metrics over golden questions. Pure, apart from resolving the documents that a question names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rag_assets.evaluation.golden_questions import GoldenQuestion
from rag_assets.evaluation.index_recall import CUTOFF
from rag_assets.sources.base import Source
from rag_assets.storage.lake import read
from rag_assets.storage.schemas import document_id
from rag_serving.lake.search.fusion import Candidate
from rag_serving.lake.sql import sql_in

if TYPE_CHECKING:
    from lancedb.table import Table

_LOOKED_FOR_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over questions, each from 0 to 1, of rankings of ten passages."""

    hit_at_1: float
    hit_at_5: float
    hit_at_10: float
    """Share of questions with an expected passage among the first ten."""
    mrr_at_10: float
    """Reciprocal of the first such passage's place."""
    ndcg_at_10: float
    """Of documents: each counts once, at the place of its first such passage."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One version of a table, searched by vectors, by words and by both."""

    vector: Scores
    hybrid: Scores
    text: Scores | None = None
    """None in records that were written before words were measured."""


@dataclass(frozen=True, slots=True)
class ResolvedQuestion:
    """A golden question as the tables know it."""

    question: str
    documents: tuple[frozenset[str], ...]
    """Ids that each expected document goes by in the table: its own, and those of what is attached to it."""
    quote: str = ""


def expectations(
    documents: Table | None, questions: Sequence[GoldenQuestion], source: Source
) -> tuple[tuple[ResolvedQuestion, ...], tuple[str, ...]]:
    """The questions to ask, and the keys of documents that are gone from shard and source.

    One that the source has and the shard has not is expected all the same: it is missing, not gone.
    """
    keys = {key for question in questions for key in question.documents}
    ids = _ids_by_key(documents, keys)
    missing = sorted(key for key in keys if key not in ids)
    with ThreadPoolExecutor(_LOOKED_FOR_AT_ONCE, thread_name_prefix="golden") as pool:
        there = list(pool.map(partial(_is_in_source, source), missing)) if missing else []
    gone = {key for key, found in zip(missing, there, strict=True) if not found}
    asked: list[ResolvedQuestion] = []
    for question in questions:
        expected = [
            ids.get(key, frozenset([document_id(*_parted(key))])) for key in question.documents if key not in gone
        ]
        if expected:
            asked.append(ResolvedQuestion(question.question, tuple(dict.fromkeys(expected)), question.quote))
    return tuple(asked), tuple(sorted(gone))


def _parted(key: str) -> tuple[str, str]:
    """Key of the source object, and the name of something attached to it."""
    name, _, part = key.partition("#")
    return name, part


def _is_in_source(source: Source, key: str) -> bool:
    return source.head(key) is not None or ("#" in key and source.head(_parted(key)[0]) is not None)


def _ids_by_key(documents: Table | None, keys: set[str]) -> dict[str, frozenset[str]]:
    """The ids of those of the documents that the shard has read. A part is named alone; a whole has all its parts."""
    if documents is None or not keys:
        return {}
    wanted = sorted({document_id(key) for key in keys} | {document_id(_parted(key)[0]) for key in keys})
    rows = read(documents, ["doc_id", "key", "part"], where=sql_in("object_id", wanted)).to_pylist()
    ids: dict[str, set[str]] = {}
    for row in rows:
        for key in {row["key"], f"{row['key']}#{row['part']}" if row["part"] else row["key"]}:
            ids.setdefault(key, set()).add(row["doc_id"])
    return {key: frozenset(ids[key]) for key in keys & ids.keys()}


@dataclass(frozen=True, slots=True)
class Places:
    """Where, from 1, the first passage of each expected document ranks among the first ten; missing ones left out."""

    vector: tuple[int, ...]
    text: tuple[int, ...]
    hybrid: tuple[int, ...]


def places_in(ranking: Sequence[Candidate], asked: ResolvedQuestion) -> tuple[int, ...]:
    """Return the ranks of the expected documents. A copy that a ranking dropped counts where its twin stands."""
    quote = " ".join(asked.quote.split())
    at: dict[frozenset[str], int] = {}
    for place, candidate in enumerate(ranking[:CUTOFF], start=1):
        if quote and quote not in " ".join(candidate.row["text"].split()):
            continue
        found = {candidate.row["doc_id"], *candidate.copies}
        for ids in asked.documents:
            if ids & found:
                at.setdefault(ids, place)
    return tuple(sorted(at.values()))


def scores(found: Sequence[tuple[tuple[int, ...], int]]) -> Scores:
    """The means over questions, of each the places found and how many documents were expected. Pure."""
    count = max(len(found), 1)

    def hits(k: int) -> float:
        return sum(bool(at) and at[0] <= k for at, _ in found) / count

    def gain(at: Sequence[int]) -> float:
        return sum(1 / math.log2(place + 1) for place in at)

    return Scores(
        hit_at_1=hits(1),
        hit_at_5=hits(5),
        hit_at_10=hits(CUTOFF),
        mrr_at_10=sum(1 / at[0] for at, _ in found if at) / count,
        ndcg_at_10=sum(gain(at) / gain(range(1, min(expected, CUTOFF) + 1)) for at, expected in found) / count,
    )


def summarize(asked: Sequence[ResolvedQuestion], found: Sequence[Places]) -> Retrieval:
    """Return the scores of each way of searching."""
    expected = [len(question.documents) for question in asked]
    return Retrieval(
        vector=scores([(at.vector, count) for at, count in zip(found, expected, strict=True)]),
        hybrid=scores([(at.hybrid, count) for at, count in zip(found, expected, strict=True)]),
        text=scores([(at.text, count) for at, count in zip(found, expected, strict=True)]),
    )
