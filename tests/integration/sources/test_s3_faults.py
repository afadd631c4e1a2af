"""A real S3 server that throttles, breaks off, returns stale listings or loses responses.

Nothing is lost or wrongly deleted, and every final failure is a named error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import dagster as dg
import pytest

from rag_assets.errors import SourceUnavailable
from rag_assets.pipeline import Pipeline
from rag_assets.publishing.publish import publish
from rag_assets.publishing.retention import Retention
from rag_assets.sources.base import ObjectUnreadable, Source
from rag_assets.sources.open import open_source
from rag_assets.stages.documents import IngestionLimits, sync_documents
from rag_assets.storage.schemas import QUARANTINE
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.clients.sync import RagClient
from rag_serving.errors import LakeError, LakeUnavailable, WriteConflict
from rag_serving.lake.object_store import ABSENT, ObjectStore, open_object_store
from rag_serving.settings import ServingSettings
from tests.pipelines import assert_same_tables, failure_of, published_rows, stage_rows, writer_of
from tests.servers import Fault, FaultyS3, Rule, S3Server, faulty_s3
from tests.servers.roots import BucketRoot, FolderRoot, SourceRoot
from tests.shard_harness import Bench, new_shard

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

EVERY_ODD = tuple(range(1, 400, 2))


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[FaultyS3]:
    with faulty_s3(s3.endpoint_url) as faulty:
        yield faulty


@pytest.fixture
def faulty(proxy: FaultyS3, s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The proxy that the AWS_* variables of this test point to, without faults before and after."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
    proxy.inject()
    yield proxy
    proxy.inject()


@pytest.fixture
def objects(faulty: FaultyS3, s3_environment: str) -> ObjectStore:
    return open_object_store(f"s3://{s3_environment}/lake")


@pytest.fixture
def bucket(s3_environment: str, s3_client: S3Client) -> BucketRoot:
    """A source that the test writes to directly, without the proxy."""
    return BucketRoot(s3_client, s3_environment, "incoming")


@pytest.fixture
def source(faulty: FaultyS3, bucket: BucketRoot) -> Source:
    # A separate session: the default one would keep the credentials of another test.
    return open_source(bucket.uri, boto3.session.Session().client("s3"))


@pytest.fixture(params=["source", "lake", "both"])
def bench(
    request: pytest.FixtureRequest,
    faulty: FaultyS3,
    bucket: BucketRoot,
    lakes: Callable[[str], str],
    instance: dg.DagsterInstance,
    tmp_path: Path,
) -> Bench:
    """The source, the lake or both are on S3 behind the proxy; the other is a folder."""
    root: SourceRoot = FolderRoot(tmp_path) if request.param == "lake" else bucket
    return Bench(root, lakes("folder" if request.param == "source" else "s3"), new_shard(), instance)


source_on_s3 = pytest.mark.parametrize("bench", ["source"], indirect=True)
lake_on_s3 = pytest.mark.parametrize("bench", ["lake"], indirect=True)


def fill(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.put(f"{number:02}.md", f"# Page {number}\n\nThe canteen of house {number} opens at eight.\n")


def ingest(bench: Bench, *, allow_mass_delete: bool = False) -> None:
    """Run only the step `raw_documents`, without the step's retries."""
    pipeline = Pipeline(bench.settings)
    limits = IngestionLimits(allow_mass_delete=allow_mass_delete)
    with writer_of(bench.lake, bench.shard) as writer:
        sync_documents(writer, pipeline.source(), pipeline.parser(), limits, lambda _: None)


# Small objects of the lake.


@pytest.mark.parametrize("fault", [Fault.LOST_RESPONSE, Fault.LOST_RESPONSE_500])
def test_a_writer_recognizes_its_own_conditional_write_after_a_lost_response(
    objects: ObjectStore, faulty: FaultyS3, fault: Fault
) -> None:
    faulty.inject(Rule(fault, method="PUT", nth=(1,)))
    first = objects.put("key", b"one", expect=ABSENT)
    faulty.inject(Rule(fault, method="PUT", nth=(1,)))
    second = objects.put("key", b"two", expect=first)
    assert faulty.injected == {fault: 1}
    assert objects.put("key", b"three", expect=second)


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.SLOW_DOWN, Fault.INTERNAL_ERROR])
def test_a_conditional_write_that_never_arrived_is_retried(
    objects: ObjectStore, faulty: FaultyS3, fault: Fault
) -> None:
    faulty.inject(Rule(fault, method="PUT", nth=(1, 2, 4)))
    first = objects.put("key", b"one", expect=ABSENT)
    objects.put("key", b"two", expect=first)
    assert faulty.injected == {fault: 3}
    found = objects.get("key")
    assert found is not None
    assert found.data == b"two"


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.LOST_RESPONSE, Fault.LOST_RESPONSE_500])
def test_a_lost_race_is_still_a_conflict_after_a_lost_response(
    objects: ObjectStore, faulty: FaultyS3, fault: Fault
) -> None:
    first = objects.put("key", b"one", expect=ABSENT)
    objects.put("key", b"the other's", expect=first)
    faulty.inject(Rule(fault, method="PUT", nth=(1,)))
    with pytest.raises(WriteConflict):
        objects.put("key", b"mine", expect=first)
    assert faulty.injected == {fault: 1}
    found = objects.get("key")
    assert found is not None
    assert found.data == b"the other's"


@pytest.mark.parametrize("expect_absent", [True, False])
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.LOST_RESPONSE_500])
def test_another_writers_identical_bytes_are_not_mistaken_for_ones_own(
    objects: ObjectStore, faulty: FaultyS3, fault: Fault, expect_absent: bool
) -> None:
    before = ABSENT if expect_absent else objects.put("key", b"one")
    objects.put("key", b"two", expect=before)
    faulty.inject(Rule(fault, method="PUT", nth=(1,)))
    with pytest.raises(WriteConflict):
        objects.put("key", b"two", expect=before)
    assert faulty.injected == {fault: 1}


@pytest.mark.parametrize("fault", [Fault.CUT_LISTING, Fault.SHORT_BODY, Fault.SLOW_DOWN, Fault.RESET])
def test_an_interrupted_listing_of_the_lake_is_retried(objects: ObjectStore, faulty: FaultyS3, fault: Fault) -> None:
    for number in range(5):
        objects.put(f"catalog/{number}.json", b"{}")
    faulty.inject(Rule(fault, kind="listing", nth=(1,)))
    assert len(objects.list("catalog")) == 5
    assert faulty.injected == {fault: 1}


def test_a_truncated_body_is_never_returned_as_a_complete_object(objects: ObjectStore, faulty: FaultyS3) -> None:
    data = bytes(range(256)) * 1000
    objects.put("key", data)
    faulty.inject(Rule(Fault.SHORT_BODY, method="GET", nth=(1, 2)))
    found = objects.get("key")
    assert found is not None
    assert found.data == data
    assert faulty.injected == {Fault.SHORT_BODY: 2}


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.RESET, Fault.REFUSED])
def test_requests_to_an_unavailable_lake_stop_after_a_bounded_number_of_retries(
    objects: ObjectStore, faulty: FaultyS3, fault: Fault
) -> None:
    etag = objects.put("key", b"one")
    faulty.inject(Rule(fault))
    with pytest.raises(LakeUnavailable, match="RAG_LAKE_URI"):
        objects.put("key", b"two", expect=etag)
    assert faulty.requests <= 20


# The source.


def test_an_object_with_a_truncated_body_is_fetched_again(source: Source, bucket: BucketRoot, faulty: FaultyS3) -> None:
    data = bytes(range(256)) * 1000
    bucket.put("oslo/people/a.bin", data)
    faulty.inject(Rule(Fault.SHORT_BODY, method="GET", nth=(1, 2)))
    assert source.fetch("oslo/people/a.bin").data == data
    assert faulty.injected == {Fault.SHORT_BODY: 2}


def test_an_object_whose_body_is_always_truncated_is_unreadable_instead_of_being_shortened(
    source: Source, bucket: BucketRoot, faulty: FaultyS3
) -> None:
    bucket.put("oslo/people/a.txt", b"word " * 1000)
    faulty.inject(Rule(Fault.SHORT_BODY, method="GET", nth=(1, 2, 3, 4)))
    with pytest.raises(ObjectUnreadable, match=r"oslo/people/a\.txt"):
        source.fetch("oslo/people/a.txt")
    assert faulty.requests == 5  # the last asks whether the bucket answers


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.SLOW_DOWN, Fault.CUT_LISTING, Fault.SHORT_BODY])
def test_an_interrupted_listing_of_the_source_is_retried(
    source: Source, bucket: BucketRoot, faulty: FaultyS3, fault: Fault
) -> None:
    bucket.put("oslo/people/a.txt", b"x")
    bucket.put("oslo/people/b.txt", b"x")
    faulty.inject(Rule(fault, kind="listing", nth=(1,)))
    assert [entry.key for page in source.pages() for entry in page] == ["oslo/people/a.txt", "oslo/people/b.txt"]
    assert faulty.injected == {fault: 1}


@source_on_s3
def test_a_listing_that_fails_on_its_second_page_raises_and_deletes_nothing(bench: Bench, faulty: FaultyS3) -> None:
    # Hidden keys are not documents; they come first and fill the first page.
    hidden = [f"{bench.shard}/.hidden/{number:04}" for number in range(1000)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: bench.source.put(key, b"x"), hidden))
    fill(bench, 3)
    ingest(bench)
    before = bench.state()
    bench.put("new.md", "A new page.")
    for rule in (
        Rule(Fault.RESET, kind="listing", nth=tuple(range(2, 40))),
        Rule(Fault.CUT_LISTING, kind="listing", nth=tuple(range(2, 40))),
        Rule(Fault.NO_TOKEN, kind="listing"),
    ):
        faulty.inject(rule)
        with pytest.raises(SourceUnavailable, match=f"cannot list {bench.source.uri}"):
            ingest(bench, allow_mass_delete=True)  # so that the mass-delete guard is not what prevents deletions
        assert faulty.injected
        assert bench.state() == before
    faulty.inject()
    ingest(bench)
    assert len(stage_rows(bench.lake, "raw_documents", bench.shard)) == 4


@source_on_s3
def test_an_empty_listing_deletes_nothing_and_the_next_correct_one_continues(bench: Bench, faulty: FaultyS3) -> None:
    fill(bench, 3)
    bench.run()
    before = bench.state()
    faulty.inject(Rule(Fault.EMPTY_LISTING, kind="listing"))
    refused = bench.attempt()
    assert "MassDeleteRefused" in failure_of(refused)
    assert faulty.injected
    assert bench.state() == before
    faulty.inject()
    bench.put("03.md", "A fourth page.")
    bench.run()
    assert len(bench.texts()) == 4


@source_on_s3
def test_the_next_correct_listing_repairs_the_effects_of_a_stale_one(bench: Bench, faulty: FaultyS3) -> None:
    fill(bench, 6)
    bench.run()
    bench.delete("00.md")
    bench.put("01.md", "# Page 1\n\nIt says something else now.\n")
    bench.put("new.md", "A new page.")
    # The stale listing has a deleted document, an old etag of another, and lacks the newest one.
    faulty.replay(Rule(Fault.STALE_LISTING, kind="listing", path="/incoming/"))
    bench.run()
    assert faulty.injected.keys() == {Fault.STALE_LISTING}  # the listing of golden questions may be stale, too
    faulty.inject()
    bench.run()
    truth = bench.texts()
    assert truth.keys() == {"01.md", "02.md", "03.md", "04.md", "05.md", "new.md"}
    assert "something else" in truth["01.md"]


@source_on_s3
def test_a_stale_listing_only_removes_documents_that_it_lacks(bench: Bench, faulty: FaultyS3) -> None:
    fill(bench, 6)
    bench.run()
    listed = Rule(Fault.STALE_LISTING, kind="listing", path="/incoming/")
    bench.delete("00.md")
    bench.put("01.md", "# Page 1\n\nIt says something else now.\n")
    bench.put("new.md", "A new page.")
    faulty.replay()
    bench.run()
    truth = bench.texts()
    faulty.replay(listed)
    bench.run()
    assert faulty.injected.keys() == {Fault.STALE_LISTING}  # the listing of golden questions may be stale, too
    # The deleted document cannot be fetched, so it does not return; the changed one is read in its current state.
    assert bench.texts() == {name: text for name, text in truth.items() if name != "new.md"}
    assert stage_rows(bench.lake, QUARANTINE, bench.shard) == []
    faulty.inject()
    bench.run()
    assert bench.texts() == truth


@source_on_s3
def test_credentials_rejected_during_a_run_quarantine_no_document(bench: Bench, faulty: FaultyS3) -> None:
    fill(bench, 3)
    bench.run()
    before = bench.texts()
    fill_again = {f"{number:02}.md": f"# Page {number}\n\nRewritten.\n" for number in range(3)}
    for name, text in fill_again.items():
        bench.put(name, text)
    faulty.inject(Rule(Fault.REFUSED, method="GET", kind="object"))
    refused = bench.attempt()
    assert "SourceRefused" in failure_of(refused)
    assert "InvalidAccessKeyId" in failure_of(refused)
    assert stage_rows(bench.lake, QUARANTINE, bench.shard) == []
    assert bench.texts() == before
    faulty.inject()
    bench.run()
    assert all("Rewritten" in text for text in bench.texts().values())


# Whole runs.

EVERYWHERE = (
    Rule(Fault.LOST_RESPONSE, method="PUT", share=0.03),
    Rule(Fault.LOST_RESPONSE_500, method="PUT", share=0.03),
    Rule(Fault.SHORT_BODY, method="GET", share=0.03),
    Rule(Fault.SLOW_DOWN, share=0.04),
    Rule(Fault.RESET, share=0.03),
)


@pytest.mark.parametrize("bench", ["both"], indirect=True)
def test_runs_under_random_faults_end_like_one_clean_run(
    bench: Bench, faulty: FaultyS3, lakes: Callable[[str], str]
) -> None:
    fill(bench, 16)
    faulty.inject(*EVERYWHERE, seed=1)
    bench.run()
    for number in range(0, 16, 4):
        bench.put(f"{number:02}.md", f"# Page {number}\n\nRewritten in the second year.\n")
    for number in range(1, 16, 8):
        bench.delete(f"{number:02}.md")
    bench.put("new.md", "A new page.")
    bench.run()
    assert faulty.injected.total() > 5, faulty.injected
    faulty.inject()
    clean = Bench(bench.source, lakes("clean"), bench.shard, bench.instance)
    clean.run()
    assert_same_tables(published_rows(bench.lake, bench.shard), published_rows(clean.lake, bench.shard))


@lake_on_s3
@pytest.mark.parametrize(
    "rule",
    [
        Rule(Fault.LOST_RESPONSE, method="PUT", path="/(leases|progress|catalog)/"),
        Rule(Fault.LOST_RESPONSE_500, method="PUT", path="/(leases|progress|catalog)/", nth=EVERY_ODD),
    ],
    ids=["reset", "500"],
)
def test_a_run_publishes_even_if_every_conditional_write_loses_its_response(
    bench: Bench, faulty: FaultyS3, rule: Rule
) -> None:
    fill(bench, 2)
    faulty.inject(rule)
    bench.run()
    assert faulty.injected[rule.fault] > 5
    faulty.inject()
    assert len(bench.texts()) == 2
    bench.put("00.md", "Rewritten.")
    bench.run()
    assert bench.texts()["00.md"] == "Rewritten."


@lake_on_s3
@pytest.mark.parametrize("fault", [Fault.LOST_RESPONSE, Fault.LOST_RESPONSE_500])
def test_table_commits_with_lost_responses_are_applied_once(bench: Bench, faulty: FaultyS3, fault: Fault) -> None:
    fill(bench, 3)
    bench.run()
    fill(bench, 5)
    bench.delete("00.md")
    faulty.inject(Rule(fault, method="PUT", path="/_versions/", nth=EVERY_ODD))
    bench.run()
    assert faulty.injected[fault] > 2
    faulty.inject()
    assert bench.texts().keys() == {"01.md", "02.md", "03.md", "04.md"}
    assert len(published_rows(bench.lake, bench.shard)) == 4


@lake_on_s3
def test_the_step_is_retried_if_the_lake_throttles_beyond_the_request_retries(bench: Bench, faulty: FaultyS3) -> None:
    fill(bench, 2)
    # Lance gives up after sixteen attempts of a write; these are the step's first sixteen.
    faulty.inject(Rule(Fault.SLOW_DOWN, method="PUT", path="/shards/", nth=tuple(range(1, 17))))
    result = bench.attempt()
    assert result.success, failure_of(result)
    retried = [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
    assert [event.step_key for event in retried] == ["shards"]
    assert "LakeUnavailable: SlowDown" in str(retried[0].event_specific_data)
    assert len(bench.texts()) == 2


@lake_on_s3
def test_an_unavailable_lake_fails_the_run_with_a_named_error_and_the_next_run_continues(
    bench: Bench, faulty: FaultyS3
) -> None:
    fill(bench, 2)
    bench.run()
    before = bench.texts()
    bench.put("new.md", "A new page.")
    faulty.inject(Rule(Fault.SLOW_DOWN, path=bench.lake.removeprefix("s3:/")))
    failed = bench.attempt()
    assert not failed.success
    assert "LakeUnavailable" in failure_of(failed)
    assert "SlowDown" in failure_of(failed)
    faulty.inject()
    assert bench.texts() == before
    bench.run()
    assert bench.texts() == {**before, "new.md": "A new page."}


@lake_on_s3
def test_a_failed_publish_raises_a_named_error_and_readers_keep_the_published_version(
    bench: Bench, faulty: FaultyS3
) -> None:
    fill(bench, 2)
    bench.run()
    before = bench.state()["catalog"]
    pipeline = Pipeline(bench.settings)
    with writer_of(bench.lake, bench.shard) as writer:
        writer.update_progress(source_digest="another-listing")
        faulty.inject(Rule(Fault.SLOW_DOWN, method="PUT", path="/catalog/"))
        with pytest.raises(LakeUnavailable, match="cannot write catalog/"):
            publish(writer, pipeline.identity(), Retention(3, timedelta(seconds=60)), run_id="a run")
        assert faulty.injected
        faulty.inject()
        assert bench.state()["catalog"] == before
        publish(writer, pipeline.identity(), Retention(3, timedelta(seconds=60)), run_id="a run")
    assert bench.state()["catalog"] != before


# Readers.


@lake_on_s3
def test_readers_of_a_faulty_lake_get_the_answer_or_a_named_error(bench: Bench, faulty: FaultyS3) -> None:
    fill(bench, 5)
    bench.run()
    settings = ServingSettings(lake_uri=bench.lake, redis_url=None, llm_model=None, catalog_refresh=0.01)
    department = bench.shard.partition("/")[2]
    with RagClient(lambda: AsyncRagClient(settings)) as rag:

        def found() -> set[str]:
            hits = rag.search("When does the canteen open?", departments=[department], k=5)
            assert hits.degraded == ()
            return {hit.source.rpartition("/")[2] for hit in hits}

        truth = found()
        assert len(truth) == 5
        faulty.inject(*EVERYWHERE, seed=1)
        answered = 0
        for _ in range(12):
            try:
                assert found() == truth
                answered += 1
            except LakeError:
                continue
        assert faulty.injected.total() > 3, faulty.injected
        assert answered >= 6
        faulty.inject(Rule(Fault.RESET))
        with pytest.raises(LakeUnavailable):
            found()
        faulty.inject()
        assert found() == truth
