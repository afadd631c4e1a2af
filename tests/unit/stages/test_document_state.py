"""Pure decisions: what to fetch and delete, given a listing and the tables, and the ids of documents and chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_assets.extraction.errors import QuarantineReason
from rag_assets.sources.base import SourceObject
from rag_assets.stages import document_state
from rag_assets.stages.chunks import chunk_ids
from rag_assets.stages.document_state import ObjectState, Plan, QuarantineState
from rag_assets.storage.schemas import document_id

TIME = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "oslo/people/leave.md"


def entry(key: str = KEY, etag: str = "1") -> SourceObject:
    return SourceObject(key, etag, 10, TIME)


def held(key: str = KEY, etag: str = "1", extractor: str = "now") -> dict[str, ObjectState]:
    return {document_id(key): ObjectState(key, etag, 10, extractor, uri(key), frozenset({document_id(key)}))}


def refused(
    reason: QuarantineReason,
    key: str = KEY,
    etag: str = "1",
    extractor: str = "now",
    *,
    older: dict[str, ObjectState] | None = None,
    part: str = "",
    retry: bool = False,
) -> dict[str, ObjectState]:
    """Return the quarantined object, together with an `older` good version of it."""
    refusal = QuarantineState(
        doc_id=document_id(key, part),
        etag=etag,
        size=10,
        extractor=extractor,
        reason=reason.value,
        detail="",
        first_seen=TIME,
        last_seen=TIME,
        attempts=9,
        retry=retry,
    )
    known = (older or {}).get(document_id(key), ObjectState(key))
    stale = bool(known.documents) and not part
    return {document_id(key): replace(known, refusals={part: refusal}, stale=stale)}


def uri(key: str) -> str:
    return f"s3://bucket/{key}"


def plan(listing: Sequence[SourceObject], stored: Mapping[str, ObjectState], extractor: str) -> Plan:
    return document_state.plan(listing, stored, extractor, uri)


def keys(found: Plan) -> list[str]:
    return [fetched.key for fetched in found.fetch]


def test_a_new_document_is_fetched() -> None:
    assert plan([entry()], {}, "now") == Plan((entry(),), (), 0)


def test_an_unchanged_document_is_skipped() -> None:
    assert plan([entry()], held(), "now") == Plan((), (), 1)


def test_a_document_with_another_etag_is_fetched() -> None:
    assert keys(plan([entry(etag="2")], held(), "now")) == [KEY]


def test_a_document_of_a_source_that_moved_is_fetched_so_that_answers_cite_its_new_place() -> None:
    moved = document_state.plan([entry()], held(), "now", lambda key: f"s3://other/{key}")
    assert keys(moved) == [KEY]


def test_a_new_extractor_version_refetches_every_document() -> None:
    assert keys(plan([entry()], held(extractor="before"), "now")) == [KEY]


def test_a_document_that_left_the_listing_is_deleted() -> None:
    assert plan([], held(), "now") == Plan((), (document_id(KEY),), 0)


def test_a_renamed_document_is_fetched_under_its_new_key_and_deleted_under_the_old_one() -> None:
    found = plan([entry("oslo/people/holidays.md")], held(), "now")
    assert keys(found) == ["oslo/people/holidays.md"]
    assert found.delete == (document_id(KEY),)


def test_a_quarantined_document_that_left_the_listing_is_deleted_from_the_quarantine() -> None:
    assert plan([], refused(QuarantineReason.MALFORMED), "now").delete == (document_id(KEY),)


LASTING = [reason for reason in QuarantineReason if reason != QuarantineReason.FETCH_FAILED]


@pytest.mark.parametrize("reason", LASTING)
def test_an_unchanged_quarantined_document_is_not_retried(reason: QuarantineReason) -> None:
    assert plan([entry()], refused(reason), "now") == Plan((), (), 1)


@pytest.mark.parametrize("reason", LASTING)
def test_a_quarantined_document_is_retried_when_it_changes(reason: QuarantineReason) -> None:
    assert keys(plan([entry(etag="2")], refused(reason), "now")) == [KEY]


@pytest.mark.parametrize("reason", LASTING)
def test_a_quarantined_document_is_retried_by_a_new_extractor_version(reason: QuarantineReason) -> None:
    assert keys(plan([entry()], refused(reason, extractor="before"), "now")) == [KEY]


def test_a_document_whose_fetch_failed_is_always_retried() -> None:
    assert keys(plan([entry()], refused(QuarantineReason.FETCH_FAILED), "now")) == [KEY]


def test_an_unchanged_quarantined_version_is_not_refetched_despite_an_older_good_version() -> None:
    """The refused new version is not fetched again, and the old one is not mistaken for it."""
    both = plan([entry(etag="2")], refused(QuarantineReason.MALFORMED, etag="2", older=held(etag="1")), "now")
    assert both == Plan((), (), 1)


def test_a_document_that_reverts_to_its_older_good_version_is_fetched() -> None:
    both = plan([entry(etag="1")], refused(QuarantineReason.MALFORMED, etag="2", older=held(etag="1")), "now")
    assert keys(both) == [KEY]


def test_a_quarantined_document_marked_for_retry_is_fetched() -> None:
    assert keys(plan([entry()], refused(QuarantineReason.MALFORMED, retry=True), "now")) == [KEY]


def test_a_message_with_a_quarantined_attachment_is_skipped_until_it_changes() -> None:
    attached = refused(QuarantineReason.MALFORMED, older=held(), part="scan.bin")
    assert plan([entry()], attached, "now") == Plan((), (), 1)
    assert keys(plan([entry(etag="2")], attached, "now")) == [KEY]


def test_an_object_known_only_from_a_quarantined_attachment_is_fetched() -> None:
    assert keys(plan([entry()], refused(QuarantineReason.MALFORMED, part="scan.bin"), "now")) == [KEY]


names = st.sampled_from(["a/x/1", "a/x/2", "a/x/3", "a/x/4"])
etags = st.sampled_from(["1", "2"])
listings = st.dictionaries(names, etags)


@given(listings, listings)
def test_a_plan_fetches_changes_skips_the_unchanged_and_deletes_what_is_not_listed(
    before: dict[str, str], after: dict[str, str]
) -> None:
    tables = {document_id(key): ObjectState(key, etag, 10, "now") for key, etag in before.items()}
    found = plan([entry(key, etag) for key, etag in after.items()], tables, "now")
    assert set(keys(found)) == {key for key, etag in after.items() if before.get(key) != etag}
    assert found.unchanged == len(after) - len(found.fetch)
    assert set(found.delete) == {document_id(key) for key in before.keys() - after.keys()}


def test_a_paragraph_inserted_above_changes_no_ids_below_it() -> None:
    before = chunk_ids("doc", ["one", "two", "three"])
    after = chunk_ids("doc", ["zero", "one", "two", "three"])
    assert after[1:] == before


def test_repeated_texts_have_distinct_ids() -> None:
    assert len(set(chunk_ids("doc", ["same", "same", "other", "same"]))) == 4


def test_the_same_text_in_another_document_has_another_id() -> None:
    assert chunk_ids("doc", ["same"]) != chunk_ids("other", ["same"])


texts = st.lists(st.sampled_from(["a", "b", "c", "a b", "é", ""]), max_size=12)


@given(texts)
def test_ids_are_distinct_and_deterministic(passages: list[str]) -> None:
    ids = chunk_ids("doc", passages)
    assert len(set(ids)) == len(passages)
    assert ids == chunk_ids("doc", passages)
    assert all(len(chunk_id) == 32 and int(chunk_id, 16) >= 0 for chunk_id in ids)


@given(texts, texts)
def test_ids_depend_on_the_texts_and_not_on_their_positions(passages: list[str], more: list[str]) -> None:
    assert set(chunk_ids("doc", passages)) <= set(chunk_ids("doc", [*more, *passages]))
    assert sorted(chunk_ids("doc", passages)) == sorted(chunk_ids("doc", passages[::-1]))


def test_a_document_left_between_the_stale_mark_and_its_refusal_is_fetched_again() -> None:
    (known,) = held().values()
    marked = {document_id(KEY): replace(known, stale=True)}
    assert keys(plan([entry()], marked, "now")) == [KEY]
    (known,) = refused(QuarantineReason.MALFORMED, older=held(etag="0")).values()
    assert keys(plan([entry()], {document_id(KEY): known}, "now")) == []
    unmarked = {document_id(KEY): replace(known, stale=False)}
    assert keys(plan([entry()], unmarked, "now")) == [KEY]
