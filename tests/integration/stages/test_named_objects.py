"""Runs requested by a feed: they read only the named objects and no others of the shard."""

from __future__ import annotations

from rag_assets.storage.content_digest import content_digest
from rag_assets.storage.lake import Lake
from rag_assets.storage.shard_writer import read_progress
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS
from tests.pipelines import failure_of, publication, published_rows, run_shard, stored_digest
from tests.shard_harness import Bench, on_folders, watched

pytestmark = on_folders


def assert_exact(bench: Bench) -> None:
    """Assert that incremental progress equals the result of comparing everything."""
    lake, shard = Lake(bench.lake), Shard.parse(bench.shard)
    progress, table = read_progress(lake, shard), lake.open(SHARDS, shard)
    current = publication(bench.lake, bench.shard)
    assert progress is not None
    assert current is not None
    assert table is not None
    assert progress.dirty == ()
    assert progress.source_digest == current.source_digest == stored_digest(lake, shard)
    assert progress.content_digest == current.content_digest == content_digest(table, current.fingerprint)
    assert len({row["chunk_id"] for row in published_rows(bench.lake, bench.shard)}) == current.chunks


def test_a_named_change_is_published_without_listing_the_shard_or_reading_other_objects(
    bench: Bench,
) -> None:
    for number in range(8):
        bench.put(f"{number}.txt", f"Page {number} is the first.")
    bench.run()
    bench.put("3.txt", "Page 3 is the second.")
    bench.put("new.txt", "A page that was not there.")
    noted, pipeline = watched(bench)
    said = bench.run(pipeline, keys=["3.txt", "new.txt"])
    assert noted.listed == [f"{bench.shard}/_eval/"]
    assert noted.headed == [f"{bench.shard}/3.txt", f"{bench.shard}/new.txt"]
    assert noted.fetched == noted.headed
    assert [said["raw_documents"][name] for name in ("added", "changed", "documents")] == [1, 1, 9]
    assert [said["chunks"][name] for name in ("documents_chunked", "documents_unchanged")] == [2, 7]
    texts = bench.texts()
    assert (texts["3.txt"], texts["new.txt"], len(texts)) == ("Page 3 is the second.", "A page that was not there.", 9)
    assert_exact(bench)


def test_a_named_deletion_is_published(bench: Bench) -> None:
    for name in ("gone.txt", "stays.txt"):
        bench.put(name, f"This is {name}.")
    bench.run()
    bench.delete("gone.txt")
    noted, pipeline = watched(bench)
    bench.run(pipeline, keys=["gone.txt"])
    assert (noted.listed, noted.fetched) == ([f"{bench.shard}/_eval/"], [])
    assert bench.texts() == {"stays.txt": "This is stays.txt."}
    assert_exact(bench)


def test_late_repeated_or_unrelated_events_change_nothing(bench: Bench) -> None:
    bench.put("page.txt", "The page.")
    bench.run()
    before = bench.state()
    named = [
        *("page.txt", "page.txt", "never/was.txt", "../other/x.txt", ".hidden"),
        *("a'b.txt", "%2e%2e.txt"),
    ]
    noted, pipeline = watched(bench)
    bench.run(pipeline, keys=named)
    assert (noted.listed, noted.fetched) == ([], [])
    assert bench.state() == before
    result = run_shard(bench.instance, bench.settings, bench.shard, keys=["elsewhere/at/all.txt"])
    assert result.success, failure_of(result)
    assert bench.state() == before


def test_a_change_missed_by_a_feed_is_found_by_the_next_listing(bench: Bench) -> None:
    for name in ("lost.txt", "named.txt"):
        bench.put(name, f"This is {name}.")
    bench.run()
    bench.put("lost.txt", "Changed without an event.")
    bench.put("named.txt", "Changed with an event.")
    bench.run(keys=["named.txt"])
    assert bench.texts() == {"lost.txt": "This is lost.txt.", "named.txt": "Changed with an event."}
    assert_exact(bench)
    bench.run()
    assert bench.texts()["lost.txt"] == "Changed without an event."
    assert_exact(bench)


def test_the_first_run_of_a_shard_lists_it_regardless_of_the_named_objects(bench: Bench) -> None:
    for name in ("named.txt", "old.txt"):
        bench.put(name, f"This is {name}.")
    bench.run(keys=["named.txt"])
    assert bench.texts().keys() == {"named.txt", "old.txt"}
    assert_exact(bench)


def test_named_deletions_of_most_of_a_shard_are_refused_as_a_mass_delete(bench: Bench) -> None:
    names = [f"{number}.txt" for number in range(10)]
    for name in names:
        bench.put(name, f"This is {name}.")
    bench.run()
    before = bench.state()
    for name in names[:8]:
        bench.delete(name)
    keys = [f"{bench.shard}/{name}" for name in names[:8]]
    refused = run_shard(bench.instance, bench.settings, bench.shard, keys=keys)
    assert not refused.success
    assert "would delete 8 of 10" in failure_of(refused)
    assert bench.state() == before


def test_the_listing_digest_stays_exact_while_an_object_turns_unreadable_and_recovers(bench: Bench) -> None:
    bench.put("page.txt", "Fine.")
    bench.put("other.txt", "Other.")
    bench.run()
    for data in (bytes(range(256)), b"Fine again.", bytes(range(255)), b"And again."):
        bench.source.put(f"{bench.shard}/page.txt", data)
        bench.run(keys=["page.txt"])
        assert_exact(bench)
    assert bench.texts()["page.txt"] == "And again."
