"""Which tables are searched for a scope: the shards', or the company index plus the shards it does not contain."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_serving.errors import LakeCorrupt
from rag_serving.lake.catalog_entry import CatalogEntry, Publication
from rag_serving.lake.company_index import COMPANY, CompanyRecord, IndexedShard, read_record
from rag_serving.lake.search.plan import main_languages, plan
from rag_serving.lake.search.query import Query
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS

FIRST, SECOND = "a" * 32, "b" * 32
QUESTION = Query("leave", 8)


def entry(
    number: int, *, fingerprint: str = FIRST, digest: str = "digest-0", version: int = 3, chunks: int = 10
) -> CatalogEntry:
    shard = Shard(f"r{number:02}", "d")
    current = Publication(
        version=version,
        content_digest=digest,
        source_digest="s",
        fingerprint=fingerprint,
        documents=1,
        chunks=chunks,
        quarantined=0,
        published_at=datetime(2026, 1, 1, tzinfo=UTC),
        run_id="run",
        published_by="",
        table_format=2,
    )
    return CatalogEntry(
        format=1, region=shard.region, department="d", table=shard.table_name, epoch=1, current=current, history=()
    )


def record(entries: list[CatalogEntry], fingerprint: str = FIRST) -> CompanyRecord:
    held = {
        each.shard.key: IndexedShard(
            content_digest=each.current.content_digest, version=each.current.version, chunks=each.current.chunks
        )
        for each in entries
    }
    return CompanyRecord(format=1, fingerprint=fingerprint, version=7, epoch=1, shards=held)


def tables(targets: list[object]) -> list[tuple[str, str, int, str | None]]:
    return [(t.folder, t.table, t.version, t.scope) for t in targets]  # type: ignore[attr-defined]


def test_few_shards_are_searched_individually() -> None:
    entries = [entry(number) for number in range(4)]
    targets = plan(entries, {FIRST: record(entries)}, QUESTION, wide=4)
    assert [target.table for target in targets] == [each.table for each in entries]
    assert {target.folder for target in targets} == {SHARDS}


def test_many_shards_are_searched_in_the_company_index_at_its_recorded_version() -> None:
    entries = [entry(number) for number in range(5)]
    (target,) = plan(entries, {FIRST: record(entries)}, QUESTION, wide=4)
    assert (target.folder, target.table, target.version, target.scope) == (COMPANY, FIRST, 7, None)


def test_the_filter_names_the_included_or_the_excluded_shards_whichever_is_shorter() -> None:
    entries = [entry(number) for number in range(20)]
    companies = {FIRST: record(entries)}
    (few,) = plan(entries[:5], companies, QUESTION, wide=4)
    assert few.scope is not None
    assert few.scope.startswith("shard IN ('r00/d', ")
    (most,) = plan(entries[:18], companies, QUESTION, wide=4)
    assert most.scope == "shard NOT IN ('r18/d', 'r19/d')"
    assert few.probes > most.probes > 20


def test_a_shard_whose_copy_in_the_index_is_stale_is_searched_directly() -> None:
    entries = [entry(number) for number in range(6)]
    newer = entry(2, digest="digest-1", version=4)
    company, direct = plan([*entries[:2], newer, *entries[3:]], {FIRST: record(entries)}, QUESTION, wide=4)
    assert company.scope == "shard NOT IN ('r02/d')"
    assert (direct.folder, direct.table, direct.version) == (SHARDS, newer.table, 4)


def test_a_withdrawn_shard_that_the_index_still_contains_is_excluded() -> None:
    entries = [entry(number) for number in range(6)]
    (company,) = plan(entries[1:], {FIRST: record(entries)}, QUESTION, wide=4)
    assert company.scope == "shard NOT IN ('r00/d')"


def test_a_compacted_shard_is_searched_in_the_index_except_with_a_date_filter() -> None:
    entries = [entry(number) for number in range(6)]
    compacted = [entry(number, version=9) for number in range(6)]
    companies = {FIRST: record(entries)}
    assert [target.folder for target in plan(compacted, companies, QUESTION, wide=4)] == [COMPANY]
    dated = Query("leave", 8, modified_from=datetime(2026, 1, 1, tzinfo=UTC))
    assert {target.folder for target in plan(compacted, companies, dated, wide=4)} == {SHARDS}


def test_each_embedder_has_its_own_company_table() -> None:
    old, new = [entry(n) for n in range(5)], [entry(n, fingerprint=SECOND) for n in range(5, 11)]
    companies = {FIRST: record(old), SECOND: record(new, SECOND)}
    targets = plan([*old, *new], companies, QUESTION, wide=4)
    assert [(target.folder, target.table) for target in targets] == [(COMPANY, FIRST), (COMPANY, SECOND)]


def test_the_record_of_another_embedder_is_ignored() -> None:
    entries = [entry(number) for number in range(6)]
    moved = [entry(number, fingerprint=SECOND) for number in range(6)]
    assert {target.folder for target in plan(moved, {FIRST: record(entries)}, QUESTION, wide=4)} == {SHARDS}


def test_empty_shards_are_not_searched() -> None:
    assert plan([entry(0, chunks=0)], {}, QUESTION, wide=4) == []


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=12, max_size=12),
    st.integers(1, 6),
)
def test_every_filled_shard_is_searched_exactly_once_at_its_published_digest(
    shards: list[tuple[int, int, bool]], held: list[tuple[int, bool]], wide: int
) -> None:
    """A company table answers for the shards that its filter admits, whatever its record contains."""
    entries = [
        entry(n, digest=f"digest-{d}", chunks=c * 5, fingerprint=SECOND if second else FIRST)
        for n, (d, c, second) in enumerate(shards)
    ]
    companies = {
        FIRST: record([entry(n, digest=f"digest-{d}") for n, (d, there) in enumerate(held) if there]),
        SECOND: record(
            [entry(n, digest=f"digest-{d}", fingerprint=SECOND) for n, (d, there) in enumerate(held) if not there],
            SECOND,
        ),
    }
    answered: list[str] = []
    for target in plan(entries, companies, QUESTION, wide):
        if target.folder == SHARDS:
            answered.append(Shard.from_table_name(target.table).key)
            continue
        for key, of_shard in companies[target.table].shards.items():
            named = target.scope is not None and f"'{key}'" in target.scope
            if target.scope is None or named == (" NOT IN " not in target.scope):
                answered.append(key)
                (published,) = [each for each in entries if each.shard.key == key]
                assert of_shard.content_digest == published.current.content_digest
                assert target.fingerprint == published.current.fingerprint
    assert sorted(answered) == [each.shard.key for each in entries if each.current.chunks]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"fingerprint": "../../x", "version": 1, "epoch": 1, "shards": {}}']
)
def test_a_malformed_record_is_lake_corrupt(data: bytes) -> None:
    with pytest.raises(LakeCorrupt, match="company index"):
        read_record(FIRST, data)


def test_a_record_stored_under_another_fingerprint_is_rejected() -> None:
    with pytest.raises(LakeCorrupt, match="describes"):
        read_record(SECOND, record([]).model_dump_json().encode())


def test_filters_quote_their_values() -> None:
    query = Query("q", 3, path_prefix="it's %_/", modified_before=datetime(2026, 2, 3, 4, 5, tzinfo=UTC))
    assert query.filters == (
        "starts_with(path, 'it''s %_/')",
        "modified_at < TIMESTAMP '2026-02-03 04:05:00.000000Z'",
    )


def test_the_company_index_is_asked_in_the_languages_of_each_of_its_shards() -> None:
    english = [entry(number) for number in range(6)]
    many = [
        each.model_copy(update={"current": each.current.model_copy(update={"languages": {"en": 10_000}})})
        for each in english[:5]
    ]
    finnish = english[5].model_copy(
        update={"current": english[5].current.model_copy(update={"languages": {"fi": 5, "": 2}})}
    )
    entries = [*many, finnish]
    (target,) = plan(entries, {FIRST: record(entries)}, QUESTION, 4)
    assert target.folder == COMPANY
    assert target.languages == ("en", "fi")


def test_a_question_is_stemmed_in_a_few_latin_languages_and_all_with_letters_of_their_own() -> None:
    chunks = {"en": 900, "de": 50, "fr": 40, "hu": 30, "ru": 2, "ar": 1, "": 100}
    assert main_languages(chunks) == ("en", "de", "fr", "ru", "ar")
    assert main_languages({"en": 1_000, "fi": 5}) == ("en",)
    assert main_languages({}) == ()
