"""What a listing asks for against what the tables hold, and the ids of what is cut from it: pure decisions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_assets.extraction.errors import QuarantineReason
from rag_assets.sources.base import SourceObject
from rag_assets.stages.chunks import chunk_ids
from rag_assets.stages.document_state import ObjectState, Plan, QuarantineState, plan
from rag_assets.storage.schemas import document_id

TIME = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "oslo/people/leave.md"


def entry(key: str = KEY, etag: str = "1") -> SourceObject:
    return SourceObject(key, etag, 10, TIME)


def held(key: str = KEY, etag: str = "1", extractor: str = "now") -> dict[str, ObjectState]:
    return {document_id(key): ObjectState(key, etag, 10, extractor, frozenset({document_id(key)}))}


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
    """The object in quarantine, beside an `older` good version of it."""
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


def keys(found: Plan) -> list[str]:
    return [fetched.key for fetched in found.fetch]


def test_a_new_document_is_fetched() -> None:
    assert plan([entry()], {}, "now") == Plan((entry(),), (), 0)


def test_an_unchanged_document_is_left_alone() -> None:
    assert plan([entry()], held(), "now") == Plan((), (), 1)


def test_a_document_with_another_etag_is_fetched() -> None:
    assert keys(plan([entry(etag="2")], held(), "now")) == [KEY]


def test_a_new_extractor_reads_every_document_again() -> None:
    assert keys(plan([entry()], held(extractor="before"), "now")) == [KEY]


def test_a_document_that_left_the_listing_is_deleted() -> None:
    assert plan([], held(), "now") == Plan((), (document_id(KEY),), 0)


def test_a_renamed_document_is_fetched_under_its_new_key_and_deleted_under_the_old_one() -> None:
    found = plan([entry("oslo/people/holidays.md")], held(), "now")
    assert keys(found) == ["oslo/people/holidays.md"]
    assert found.delete == (document_id(KEY),)


def test_a_document_that_is_quarantined_and_gone_is_deleted_from_the_quarantine() -> None:
    assert plan([], refused(QuarantineReason.MALFORMED), "now").delete == (document_id(KEY),)


LASTING = [reason for reason in QuarantineReason if reason != QuarantineReason.FETCH_FAILED]


@pytest.mark.parametrize("reason", LASTING)
def test_a_quarantined_document_is_not_tried_again_while_nothing_changes(reason: QuarantineReason) -> None:
    assert plan([entry()], refused(reason), "now") == Plan((), (), 1)


@pytest.mark.parametrize("reason", LASTING)
def test_a_quarantined_document_is_tried_again_when_it_changes(reason: QuarantineReason) -> None:
    assert keys(plan([entry(etag="2")], refused(reason), "now")) == [KEY]


@pytest.mark.parametrize("reason", LASTING)
def test_a_quarantined_document_is_tried_again_by_a_new_extractor(reason: QuarantineReason) -> None:
    assert keys(plan([entry()], refused(reason, extractor="before"), "now")) == [KEY]


def test_a_document_whose_fetch_failed_is_always_tried_again() -> None:
    assert keys(plan([entry()], refused(QuarantineReason.FETCH_FAILED), "now")) == [KEY]


def test_the_quarantine_knows_better_than_the_older_good_version() -> None:
    """The new version was refused: neither is it fetched again, nor is the old one taken for it."""
    both = plan([entry(etag="2")], refused(QuarantineReason.MALFORMED, etag="2", older=held(etag="1")), "now")
    assert both == Plan((), (), 1)


def test_the_return_of_the_older_good_version_is_noticed() -> None:
    both = plan([entry(etag="1")], refused(QuarantineReason.MALFORMED, etag="2", older=held(etag="1")), "now")
    assert keys(both) == [KEY]


def test_a_document_that_somebody_wants_tried_again_is() -> None:
    assert keys(plan([entry()], refused(QuarantineReason.MALFORMED, retry=True), "now")) == [KEY]


def test_an_attachment_in_quarantine_leaves_its_message_alone_until_that_changes() -> None:
    attached = refused(QuarantineReason.MALFORMED, older=held(), part="scan.bin")
    assert plan([entry()], attached, "now") == Plan((), (), 1)
    assert keys(plan([entry(etag="2")], attached, "now")) == [KEY]


def test_an_object_of_which_only_an_attachment_was_noted_is_read() -> None:
    assert keys(plan([entry()], refused(QuarantineReason.MALFORMED, part="scan.bin"), "now")) == [KEY]


names = st.sampled_from(["a/x/1", "a/x/2", "a/x/3", "a/x/4"])
etags = st.sampled_from(["1", "2"])
listings = st.dictionaries(names, etags)


@given(listings, listings)
def test_fetched_and_unchanged_make_up_the_listing_and_deletions_what_it_lacks(
    before: dict[str, str], after: dict[str, str]
) -> None:
    tables = {document_id(key): ObjectState(key, etag, 10, "now") for key, etag in before.items()}
    found = plan([entry(key, etag) for key, etag in after.items()], tables, "now")
    assert set(keys(found)) == {key for key, etag in after.items() if before.get(key) != etag}
    assert found.unchanged == len(after) - len(found.fetch)
    assert set(found.delete) == {document_id(key) for key in before.keys() - after.keys()}


def test_a_paragraph_put_in_above_renames_nothing_below_it() -> None:
    before = chunk_ids("doc", ["one", "two", "three"])
    after = chunk_ids("doc", ["zero", "one", "two", "three"])
    assert after[1:] == before


def test_repeated_texts_have_ids_of_their_own() -> None:
    assert len(set(chunk_ids("doc", ["same", "same", "other", "same"]))) == 4


def test_the_same_text_in_another_document_has_another_id() -> None:
    assert chunk_ids("doc", ["same"]) != chunk_ids("other", ["same"])


texts = st.lists(st.sampled_from(["a", "b", "c", "a b", "é", ""]), max_size=12)


@given(texts)
def test_ids_are_distinct_and_always_the_same(passages: list[str]) -> None:
    ids = chunk_ids("doc", passages)
    assert len(set(ids)) == len(passages)
    assert ids == chunk_ids("doc", passages)
    assert all(len(chunk_id) == 32 and int(chunk_id, 16) >= 0 for chunk_id in ids)


@given(texts, texts)
def test_the_ids_depend_on_which_texts_there_are_and_not_on_where(passages: list[str], more: list[str]) -> None:
    assert set(chunk_ids("doc", passages)) <= set(chunk_ids("doc", [*more, *passages]))
    assert sorted(chunk_ids("doc", passages)) == sorted(chunk_ids("doc", passages[::-1]))


def test_what_a_writer_left_between_the_mark_of_stale_and_the_refusal_is_read_again() -> None:
    (known,) = held().values()
    marked = {document_id(KEY): replace(known, stale=True)}
    assert keys(plan([entry()], marked, "now")) == [KEY]
    (known,) = refused(QuarantineReason.MALFORMED, older=held(etag="0")).values()
    assert keys(plan([entry()], {document_id(KEY): known}, "now")) == []
    unmarked = {document_id(KEY): replace(known, stale=False)}
    assert keys(plan([entry()], unmarked, "now")) == [KEY]
