"""Selecting the shards of a backfill."""

from __future__ import annotations

import unicodedata

import pytest

from rag_assets.runs.selection import Selection, select_shards
from rag_serving.errors import InvalidShardName, UnknownScope
from rag_serving.lake.shards import Shard

LISBON, NAGOYA, OSLO = Shard("Lisbon", "people"), Shard("Nagoya", "people"), Shard("Oslo", "people")
OSLO_IT, GONE = Shard("Oslo", "it"), Shard("Bergen", "people")

# Lisbon is unchanged, Nagoya has changed, both Oslo shards are new, Bergen has left the source.
LISTED = {LISBON: "1", NAGOYA: "2", OSLO: "3", OSLO_IT: "4"}
PUBLISHED = {LISBON: "1", NAGOYA: "before", GONE: "5"}
FAILED = {NAGOYA, OSLO}


def select(which: Selection, **filters: list[str]) -> list[Shard]:
    return select_shards(which, LISTED, PUBLISHED, FAILED, **filters)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("which", "chosen"),
    [
        (Selection.ALL, [GONE, LISBON, NAGOYA, OSLO_IT, OSLO]),
        (Selection.CHANGED, [GONE, NAGOYA, OSLO_IT, OSLO]),
        (Selection.MISSING, [OSLO_IT, OSLO]),
        (Selection.FAILED, [NAGOYA, OSLO]),
    ],
)
def test_each_selection_returns_its_shards_in_order(which: Selection, chosen: list[Shard]) -> None:
    assert select(which) == chosen


def test_every_selection_is_covered() -> None:
    assert {which.value for which in Selection} == {"changed", "missing", "failed", "all"}


def test_a_failed_shard_in_neither_source_nor_lake_is_not_selected() -> None:
    assert select_shards(Selection.FAILED, LISTED, PUBLISHED, {Shard("Elsewhere", "it")}) == []


def test_regions_and_departments_narrow_the_selection() -> None:
    assert select(Selection.ALL, regions=["Oslo"]) == [OSLO_IT, OSLO]
    assert select(Selection.ALL, departments=["it"]) == [OSLO_IT]
    assert select(Selection.ALL, regions=["Oslo", "Lisbon"], departments=["people"]) == [LISBON, OSLO]


def test_filters_apply_to_every_selection() -> None:
    assert select(Selection.CHANGED, regions=["Lisbon", "Nagoya"]) == [NAGOYA]
    assert select(Selection.MISSING, departments=["people"]) == [OSLO]
    assert select(Selection.FAILED, regions=["Nagoya"]) == [NAGOYA]


def test_a_known_region_without_matching_shards_selects_nothing() -> None:
    assert select(Selection.MISSING, regions=["Lisbon"]) == []


def test_a_region_that_exists_only_in_the_lake_is_known() -> None:
    assert select(Selection.ALL, regions=["Bergen"]) == [GONE]


def test_an_unknown_region_is_an_error_that_suggests_the_nearest_name() -> None:
    with pytest.raises(UnknownScope, match=r"no region 'Lisbonne' in the source or the lake; did you mean Lisbon\?"):
        select(Selection.ALL, regions=["Oslo", "Lisbonne"])


def test_an_unknown_department_is_an_error() -> None:
    with pytest.raises(UnknownScope, match=r"no department 'catering' in the source or the lake$"):
        select(Selection.ALL, departments=["catering"])


def test_names_are_case_sensitive() -> None:
    with pytest.raises(UnknownScope, match="did you mean Oslo"):
        select(Selection.ALL, regions=["oslo"])


@pytest.mark.parametrize("name", ["", "a/b", "..", "o;slo", "os\0lo", "x" * 200])
def test_an_invalid_name_is_rejected(name: str) -> None:
    with pytest.raises(InvalidShardName):
        select(Selection.ALL, regions=[name])


@pytest.mark.parametrize("given", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_composed_and_decomposed_accents_select_the_same_shard(given: str, stored: str) -> None:
    def form(name: str, which: str) -> str:
        return unicodedata.normalize(which, name)  # pyright: ignore[reportArgumentType]

    shard = Shard(form("Malmö", stored), form("Förvaltning", stored))
    chosen = select_shards(
        Selection.ALL, {shard: "1"}, {}, (), regions=[form("Malmö", given)], departments=[form("Förvaltning", given)]
    )
    assert chosen == [shard]


def test_with_nothing_listed_or_published_nothing_is_selected() -> None:
    for which in Selection:
        assert select_shards(which, {}, {}, ()) == []
