"""From the rankings that tables give to one list of candidates: fused by rank, duplicates dropped, neighbours joined.

Pure functions of Arrow rows. Reciprocal rank fusion after Cormack, Clarke and Büttcher (SIGIR 2009), with their
constant of 60.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import numpy.typing as npt

FUSION = 60
ORIGIN = "_origin"
"""Name in a row of what its ranking has as `origin`."""
SAME_WORDS = 0.9
"""Share of a passage that must stand in another in one piece for both to say the same, as copies of a page do."""

# Scripts without spaces would make one word of a sentence, so that each of their characters counts as one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

Kind = Literal["vector", "text"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows that one table found in one way. `fingerprint` is of the table's vectors; texts compare across all.

    `origin` is for whoever is to complete the rows: it stands in each of them.
    """

    kind: Kind
    fingerprint: str
    rows: pa.Table
    origin: Any = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage that was found: its row but for the vector, how it was fused, and its cosine with the question.

    Of the row, ids, `text`, `source` and `shard` suffice until it is joined or made a hit.
    """

    row: Mapping[str, Any]
    fused: float
    score: float | None
    also_in: tuple[str, ...] = ()
    """Sources of passages that say the same and were dropped."""
    copies: tuple[str, ...] = ()
    """Ids of the documents that those passages belong to, as far as the search read them."""

    @property
    def key(self) -> tuple[float, float, str]:
        """What orders candidates, the best first."""
        return -self.fused, -(self.score or 0.0), self.row["chunk_id"]


def fuse(rankings: Iterable[Ranking], vectors: Mapping[str, npt.NDArray[np.float32]], depth: int) -> list[Candidate]:
    """One list of all that was found, the best first.

    Distances are comparable within one embedder only, so each embedder's rows are ranked by themselves; words are
    words whoever embeds. Each of these rankings counts to `depth`. `vectors` holds the question's by fingerprint;
    where it has none, candidates have no score.
    """
    by_kind: dict[tuple[Kind, str], list[Ranking]] = {}
    for ranking in rankings:
        if ranking.rows.num_rows:
            group = ranking.fingerprint if ranking.kind == "vector" else ""
            by_kind.setdefault((ranking.kind, group), []).append(ranking)
    fused: dict[str, float] = {}
    found: dict[str, tuple[Mapping[str, Any], float | None]] = {}
    for (kind, _), group in sorted(by_kind.items(), key=lambda item: item[0], reverse=True):
        for rank, (chunk_id, row, score) in enumerate(_ranked(kind, group, vectors, depth), start=1):
            fused[chunk_id] = fused.get(chunk_id, 0.0) + 1 / (FUSION + rank)
            found.setdefault(chunk_id, (row, score))
    candidates = [Candidate(row, fused[chunk_id], score) for chunk_id, (row, score) in found.items()]
    return sorted(candidates, key=lambda candidate: candidate.key)


def _ranked(
    kind: Kind, group: Sequence[Ranking], vectors: Mapping[str, npt.NDArray[np.float32]], depth: int
) -> list[tuple[str, Mapping[str, Any], float | None]]:
    """The best rows of several tables: their ids, the rows without their vectors, and cosines with the question."""
    column, sign = ("_distance", 1.0) if kind == "vector" else ("_score", -1.0)
    keyed: list[tuple[float, str, int, int]] = []
    for table, ranking in enumerate(group):
        orders: list[float] = cast("Any", ranking.rows[column]).to_pylist()
        ids: list[str] = cast("Any", ranking.rows["chunk_id"]).to_pylist()
        keyed += [(sign * by, chunk_id, table, row) for row, (by, chunk_id) in enumerate(zip(orders, ids, strict=True))]
    keyed.sort()
    chosen: dict[str, tuple[int, int]] = {}
    for _, chunk_id, table, row in keyed:
        chosen.setdefault(chunk_id, (table, row))
        if len(chosen) == depth:
            break
    # A table's rows are read together: one by one they cost more than the search.
    places: dict[int, list[int]] = {}
    for table, row in chosen.values():
        places.setdefault(table, []).append(row)
    read = {
        (table, row): facts
        for table, rows in places.items()
        for row, facts in zip(rows, _read(group[table], rows, vectors), strict=True)
    }
    return [(chunk_id, *read[place]) for chunk_id, place in chosen.items()]


def _read(
    ranking: Ranking, rows: Sequence[int], vectors: Mapping[str, npt.NDArray[np.float32]]
) -> list[tuple[Mapping[str, Any], float | None]]:
    """Rows of one table, without their vectors, and their cosines with the question.

    Where the question has no vector there are none; a ranking by vectors has measured them.
    """
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


def distinct(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """The first `count` candidates that do not say what a better one says; those name where else they stand."""
    kept: list[Candidate] = []
    said: list[_Words] = []
    for candidate in candidates:
        words = _Words(candidate.row["text"])
        same = next((place for place, other in enumerate(said) if _alike(words, other)), None)
        if same is not None:
            source: str = candidate.row["source"]
            better = kept[same]
            better = replace(better, copies=(*better.copies, candidate.row.get("doc_id", "")))
            if source != better.row["source"] and source not in better.also_in:
                better = replace(better, also_in=(*better.also_in, source))
            kept[same] = better
        elif len(kept) < count:
            kept.append(candidate)
            said.append(words)
    return kept


class _Words:
    """The words of a passage, and what is asked of them again and again."""

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
    """Whether two passages are the same but for what stands above or below.

    One word in the middle may turn the meaning, and so may a number anywhere; neither is passed over.
    """
    if one.all == other.all:
        return True
    least = SAME_WORDS * max(len(one.all), len(other.all))
    # What is quick to tell comes first: nearly all pairs are of passages that have little in common.
    if min(len(one.all), len(other.all)) < least or len(one.all) - len(one.different - other.different) < least:
        return False
    if (one.counts & other.counts).total() < least or one.numbers != other.numbers:
        return False
    return SequenceMatcher(None, one.all, other.all, autojunk=False).find_longest_match().size >= least


def joined(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that follow each other in one document made one passage, in the place of the best of them.

    Between two passages of a document there is nothing but white space, which tables do not keep; it is made of as
    many characters, so that `end - start` stays the length of the text.
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
