"""Retrieval metrics over golden questions. Pure, except for `expectations`."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from rag_assets.evaluation.golden_questions import GoldenQuestion
from rag_assets.evaluation.index_recall import CUTOFF
from rag_assets.sources.base import Source
from rag_assets.storage.lake import Table, read
from rag_assets.storage.schemas import document_id
from rag_serving.lake.search.fusion import Candidate
from rag_serving.lake.sql import sql_in

_LOOKED_FOR_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over questions, from 0 to 1, for rankings of ten passages."""

    hit_at_1: float
    hit_at_5: float
    hit_at_10: float
    """Share of questions with an expected passage in the first ten."""
    mrr_at_10: float
    """Reciprocal rank of the first expected passage."""
    ndcg_at_10: float
    """Of documents: each counts once, at the rank of its first expected passage."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The scores of one version of a table by kind of search."""

    vector: Scores
    hybrid: Scores
    text: Scores | None = None
    """None in old records."""


@dataclass(frozen=True, slots=True)
class ResolvedQuestion:
    """A golden question with the ids of its documents."""

    question: str
    documents: tuple[frozenset[str], ...]
    """The ids of each expected document: its own and those of its attachments."""
    quote: str = ""


def expectations(
    documents: Table | None, questions: Sequence[GoldenQuestion], source: Source
) -> tuple[tuple[ResolvedQuestion, ...], tuple[str, ...]]:
    """Return the questions to ask, and the keys of documents that are neither in the shard nor in the source.

    A document that is only in the source is expected, too: the shard should have it.
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
    """Split a key into that of the source object and the name of the attachment."""
    name, _, part = key.partition("#")
    return name, part


def _is_in_source(source: Source, key: str) -> bool:
    return source.head(key) is not None or ("#" in key and source.head(_parted(key)[0]) is not None)


def _ids_by_key(documents: Table | None, keys: set[str]) -> dict[str, frozenset[str]]:
    """Return the ids of the documents that are in the shard; those of an object include its attachments."""
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
    """The ranks (from 1) of the first passage of each expected document in the first ten, without missing ones."""

    vector: tuple[int, ...]
    text: tuple[int, ...]
    hybrid: tuple[int, ...]


def places_in(ranking: Sequence[Candidate], asked: ResolvedQuestion) -> tuple[int, ...]:
    """Return the ranks of the expected documents; a copy that the ranking dropped has the rank of its twin."""
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
    """Return the means over questions, given the ranks found and the number of expected documents of each."""
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
    """Return the scores of each kind of search."""
    expected = [len(question.documents) for question in asked]
    return Retrieval(
        vector=scores([(at.vector, count) for at, count in zip(found, expected, strict=True)]),
        hybrid=scores([(at.hybrid, count) for at, count in zip(found, expected, strict=True)]),
        text=scores([(at.text, count) for at, count in zip(found, expected, strict=True)]),
    )
