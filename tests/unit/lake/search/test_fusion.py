"""From rankings to hits: reciprocal rank fusion, removing copies, joining neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_serving.lake.search.fusion import Candidate, Kind, Ranking, distinct, fuse, joined
from rag_serving.lake.search.parameters import WORDS_WEIGHT
from rag_serving.lake.search.statistics import WordStatistics
from rag_serving.retrieval.hits import hits_of

FIRST, SECOND = "a" * 32, "b" * 32
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "while",
    "nobody",
    "in",
    "the",
    "office",
    "is",
    "looking",
    "at",
    "the",
    "fence",
    "tonight",
]


def row(chunk_id: str, text: str = "", **facts: Any) -> dict[str, Any]:
    plain = {
        "chunk_id": chunk_id,
        "doc_id": "d" + chunk_id,
        "ordinal": 0,
        "text": text or f"text {chunk_id}",
        "source": f"s3://b/oslo/people/{chunk_id}.md",
        "path": f"{chunk_id}.md",
        "type": "text/markdown",
        "title": "",
        "heading_path": [],
        "page": None,
        "start": 0,
        "end": 10,
        "region": "oslo",
        "department": "people",
        "modified_at": datetime(2026, 1, 1, tzinfo=UTC),
        "stale": False,
    }
    return {**plain, **facts}


def ranking(kind: Kind, fingerprint: str, rows: Sequence[dict[str, Any]], orders: Sequence[float]) -> Ranking:
    column = "_distance" if kind == "vector" else "_score"
    vector = pa.array([[1.0, 0.0]] * len(rows), pa.list_(pa.float32(), 2))
    table = pa.Table.from_pylist([{**each, column: order} for each, order in zip(rows, orders, strict=True)])
    return Ranking(kind, fingerprint, table.append_column("vector", vector))


def candidate(chunk_id: str, text: str = "", fused: float = 0.1, **facts: Any) -> Candidate:
    return Candidate({**row(chunk_id, text, **facts), "shard": "oslo/people"}, fused, 0.5)


VECTORS = {FIRST: np.array([0.6, 0.8], dtype=np.float32), SECOND: np.array([1.0, 0.0], dtype=np.float32)}


def order(candidates: Sequence[Candidate]) -> list[str]:
    return [each.row["chunk_id"] for each in candidates]


def test_rows_found_by_both_rankings_come_before_rows_found_by_one() -> None:
    found = fuse(
        "",
        [
            ranking("vector", FIRST, [row("a"), row("b")], [0.1, 0.2]),
            ranking("text", FIRST, [row("b"), row("c")], [9.0, 3.0]),
        ],
        VECTORS,
        10,
    )
    assert order(found) == ["b", "a", "c"]
    assert [each.score for each in found] == pytest.approx([0.8, 0.9, 0.6]), "from the distance, or from the vector"
    assert found[0].fused == pytest.approx(WORDS_WEIGHT), "first by words, last by vectors"
    assert found[2].fused == pytest.approx(WORDS_WEIGHT * 3 / 9)


def test_tables_of_one_embedder_are_ranked_by_distance_and_text_matches_by_score() -> None:
    vectors = [
        ranking("vector", FIRST, [row("a")], [0.4]),
        ranking("vector", FIRST, [row("b")], [0.1]),
    ]
    assert order(fuse("", vectors, VECTORS, 10)) == ["b", "a"]
    words = [ranking("text", FIRST, [row("a")], [1.0]), ranking("text", SECOND, [row("b")], [2.0])]
    assert order(fuse("", words, VECTORS, 10)) == ["b", "a"]


def test_vectors_of_two_embedders_are_ranked_separately_because_distances_differ() -> None:
    near = ranking("vector", FIRST, [row("a1"), row("a2")], [0.01, 0.02])
    far = ranking("vector", SECOND, [row("b1"), row("b2")], [0.91, 0.92])
    found = fuse("", [near, far], VECTORS, 10)
    assert {each.row["chunk_id"]: each.fused for each in found} == {
        "a1": pytest.approx(1 - WORDS_WEIGHT),
        "b1": pytest.approx(1 - WORDS_WEIGHT),
        "a2": 0,
        "b2": 0,
    }
    assert set(order(found)[:2]) == {"a1", "b1"}


def test_ties_are_broken_by_words() -> None:
    found = fuse(
        "",
        [
            ranking("vector", FIRST, [row("a"), row("b"), row("c")], [0.1, 0.2, 0.2]),
            ranking("text", FIRST, [row("c"), row("d")], [9.0, 9.0]),
        ],
        VECTORS,
        10,
    )
    assert order(found) == ["c", "d", "a", "b"]


def in_language(language: str, read: tuple[str, ...] | None) -> list[Ranking]:
    words = pa.Table.from_pylist(
        [{**row(name), "language": language, "_score": score} for name, score in (("a", 9.0), ("b", 8.9))]
    )
    nearest = ranking("vector", FIRST, [row("b"), row("c"), row("a")], [0.1, 0.2, 0.3])
    return [Ranking("text", FIRST, words, None, read), replace(nearest, read=read)]


def test_vectors_of_a_model_that_does_not_read_the_language_hardly_count() -> None:
    assert order(fuse("", in_language("ru", ("en",)), VECTORS, 10)) == ["a", "b", "c"]
    for read in (("en", "ru"), None):
        assert order(fuse("", in_language("ru", read), VECTORS, 10))[0] == "b"
    assert order(fuse("", in_language("", ("en",)), VECTORS, 10))[0] == "b", "an unknown language counts as read"


def test_a_passage_with_exactly_what_is_named_comes_first() -> None:
    words = [
        {**row(name), "words": words, "text": words, "_score": 9.0} for name, words in (("a", "x"), ("b", "adr_16"))
    ]
    rankings = [
        Ranking("text", FIRST, pa.Table.from_pylist(words)),
        ranking("vector", FIRST, [row("a"), row("c")], [0.1, 0.2]),
    ]
    assert order(fuse("where is adr_16", rankings, VECTORS, 10))[0] == "b"


def test_full_text_scores_of_several_tables_are_compared_by_the_statistics_of_all() -> None:
    def table(name: str, words: str, score: float) -> Ranking:
        rows = pa.Table.from_pylist([{**row(name), "words": words, "_score": score}])
        return Ranking("text", FIRST, rows, words=("common", "rare"))

    tables = [table("c", "common common", 9.0), table("b", "rare", 1.0)]
    everywhere = WordStatistics.of(
        pa.Table.from_pylist([{"words": text} for text in ("common", "common", "common x", "rare")]).to_batches()
    )
    assert order(fuse("", tables, {}, 10)) == ["c", "b"]
    assert order(fuse("", tables, {}, 10, everywhere)) == ["b", "c"]


def test_without_vectors_candidates_are_ordered_but_have_no_score() -> None:
    table = pa.Table.from_pylist([{**row("a"), "_score": 1.0}, {**row("b"), "_score": 2.0}])
    found = fuse("", [Ranking("text", FIRST, table)], {}, 10)
    assert order(found) == ["b", "a"]
    assert [each.score for each in found] == [None, None]
    assert [hit.score for hit in hits_of(found)] == [None, None]


def test_a_ranking_counts_only_down_to_its_depth() -> None:
    rows = [row(f"{number:02}") for number in range(9)]
    assert len(fuse("", [ranking("vector", FIRST, rows, [float(n) for n in range(9)])], VECTORS, 4)) == 4


def test_a_copy_is_dropped_and_listed_under_the_better_one() -> None:
    text = " ".join(WORDS)
    kept = distinct([candidate("a", text), candidate("b", "something else entirely"), candidate("c", text.upper())], 3)
    assert order(kept) == ["a", "b"]
    assert kept[0].also_in == ("s3://b/oslo/people/c.md",)


def test_a_copy_in_the_same_document_is_not_listed_as_another_source() -> None:
    kept = distinct([candidate("a", "word " * 30, source="s"), candidate("b", "word " * 30, source="s")], 3)
    assert order(kept) == ["a"]
    assert kept[0].also_in == ()


def test_a_copy_under_another_header_is_still_a_copy() -> None:
    text = " ".join(WORDS * 4)
    assert order(distinct([candidate("a", "London edition. " + text), candidate("b", text)], 3)) == ["a"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"{' '.join(WORDS)} within 30 days", f"{' '.join(WORDS)} within 45 days"),
        (
            f"You may {' '.join(WORDS)} and leave {' '.join(WORDS)}",
            f"You may {' '.join(WORDS)} not leave {' '.join(WORDS)}",
        ),
        ("退職届は退職日の30日前までに提出します。" * 2, "退職届は退職日の45日前までに提出します。" * 2),
        ("退職届は退職日の前までに提出します。", "休暇届は休暇日の後までに提示します。"),
        ("a", "b"),
    ],
)
def test_a_different_number_or_word_in_the_middle_makes_a_different_passage(one: str, other: str) -> None:
    assert order(distinct([candidate("a", one), candidate("b", other)], 3)) == ["a", "b"]


def test_copies_do_not_take_up_places_among_the_hits() -> None:
    copies = [candidate(f"c{number}", " ".join(WORDS)) for number in range(5)]
    others = [candidate(f"o{number}", f"entirely different matter {number}") for number in range(5)]
    assert order(distinct([*copies, *others], 3)) == ["c0", "o0", "o1"]


@given(st.lists(st.text(max_size=40), max_size=12), st.integers(1, 12))
def test_only_copies_and_passages_beyond_the_count_are_dropped(texts: list[str], count: int) -> None:
    candidates = [candidate(f"{number:02}", text or " ") for number, text in enumerate(texts)]
    kept = distinct(candidates, count)
    assert len(kept) <= count
    assert order(kept) == sorted(order(kept))
    if len(kept) < count:
        named = {each.row["source"] for each in kept} | {source for each in kept for source in each.also_in}
        assert named == {each.row["source"] for each in candidates}


def test_neighbouring_passages_are_joined_at_the_rank_of_the_best() -> None:
    document = "First sentence. Second one.\n\nThird."
    spans = [(0, 15), (16, 27), (29, 35)]
    parts = [
        candidate(str(number), document[start:end], doc_id="d", ordinal=number, start=start, end=end, page=number + 1)
        for number, (start, end) in enumerate(spans)
    ]
    other = candidate("x", "elsewhere", doc_id="e")
    (whole, rest) = joined([parts[1], other, parts[2], parts[0]])
    assert whole.row["text"] == document
    assert (whole.row["start"], whole.row["end"], whole.row["page"]) == (0, 35, 1)
    assert whole.row["chunk_id"] == "1"
    assert rest == other


def test_passages_with_a_gap_between_them_are_not_joined() -> None:
    parts = [candidate(str(number), doc_id="d", ordinal=number) for number in (0, 2)]
    assert joined(parts) == parts


def test_passages_of_equal_documents_in_two_shards_are_not_joined() -> None:
    one, other = candidate("a", doc_id="d", ordinal=0), candidate("b", doc_id="d", ordinal=1)
    moved = Candidate({**other.row, "shard": "lisbon/people"}, other.fused, other.score)
    assert joined([one, moved]) == [one, moved]


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_joined_passages_are_as_long_as_their_span_and_hold_every_part(places: list[int], left_out: set[int]) -> None:
    document = "Aaa bbb. Ccc ddd.\n\nEee fff ggg.\nHhh iii. Jjj kkk. Lll"
    spans = [(0, 8), (9, 17), (19, 31), (32, 40), (41, 49), (50, 53)]
    parts = [
        candidate(
            str(place),
            document[spans[place][0] : spans[place][1]],
            doc_id="d",
            ordinal=place,
            start=spans[place][0],
            end=spans[place][1],
        )
        for place in places
        if place not in left_out
    ]
    for passage in joined(parts):
        assert len(passage.row["text"]) == passage.row["end"] - passage.row["start"]
        assert passage.row["text"].split() == document[passage.row["start"] : passage.row["end"]].split()
    assert sum(len(passage.row["text"].split()) for passage in joined(parts)) == sum(
        len(part.row["text"].split()) for part in parts
    )


def test_a_hit_has_the_rerankers_score_and_the_fused_score() -> None:
    (hit,) = hits_of([candidate("a")], {"a": 3.5})
    assert (hit.reranked, hit.fused, hit.rank) == (3.5, 0.1, 1)
