"""Operating published shards: roll back, hold, release and maintain them without disturbing readers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dagster as dg
import numpy as np
import pytest

from rag_assets.defs.build import build_definitions
from rag_assets.errors import ShardLocked, VersionNotKept
from rag_assets.pipeline import Pipeline
from rag_assets.publishing.maintenance import MaintenanceReport, maintain_shards
from rag_assets.publishing.retention import Retention, drop_old_tags, kept_versions
from rag_assets.publishing.rollback import release, rollback
from rag_assets.sources.listing_digest import listing_digest
from rag_assets.storage.lake import Lake
from rag_assets.storage.schemas import CHUNKS, RAW_DOCUMENTS
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.catalog import Snapshot
from rag_serving.lake.catalog_entry import CatalogEntry, Publication, read_catalog_entry
from rag_serving.lake.search.query import Query
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS
from rag_serving.retrieval.searcher import Searcher
from tests.pipelines import publication, published_rows
from tests.shard_harness import Bench, on_folders


def entry_of(bench: Bench) -> CatalogEntry:
    found = read_catalog_entry(Lake(bench.lake).objects, Shard.parse(bench.shard))
    assert found is not None
    return found[0]


@contextmanager
def writer(bench: Bench) -> Iterator[ShardWriter]:
    with Pipeline(bench.settings).writer(Shard.parse(bench.shard), holder="a test") as shard_writer:
        yield shard_writer


def three_versions(bench: Bench) -> list[Publication]:
    made: list[Publication] = []
    for text in ("The first text.", "The second text.", "The third text."):
        bench.put("page.txt", text)
        bench.run()
        current = publication(bench.lake, bench.shard)
        assert current is not None
        made.append(current)
    return made


def test_a_rollback_restores_an_older_version_and_holds_the_shard_until_release(bench: Bench) -> None:
    _, second, third = three_versions(bench)
    with writer(bench) as shard_writer:
        entry = rollback(shard_writer, by="an operator")
    assert (entry.current.version, entry.current.content_digest) == (second.version, second.content_digest)
    assert bench.texts() == {"page.txt": "The second text."}

    bench.put("page.txt", "The fourth text.")
    said = bench.run()
    assert (said["published"]["changed"], said["published"]["held_by"]) == (False, "an operator")
    assert said["shards"]["documents_replaced"] == 1  # built nevertheless
    assert bench.texts() == {"page.txt": "The second text."}

    with writer(bench) as shard_writer:
        assert release(shard_writer) is not None
        assert release(shard_writer) is None
    assert bench.texts() == {"page.txt": "The second text."}
    bench.run()
    assert bench.texts() == {"page.txt": "The fourth text."}
    entry = entry_of(bench)
    assert entry.hold is None
    assert [old.version for old in entry.history[:3]] == [second.version, third.version, second.version]
    assert entry.history[0].published_by == "an operator"
    assert entry.history[1].published_by == f"run {third.run_id}"
    assert all(old.documents == 1 for old in entry.history)


@on_folders
def test_a_held_shard_counts_as_up_to_date_with_its_latest_build(bench: Bench) -> None:
    three_versions(bench)
    with writer(bench) as shard_writer:
        rollback(shard_writer, by="an operator")
    source = Pipeline(bench.settings).source()
    listing = listing_digest(entry for page in source.pages(f"{bench.shard}/") for entry in page)
    # Otherwise the sensor would request a run on every tick.
    assert entry_of(bench).latest_built_source_digest == listing
    bench.put("more.txt", "More.")
    assert entry_of(bench).latest_built_source_digest != listing_digest(source.pages(f"{bench.shard}/").__next__())
    bench.run()
    assert entry_of(bench).latest_built_source_digest == listing_digest(source.pages(f"{bench.shard}/").__next__())


@on_folders
def test_a_rollback_can_only_target_a_kept_version(bench: Bench) -> None:
    first, second, third = three_versions(bench)
    with writer(bench) as shard_writer:
        with pytest.raises(VersionNotKept, match=rf"versions {first.version}, {second.version} to go back to"):
            rollback(shard_writer, by="an operator", to=10_000)
        assert rollback(shard_writer, by="an operator", to=first.version).current.version == first.version
    assert bench.texts() == {"page.txt": "The first text."}
    with writer(bench) as shard_writer:
        assert rollback(shard_writer, by="an operator", to=third.version).current.version == third.version
    assert bench.texts() == {"page.txt": "The third text."}


@on_folders
def test_a_shard_without_an_older_version_cannot_be_rolled_back(bench: Bench) -> None:
    with writer(bench) as shard_writer, pytest.raises(VersionNotKept, match="never published"):
        rollback(shard_writer, by="an operator")
    bench.put("page.txt", "The only text.")
    bench.run()
    with writer(bench) as shard_writer, pytest.raises(VersionNotKept, match="no older version"):
        rollback(shard_writer, by="an operator")


def maintained(bench: Bench, *, pin_seconds: float = 3600.0, keep: int = 5) -> MaintenanceReport:
    pipeline = Pipeline(bench.settings)
    return maintain_shards(
        [Shard.parse(bench.shard)],
        lambda shard: pipeline.writer(shard, holder="maintenance", wait=0),
        pipeline.identity(),
        Retention(keep, timedelta(seconds=pin_seconds)),
        run_id="maintenance",
        log=lambda _: None,
    )


def versions(bench: Bench, stage: str) -> int:
    table = Lake(bench.lake).open(stage, Shard.parse(bench.shard))
    assert table is not None
    return len(table.list_versions())


def test_maintenance_removes_unreachable_versions_and_keeps_rows_and_published_versions(bench: Bench) -> None:
    published = three_versions(bench)
    for number in range(6):
        bench.put("page.txt", f"Text {number}.")
        bench.run()
    before = published_rows(bench.lake, bench.shard)
    time.sleep(0.1)
    report = maintained(bench, pin_seconds=0.01, keep=2)
    assert (report.shards, report.failed, report.skipped) == (1, {}, [])
    assert report.versions_removed > 10
    assert versions(bench, RAW_DOCUMENTS) == versions(bench, CHUNKS) == 1
    assert published_rows(bench.lake, bench.shard) == before
    table = Lake(bench.lake).open(SHARDS, Shard.parse(bench.shard))
    assert table is not None
    kept = kept_versions(table)
    assert published[0].version not in kept
    assert len(kept) == 2  # the last version before maintenance, and the compacted one that maintenance published
    for version in kept:
        table.checkout(version)
        assert table.count_rows() == 1

    bench.put("page.txt", "After maintenance.")
    said = bench.run()
    assert said["raw_documents"]["changed"] == 1
    assert bench.texts() == {"page.txt": "After maintenance."}
    with writer(bench) as shard_writer:
        rollback(shard_writer, by="an operator")
    assert published_rows(bench.lake, bench.shard) == before


@on_folders
def test_maintenance_of_a_maintained_shard_writes_nothing(bench: Bench) -> None:
    bench.put("page.txt", "The text.")
    bench.run()
    maintained(bench)
    before = bench.state()
    maintained(bench)
    assert bench.state() == before


@on_folders
def test_a_reader_finishes_on_the_version_it_started_with(bench: Bench) -> None:
    """It read the catalog just before two more publishes and a maintenance run."""
    bench.put("page.txt", "What the reader started with.")
    bench.run()
    entry = entry_of(bench)
    for text in ("The next text.", "And the next."):
        bench.put("page.txt", text)
        bench.run()
    maintained(bench, pin_seconds=3600.0, keep=1)
    vector = np.array(published_rows(bench.lake, bench.shard)[0]["vector"], dtype=np.float32)

    async def search() -> list[str]:
        vectors = {entry.current.fingerprint: vector}
        snapshot = Snapshot({entry.shard: entry})
        hits, failed = await Searcher(bench.lake).search(Query("reader", 3), vectors, [entry], snapshot)
        assert failed == ()
        return [hit.text for hit in hits]

    assert asyncio.run(search()) == ["What the reader started with."]


@on_folders
def test_maintenance_skips_a_shard_that_is_being_written(bench: Bench) -> None:
    bench.put("page.txt", "The text.")
    bench.run()
    before = bench.state()
    with writer(bench):
        assert maintained(bench).skipped == [bench.shard]
        with pytest.raises(ShardLocked, match="by a test on"):
            Pipeline(bench.settings).writer(Shard.parse(bench.shard), holder="another", wait=0).__enter__()
    assert bench.state() == before


@on_folders
def test_maintenance_does_not_publish_an_unpublished_head(bench: Bench) -> None:
    _, second, _ = three_versions(bench)
    with writer(bench) as shard_writer:
        rollback(shard_writer, by="an operator")
    time.sleep(0.1)
    maintained(bench, pin_seconds=0.01)
    assert entry_of(bench).current.version == second.version
    assert bench.texts() == {"page.txt": "The second text."}
    with writer(bench) as shard_writer:
        release(shard_writer)
    bench.run()
    assert bench.texts() == {"page.txt": "The third text."}


@pytest.mark.parametrize(
    ("ages", "keep", "pin", "kept"),
    [
        # seconds since each of the versions 1 to 5 was published, in order
        ([5000, 4000, 3000, 2000, 1000], 2, 60, {4, 5}),
        ([5000, 4000, 3000, 2000, 1000], 2, 2500, {3, 4, 5}),  # 3 was superseded 2,000 seconds ago
        ([50, 40, 30, 20, 10], 1, 60, {1, 2, 3, 4, 5}),
        ([5000, 4000, 3000, 2000, 1000], 5, 60, {1, 2, 3, 4, 5}),
    ],
)
@on_folders
def test_a_version_is_kept_while_it_is_recent_or_a_reader_may_use_it(
    bench: Bench, ages: list[int], keep: int, pin: float, kept: set[int]
) -> None:
    bench.put("page.txt", "The text.")
    bench.run()
    entry = entry_of(bench)
    table = Lake(bench.lake).open(SHARDS, Shard.parse(bench.shard))
    assert table is not None
    for name in kept_versions(table).values():
        table.tags.delete(name)
    for version in range(table.version, 6):
        table.update(where="true", values={"title": f"Version {version}"})
    numbers = range(1, 6)
    for version in numbers:
        table.tags.create(f"published-{version}", version)
    now = datetime.now(UTC)
    made = [
        entry.current.model_copy(update={"version": n, "published_at": now - timedelta(seconds=age)})
        for n, age in zip(numbers, ages, strict=True)
    ]
    after = entry.model_copy(update={"current": made[-1], "history": tuple(made[-2::-1])})
    drop_old_tags(table, after, Retention(keep, timedelta(seconds=pin)))
    assert set(kept_versions(table)) == kept


@on_folders
def test_the_watch_check_names_failed_behind_and_held_shards(bench: Bench) -> None:
    three_versions(bench)
    job = build_definitions(bench.settings).resolve_job_def("watch")

    def evaluated() -> dg.AssetCheckEvaluation:
        result = job.execute_in_process(instance=bench.instance)
        (event,) = [event for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"]
        return event.asset_check_evaluation_data

    def lists_shard(found: dg.AssetCheckEvaluation, state: str) -> bool:
        return bench.shard in found.metadata[state].value  # the lake also contains other tests' shards

    assert not any(lists_shard(evaluated(), state) for state in ("failed", "behind", "held"))
    with writer(bench) as shard_writer:
        rollback(shard_writer, by="an operator")
    found = evaluated()
    assert not found.passed
    assert lists_shard(found, "held")
    bench.put("page.txt", "Another text.")
    assert lists_shard(evaluated(), "behind")
    bench.delete("page.txt")
    assert not bench.attempt().success  # the whole shard would be deleted
    found = evaluated()
    assert lists_shard(found, "failed")
    assert found.severity == dg.AssetCheckSeverity.ERROR
    assert bench.shard in (found.description or "")
