"""Merge the rankings of several tables into one list of candidates: fuse, drop duplicates, join neighbours.

All functions are pure and work on Arrow rows. Rankings are fused by a weighted sum of their scores, each as a share of
its best one (Fox and Shaw's CombSUM, TREC-2, 1994). On the tuning halves of SciFact and SQuAD this was better than
fusion of ranks, which takes the first of a clear ranking for as good as the first of a flat one.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rag_serving.lake.search.names import named_exactly
from rag_serving.lake.search.parameters import DEPTH, FOREIGN_WEIGHT, WORDS_WEIGHT
from rag_serving.lake.search.statistics import WordStatistics

_VOTERS = 10
"""Passages that decide the question's language."""
ORIGIN = "_origin"
"""Key under which a row has the `origin` of its ranking."""
SAME_WORDS = 0.9
"""Two passages are duplicates if they share a run of words with at least this fraction of the longer passage."""

# Every character of a script without spaces counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

Kind = Literal["vector", "text"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows of one table that one kind of search found. `fingerprint` identifies the table's embedder.

    `origin` is copied to every row; the code that reads the remaining columns needs it.
    """

    kind: Kind
    fingerprint: str
    rows: pa.Table
    origin: Any = None
    read: tuple[str, ...] | None = None
    """Languages that the embedder reads; None for any."""
    words: tuple[str, ...] = ()
    """The question's words that a full-text search looked for; empty in tables without stored words."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage found: its row without the vector, its fused score, and its cosine with the question.

    The row needs only ids, `text`, `source` and `shard` until it is joined or converted to a hit.
    """

    row: Mapping[str, Any]
    fused: float
    score: float | None
    word_rank: float = math.inf
    """Rank in the full-text ranking; it breaks ties."""
    exact: bool = False
    """Whether it has exactly what the question names; then it comes first."""
    also_in: tuple[str, ...] = ()
    """Sources of duplicate passages that were dropped."""
    copies: tuple[str, ...] = ()
    """Ids of the documents of those passages, if the search read them."""

    @property
    def key(self) -> tuple[bool, float, float, float, str]:
        """Sort key, best first."""
        return not self.exact, -self.fused, self.word_rank, -(self.score or 0.0), self.row["chunk_id"]


def fuse(
    question: str,
    rankings: Iterable[Ranking],
    vectors: Mapping[str, npt.NDArray[np.float32]],
    depth: int,
    statistics: WordStatistics | None = None,
) -> list[Candidate]:
    """Fuse rankings into one list of candidates, best first.

    Distances are comparable only within one embedder. Vector searches are therefore merged per embedder, and full-text
    searches into one list; the first `depth` rows of each list count. `vectors` has the question's vectors by
    fingerprint; candidates of other embedders have no score. Vectors by a model that does not read the question's
    language hardly count if words find something. Passages with exactly what the question names come first. With
    `statistics`, full-text rankings of several tables are scored again before they are merged.
    """
    by_kind: dict[tuple[Kind, str], list[Ranking]] = {}
    for ranking in rankings:
        if ranking.rows.num_rows:
            group = ranking.fingerprint if ranking.kind == "vector" else ""
            by_kind.setdefault((ranking.kind, group), []).append(ranking)
    ranked = {of: _ranked(of[0], group, vectors, depth, statistics) for of, group in by_kind.items()}
    by_words = [found.row for found in ranked.get(("text", ""), ())]
    language = _language(by_words)
    exact = named_exactly(question, by_words)
    fused: dict[str, float] = {}
    first: dict[str, _Found] = {}
    for of, rows in sorted(ranked.items(), key=lambda item: item[0], reverse=True):
        weight = WORDS_WEIGHT if of[0] == "text" else 1 - WORDS_WEIGHT
        read = by_kind[of][0].read
        if of[0] == "vector" and read is not None and language and language not in read:
            weight = FOREIGN_WEIGHT
        for found, share in zip(rows, _shares(of[0], rows), strict=True):
            fused[found.chunk_id] = fused.get(found.chunk_id, 0.0) + weight * share
            first.setdefault(found.chunk_id, found)
    word_ranks = {row["chunk_id"]: float(rank) for rank, row in enumerate(by_words, start=1)}
    candidates = [
        Candidate(found.row, fused[chunk_id], found.cosine, word_ranks.get(chunk_id, math.inf), chunk_id in exact)
        for chunk_id, found in first.items()
    ]
    return sorted(candidates, key=lambda candidate: candidate.key)


@dataclass(frozen=True, slots=True)
class _Found:
    """A row of a merged ranking: without its vector, with the score that orders it and its cosine with the question."""

    chunk_id: str
    row: Mapping[str, Any]
    order: float
    cosine: float | None


def _shares(kind: Kind, rows: Sequence[_Found]) -> list[float]:
    """Return the rows' scores as shares of the best one's: words from 0, vectors from that of the `DEPTH`-th row.

    A deeper ranking must not order its first rows otherwise.
    """
    best = rows[0].order
    least = 0.0 if kind == "text" else rows[:DEPTH][-1].order
    return [max(found.order - least, 0.0) / (best - least) if best > least else 1.0 for found in rows]


def _language(by_words: Sequence[Mapping[str, Any]]) -> str:
    """Return the question's language: that of most passages which share its words; empty if unknown."""
    votes: dict[str, float] = {}
    for rank, row in enumerate(by_words[:_VOTERS], start=1):
        language = row.get("language", "")
        votes[language] = votes.get(language, 0.0) + 1 / rank
    return max(votes, key=lambda language: votes[language], default="")


def _ranked(
    kind: Kind,
    group: Sequence[Ranking],
    vectors: Mapping[str, npt.NDArray[np.float32]],
    depth: int,
    statistics: WordStatistics | None,
) -> list[_Found]:
    """Return the best rows of several tables, best first."""
    column, sign = ("_distance", -1.0) if kind == "vector" else ("_score", 1.0)
    keyed: list[tuple[float, str, int, int]] = []
    for table, ranking in enumerate(group):
        orders: list[float] = cast("Any", ranking.rows[column]).to_pylist()
        if kind == "text" and statistics is not None and len(group) > 1 and ranking.words:
            orders = statistics.scores(ranking.words, cast("Any", ranking.rows["words"]).to_pylist())
        ids: list[str] = cast("Any", ranking.rows["chunk_id"]).to_pylist()
        keyed += [
            (-sign * by, chunk_id, table, row) for row, (by, chunk_id) in enumerate(zip(orders, ids, strict=True))
        ]
    keyed.sort()
    chosen: dict[str, tuple[int, int]] = {}
    best: dict[str, float] = {}
    for by, chunk_id, table, row in keyed:
        chosen.setdefault(chunk_id, (table, row))
        best.setdefault(chunk_id, -by)
        if len(chosen) == depth:
            break
    # Read a table's rows together, because reading them one by one takes longer than the search.
    places: dict[int, list[int]] = {}
    for table, row in chosen.values():
        places.setdefault(table, []).append(row)
    read = {
        (table, row): facts
        for table, rows in places.items()
        for row, facts in zip(rows, _read(group[table], rows, vectors), strict=True)
    }
    return [_Found(chunk_id, read[place][0], best[chunk_id], read[place][1]) for chunk_id, place in chosen.items()]


def _read(
    ranking: Ranking, rows: Sequence[int], vectors: Mapping[str, npt.NDArray[np.float32]]
) -> list[tuple[Mapping[str, Any], float | None]]:
    """Return rows of a table without vectors, and their cosines (None if the question has no vector for the table)."""
    taken = ranking.rows.take(pa.array(rows, pa.int64()))
    question = vectors.get(ranking.fingerprint)
    scores: list[float | None] = [None] * len(rows)
    if question is not None and ranking.kind == "vector":
        scores = [1.0 - distance for distance in cast("Any", taken["_distance"]).to_pylist()]
    elif question is not None and "vector" in taken.column_names:
        flat: Any = cast("Any", taken["vector"]).combine_chunks().flatten()
        scores = (flat.to_numpy(zero_copy_only=False).reshape(len(rows), -1) @ question).tolist()
    if "vector" in taken.column_names:
        taken = taken.drop_columns(["vector"])
    origin = {ORIGIN: ranking.origin}
    return [
        ({"shard": _shard(facts), **facts, **origin}, score)
        for facts, score in zip(taken.to_pylist(), scores, strict=True)
    ]


def _shard(facts: Mapping[str, Any]) -> str:
    return facts["shard"] if "shard" in facts else f"{facts['region']}/{facts['department']}"


def distinct(candidates: Iterable[Candidate], count: int, per_document: int | None = None) -> list[Candidate]:
    """Return the first `count` candidates that are not duplicates, and no more than `per_document` of a document.

    A duplicate's source is added to the better one.
    """
    kept: list[Candidate] = []
    documents = Counter[tuple[str, str]]()
    seen: list[_Words] = []
    for candidate in candidates:
        words = _Words(candidate.row["text"])
        same = next((place for place, other in enumerate(seen) if _alike(words, other)), None)
        if same is not None:
            source: str = candidate.row["source"]
            better = kept[same]
            better = replace(better, copies=(*better.copies, candidate.row.get("doc_id", "")))
            if source != better.row["source"] and source not in better.also_in:
                better = replace(better, also_in=(*better.also_in, source))
            kept[same] = better
        elif len(kept) < count:
            if per_document is not None:
                document = (candidate.row["shard"], candidate.row["doc_id"])
                if documents[document] == per_document:
                    continue
                documents[document] += 1
            kept.append(candidate)
            seen.append(words)
    return kept


class _Words:
    """The words of a passage, with cached statistics."""

    def __init__(self, text: str) -> None:
        self.all: list[str] = _WORD.findall(text.casefold())
        self.different = frozenset(self.all)

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(self.all)

    @cached_property
    def numbers(self) -> list[str]:
        return [word for word in self.all if any(character.isdigit() for character in word)]


def _alike(one: _Words, other: _Words) -> bool:
    """Return whether two passages are equal except for text at their start or end.

    Passages with another word in the middle, or another number anywhere, may have different meanings and are not alike.
    """
    if one.all == other.all:
        return True
    least = SAME_WORDS * max(len(one.all), len(other.all))
    # Cheap checks first, because nearly all pairs have little in common.
    if min(len(one.all), len(other.all)) < least or len(one.all) - len(one.different - other.different) < least:
        return False
    if (one.counts & other.counts).total() < least or one.numbers != other.numbers:
        return False
    return SequenceMatcher(None, one.all, other.all, autojunk=False).find_longest_match().size >= least


def joined(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Join candidates that are adjacent in a document into one passage, at the rank of the best of them.

    Only whitespace separates adjacent passages. Tables do not store it, so the same number of characters replaces it:
    `end - start` remains the length of the text.
    """
    by_place = {
        (candidate.row["shard"], candidate.row["doc_id"], candidate.row["ordinal"]): candidate
        for candidate in candidates
    }
    result: list[Candidate] = []
    used: set[str] = set()
    for candidate in candidates:
        if candidate.row["chunk_id"] in used:
            continue
        shard, doc_id, ordinal = (candidate.row[name] for name in ("shard", "doc_id", "ordinal"))
        first = last = ordinal
        while (shard, doc_id, first - 1) in by_place:
            first -= 1
        while (shard, doc_id, last + 1) in by_place:
            last += 1
        run = [by_place[shard, doc_id, number] for number in range(first, last + 1)]
        used.update(part.row["chunk_id"] for part in run)
        result.append(_one(candidate, run))
    return result


def _one(best: Candidate, run: Sequence[Candidate]) -> Candidate:
    text, end = run[0].row["text"], run[0].row["end"]
    for part in run[1:]:
        gap = part.row["start"] - end
        text += (" " if gap == 1 else "\n" * max(gap, 0)) + part.row["text"]
        end = part.row["end"]
    head = run[0].row
    row = {
        **best.row,
        "text": text,
        "start": head["start"],
        "end": end,
        "page": head["page"],
        "heading_path": head["heading_path"],
        "ordinal": head["ordinal"],
    }
    also = tuple(dict.fromkeys(source for part in run for source in part.also_in))
    return replace(best, row=row, also_in=also)
