"""Shard names: which ones are valid, and that key and table name both round-trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_serving.errors import InvalidShardName, RagError
from rag_serving.lake.shards import MAX_SEGMENT_CHARACTERS, MAX_TABLE_NAME, Shard, check_name, same_name

names = (
    st.text(st.characters(categories=["L", "M", "N"], include_characters=" -_.&+()@"), min_size=1, max_size=11)
    .map(lambda name: name.strip(" ."))
    .filter(lambda name: name and ".." not in name)
)
shards = st.builds(Shard, names, names).filter(lambda shard: len(shard.table_name) <= MAX_TABLE_NAME)

GOOD = [
    "london",
    "London",
    "New York",
    "são-paulo",
    "東京",
    "Ελλάδα",
    "a__b",
    "_",
    "-",
    "R&D (labs)",
    "v1.2",
    "_6c",
    "team@home+1",
    "½",
    "e\u0301",
]
BAD = {
    "empty": "",
    "pipe": "a|b",
    "dots": "..",
    "dots inside": "a..b",
    "leading dot": ".git",
    "trailing dot": "a.",
    "leading space": " a",
    "trailing space": "a ",
    "newline": "a\nb",
    "trailing newline": "a\n",
    "carriage return": "a\rb",
    "tab": "a\tb",
    "NUL": "a\0b",
    "double quote": 'a"b',
    "slash": "a/b",
    "backslash": "a\\b",
    "asterisk": "a*",
    "braces": "a{b}",
    "semicolon": "a;b",
    "percent": "a%2fb",
    "no-break space": "a\u00a0b",
    "right-to-left override": "a\u202eb",
    "lone surrogate": "a\udc80b",
    "emoji": "a😀",
    "too long": "a" * (MAX_SEGMENT_CHARACTERS + 1),
}
ALLOWED = {
    "empty": "region/department",
    "dots": "'..'",
    "dots inside": "'..'",
    "leading dot": "start or end",
    "trailing dot": "start or end",
    "leading space": "start or end",
    "trailing space": "start or end",
    "too long": f"(limit {MAX_SEGMENT_CHARACTERS})",
}


@given(shards)
def test_a_shard_round_trips_through_its_key_and_its_table_name(shard: Shard) -> None:
    assert Shard.parse(shard.key) == shard
    assert Shard.from_table_name(shard.table_name) == shard


@given(shards)
def test_a_table_name_is_lower_case_ascii_and_short_enough_for_a_file_name(shard: Shard) -> None:
    assert set(shard.table_name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert shard.table_name.count(".") == 1
    assert shard.table_name == shard.table_name.casefold()
    assert len(shard.table_name) <= MAX_TABLE_NAME


@given(shards, shards)
def test_distinct_shards_have_table_names_that_differ_even_ignoring_case(one: Shard, other: Shard) -> None:
    assert (one == other) == (one.table_name.casefold() == other.table_name.casefold())


@given(st.lists(st.sampled_from(["a", "A", "_", "__", "_41", "-", "å", "a\u030a"]), min_size=1, max_size=3))
def test_names_that_look_like_escape_sequences_round_trip(parts: list[str]) -> None:
    shard = Shard("".join(parts), "x")
    assert Shard.from_table_name(shard.table_name) == shard


@pytest.mark.parametrize("name", GOOD)
def test_case_accents_underscores_and_spaces_round_trip(name: str) -> None:
    check_name("region", name)
    shard = Shard(name, name)
    assert Shard.from_table_name(shard.table_name) == shard
    assert (Shard.parse(shard.key).region, str(shard)) == (name, f"{name}/{name}")


def test_every_valid_name_has_its_own_table_name() -> None:
    tables = {Shard(region, department).table_name for region in GOOD for department in GOOD}
    assert len(tables) == len(GOOD) ** 2


@pytest.mark.parametrize("kind", BAD)
def test_the_error_for_an_invalid_name_lists_what_is_allowed(kind: str) -> None:
    for build in (lambda: Shard(BAD[kind], "people"), lambda: Shard("london", BAD[kind])):
        with pytest.raises(InvalidShardName) as caught:
            build()
        message = str(caught.value)
        assert ALLOWED.get(kind, "letters, digits, space and - _ . & + ( ) @ , : ' are allowed") in message
        assert message.isprintable()
        assert len(message) < 300


def test_the_error_for_an_invalid_name_identifies_the_region_or_the_department() -> None:
    with pytest.raises(InvalidShardName, match=r"the region 'a\|b'"):
        Shard("a|b", "people")
    with pytest.raises(InvalidShardName, match=r"the department 'a\|b'"):
        Shard("london", "a|b")


def test_invalid_shard_name_is_both_a_rag_error_and_a_value_error() -> None:
    assert issubclass(InvalidShardName, RagError)
    assert issubclass(InvalidShardName, ValueError)


def test_a_name_that_is_not_a_string_is_rejected() -> None:
    with pytest.raises(InvalidShardName, match="must be a string, not int"):
        Shard(7, "people")  # pyright: ignore[reportArgumentType]


def test_two_names_that_are_too_long_only_in_combination_are_rejected() -> None:
    check_name("region", "東" * 20)
    with pytest.raises(InvalidShardName, match="too long together"):
        Shard("東" * 20, "京" * 20)


@pytest.mark.parametrize("key", ["", "london", "/", "a/", "/b", "a/b/c", "a/b/", "//", "a|b", "london\n/people"])
def test_a_key_that_is_not_region_slash_department_is_rejected(key: str) -> None:
    with pytest.raises(InvalidShardName):
        Shard.parse(key)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a",
        "a.",
        ".b",
        "a.b.c",
        "A.b",
        "a/b",
        "a_b.c",
        "a_zz.b",
        "a_4.b",
        "_ff.b",
        "_7c.b",
        "_2e_2e.b",
        "a.b\n",
    ],
)
def test_an_invalid_table_name_is_rejected(name: str) -> None:
    with pytest.raises(InvalidShardName):
        Shard.from_table_name(name)


@pytest.mark.parametrize("name", ["_61.b", "a._62", "_2d.b", "_C3_A9.b"])
def test_a_non_canonical_table_name_is_rejected(name: str) -> None:
    with pytest.raises(InvalidShardName):
        Shard.from_table_name(name)


@given(st.text(max_size=40))
def test_any_text_is_the_table_name_of_exactly_one_shard_or_rejected(text: str) -> None:
    try:
        shard = Shard.from_table_name(text)
    except InvalidShardName:
        return
    assert shard.table_name == text


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_two_texts_name_a_shard_or_raise_invalid_shard_name(region: str, department: str) -> None:
    try:
        shard = Shard(region, department)
    except InvalidShardName:
        return
    assert Shard.from_table_name(shard.table_name) == shard


def test_names_are_compared_by_normalized_accents_but_with_case() -> None:
    assert same_name("M\u00fcnchen", "Mu\u0308nchen")
    assert not same_name("london", "London")
    assert Shard("M\u00fcnchen", "x").table_name != Shard("Mu\u0308nchen", "x").table_name


def test_shards_sort_by_region_and_then_by_department() -> None:
    shuffled = [Shard("b", "a"), Shard("a", "c"), Shard("a", "b")]
    assert [shard.key for shard in sorted(shuffled)] == ["a/b", "a/c", "b/a"]
