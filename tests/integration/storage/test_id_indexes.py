"""Large tables: id indexes, and comparison by ranges of ids. In these tests, a few rows count as large."""

from __future__ import annotations

from pathlib import Path

import pytest
from lancedb.table import Table

from rag_assets.errors import MassDeleteRefused
from rag_assets.extraction.registry import read_object
from rag_assets.stages.documents import IngestionLimits, sync_documents
from rag_assets.storage.id_indexes import ID_COLUMNS, id_ranges
from rag_assets.storage.lake import Lake
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, QUARANTINE, RAW_DOCUMENTS
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.tables import SHARDS
from tests.integration.storage.test_shard_writer import Bench
from tests.pipelines import published_rows, stage_rows
from tests.stress.test_any_sequence import IDENTITY, SHARD, UNREADABLE, FaultySource, everything, maintain, write

LARGE = 8
DOCUMENTS = 24


@pytest.fixture
def few_rows_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_assets.storage.id_indexes.ID_INDEX_ROWS", LARGE)
    monkeypatch.setattr("rag_assets.storage.search_indexes.ID_INDEX_ROWS", LARGE)
    monkeypatch.setattr("rag_assets.storage.id_indexes.RANGE_ROWS", LARGE // 2)


@pytest.fixture
def bench(tmp_path: Path, few_rows_are_many: None) -> Bench:
    bench = Bench(tmp_path)
    for number in range(DOCUMENTS):
        bench.put(f"{number:02}.txt", f"Berth {number} of the harbour is free.")
    bench.run()
    return bench


def table_of(bench: Bench, stage: str) -> Table:
    table = Lake(bench.lake).open(stage, SHARD, fingerprint=IDENTITY.fingerprint if stage == EMBEDDINGS else "")
    assert table is not None
    return table


def unindexed_rows(bench: Bench, stage: str) -> dict[str, int]:
    """Return, for each id index of the stage's table, the number of rows it does not cover."""
    table = table_of(bench, stage)
    found: dict[str, int] = {}
    for index in table.list_indices():
        stats = table.index_stats(index.name)
        assert stats is not None
        if index.index_type == "BTree":
            found[index.columns[0]] = stats.num_unindexed_rows
    return found


STAGES = (RAW_DOCUMENTS, CHUNKS, EMBEDDINGS, SHARDS)


@pytest.mark.parametrize("stage", STAGES)
def test_a_large_table_has_an_index_on_every_id_column_it_is_queried_by(bench: Bench, stage: str) -> None:
    assert unindexed_rows(bench, stage) == dict.fromkeys(ID_COLUMNS[stage], 0)
    assert all(
        "ScalarIndexQuery" in table_of(bench, stage).search().where(f"{column} IN ('one')").explain_plan()
        for column in ID_COLUMNS[stage]
    )


def test_a_small_table_has_no_id_index(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number in range(DOCUMENTS):
        bench.put(f"{number}.txt", f"Berth {number}.")
    bench.run()
    assert [unindexed_rows(bench, stage) for stage in STAGES] == [{}] * len(STAGES)


@pytest.mark.parametrize("stage", STAGES[:3])
def test_an_id_index_leaves_only_a_bounded_number_of_rows_unindexed(bench: Bench, stage: str) -> None:
    beyond = 0
    for number in range(2 * LARGE):
        bench.put(f"{number:02}.txt", f"Berth {number} of the harbour is taken.")
        bench.run(keys=(f"{SHARD.key}/{number:02}.txt",))
        rows = unindexed_rows(bench, stage)
        assert rows.keys() == set(ID_COLUMNS[stage])
        assert max(rows.values()) < LARGE
        beyond = max(beyond, *rows.values())
    assert beyond > 1  # the indexes are not rebuilt on every change
    bench.assert_as_of_a_clean_run()


def test_a_large_quarantine_has_an_index(bench: Bench) -> None:
    for number in range(LARGE):
        (bench.source / SHARD.key / f"{number:02}.txt").write_bytes(UNREADABLE)
    bench.run()
    assert unindexed_rows(bench, QUARANTINE) == {"object_id": 0}
    bench.put("00.txt", "Readable again.")
    bench.run(keys=(f"{SHARD.key}/00.txt",))
    assert len(stage_rows(bench.lake, QUARANTINE, SHARD.key)) == LARGE - 1


def test_an_unchanged_large_shard_writes_nothing(bench: Bench) -> None:
    before = everything(bench.lake)
    bench.run()
    assert everything(bench.lake) == before


def test_maintenance_creates_missing_indexes_and_bounds_their_segments(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag_assets.storage.id_indexes.ID_INDEX_ROWS", 1000)

    def without(writer: ShardWriter) -> None:
        writer.maintain(CHUNKS, lambda table: table.drop_index("embed_hash_idx"))

    write(bench.lake, without)
    monkeypatch.setattr("rag_assets.storage.id_indexes.ID_INDEX_ROWS", LARGE)
    for number in range(10):
        bench.put(f"{number:02}.txt", f"Berth {number} of the harbour is taken.")
        bench.run(keys=(f"{SHARD.key}/{number:02}.txt",))
        write(bench.lake, maintain)
        assert unindexed_rows(bench, CHUNKS) == {"doc_id": 0, "embed_hash": 0}
    assert all((index.num_segments or 0) <= 9 for stage in STAGES for index in table_of(bench, stage).list_indices())


def test_differences_in_every_range_of_ids_are_found(bench: Bench) -> None:
    """One listing, compared range by range, has changed, new, deleted, newly quarantined and recovered documents."""
    for number in range(6):
        bench.put(f"{number:02}.txt", f"Berth {number} of the harbour is taken.")
    for number in range(6, 10):
        (bench.source / SHARD.key / f"{number:02}.txt").write_bytes(UNREADABLE)
    for number in range(10, 14):
        (bench.source / SHARD.key / f"{number:02}.txt").unlink()
    bench.put("new.txt", "A berth that was not there.")
    bench.run()
    rows = published_rows(bench.lake, SHARD.key)
    assert sum(row["stale"] for row in rows) == 4
    assert len(rows) == DOCUMENTS - 4 + 1
    for number in range(6, 10):
        bench.put(f"{number:02}.txt", f"Berth {number} can be read again.")
    bench.run()
    bench.assert_as_of_a_clean_run()
    assert stage_rows(bench.lake, QUARANTINE, SHARD.key) == []


def test_the_report_counts_stale_and_quarantined_documents_over_all_ranges(bench: Bench) -> None:
    for number in range(6):
        (bench.source / SHARD.key / f"{number:02}.txt").write_bytes(UNREADABLE)
    (bench.source / SHARD.key / "06.txt").unlink()

    def look(writer: ShardWriter) -> None:
        report = sync_documents(writer, FaultySource(bench.source), read_object, IngestionLimits(), print)
        assert (report.stale, report.quarantine_reasons) == (6, {"unsupported_type": 6})

    write(bench.lake, look)
    for number in range(3):
        bench.put(f"{number:02}.txt", f"Berth {number} can be read again.")

    def look_again(writer: ShardWriter) -> None:
        report = sync_documents(writer, FaultySource(bench.source), read_object, IngestionLimits(), print)
        assert (report.stale, report.quarantine_reasons) == (3, {"unsupported_type": 3})
        assert (report.changed, report.deleted, report.unchanged) == (3, 0, DOCUMENTS - 4)

    write(bench.lake, look_again)


def test_deletions_are_counted_over_all_ranges_before_anything_is_written(bench: Bench) -> None:
    for number in range(DOCUMENTS - 2):
        (bench.source / SHARD.key / f"{number:02}.txt").unlink()
    before = everything(bench.lake)

    def work(writer: ShardWriter) -> None:
        with pytest.raises(MassDeleteRefused, match=f"delete {DOCUMENTS - 2} of {DOCUMENTS}"):
            sync_documents(writer, FaultySource(bench.source), read_object, IngestionLimits(), print)

    write(bench.lake, work)
    assert everything(bench.lake) == before


def test_ranges_cover_all_ids_without_gaps_or_overlaps(few_rows_are_many: None) -> None:
    assert list(id_ranges("id", LARGE // 2)) == [None]
    ranges = list(id_ranges("id", LARGE + 1))
    assert ranges == [
        "id < '55555555'",
        "id >= '55555555' AND id < 'aaaaaaaa'",
        "id >= 'aaaaaaaa'",
    ]
