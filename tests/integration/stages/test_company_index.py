"""The company index follows the published shards through crashes, lost leases, rollbacks and withdrawals."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_assets.defs.build import build_definitions
from rag_assets.errors import LeaseLost, ShardLocked, VersionNotKept
from rag_assets.models.registry import warm_identity
from rag_assets.publishing.maintenance import maintain_shards
from rag_assets.publishing.retention import Retention
from rag_assets.publishing.rollback import release, rollback
from rag_assets.runs.names import REFRESH
from rag_assets.stages import company_index as module
from rag_assets.stages.company_index import (
    CompanyReport,
    CompanyTable,
    acquire_company_index,
    stale_shards,
    sync_company_index,
)
from rag_assets.storage import search_indexes
from rag_assets.storage.lake import Lake
from rag_serving.lake.catalog import Catalog, Snapshot
from rag_serving.lake.catalog_entry import catalog_key
from rag_serving.lake.company_index import COMPANY, SHARD_COLUMN, CompanyRecord, record_key
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.shards import Shard
from tests.pipelines import failure_of, published_rows, run_shard, seed_model, settings_for, writer_of

SHARDS = ("oslo/people", "oslo/finance", "lisbon/people")


class Company:
    """A source, a lake with its company index, and operations on them."""

    def __init__(self, folder: Path, model_lake: str | None, instance: dg.DagsterInstance) -> None:
        self.source = folder / "source"
        self.uri = str(folder / "lake")
        self.instance = instance
        if model_lake is not None:
            seed_model(model_lake, self.uri)

    @property
    def settings(self) -> Any:
        return settings_for(str(self.source), self.uri)

    @property
    def lake(self) -> Lake:
        return Lake(self.uri)

    def put(self, shard: str, name: str, text: str | None) -> None:
        path = self.source / shard / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text)

    def index(self, shard: str) -> None:
        result = run_shard(self.instance, self.settings, shard, {"rag/allow_mass_delete": "true"})
        assert result.success, failure_of(result)

    def snapshot(self) -> Snapshot:
        return Catalog(open_object_store(self.uri)).snapshot()

    def refresh(self, *, rows: int = 256, pin: float = 3600.0) -> CompanyReport:
        with acquire_company_index(self.lake, "a test", seconds=30, wait=1) as lease:
            return sync_company_index(
                self.lake, lease, self.snapshot(), vector_index_rows=rows, pin_seconds=pin, log=lambda _line: None
            )

    def record(self) -> CompanyRecord:
        (record,) = self.snapshot().companies.values()
        return record

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that a reader of the recorded version sees."""
        record = self.record()
        table = self.lake.open(COMPANY, CompanyTable(record.fingerprint))
        assert table is not None
        table.checkout(record.version)
        return table.to_arrow().to_pylist()

    def assert_as_published(self) -> None:
        """Assert that the rows are exactly those of all published versions, and that the record agrees."""
        rows = sorted(self.rows(), key=lambda row: row["chunk_id"])
        wanted = [
            {**row, SHARD_COLUMN: shard.key}
            for shard in self.snapshot().entries
            for row in published_rows(self.uri, shard.key)
        ]
        assert rows == sorted(wanted, key=lambda row: row["chunk_id"])
        assert stale_shards(self.snapshot()) == []
        assert self.record().rows == len(rows)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, model_lake: str) -> Path:
    """A folder with a source of three shards and a lake in which they are published."""
    folder = tmp_path_factory.mktemp("indexed")
    with dg.DagsterInstance.ephemeral() as instance:
        made = Company(folder, model_lake, instance)
        for shard in SHARDS:
            for name in ("a.md", "b.md"):
                made.put(shard, name, f"# {name} of {shard}\n\nThe contents of {name} of {shard}.")
            made.index(shard)
    return folder


@pytest.fixture
def company(tmp_path: Path, indexed: Path, instance: dg.DagsterInstance) -> Company:
    """A copy of `indexed` for one test."""
    shutil.copytree(indexed, tmp_path, dirs_exist_ok=True)
    return Company(tmp_path, None, instance)


def test_it_contains_every_published_row_and_a_second_refresh_writes_nothing(company: Company) -> None:
    assert stale_shards(company.snapshot()) == sorted(SHARDS)
    report = company.refresh()
    assert (report.added, report.shards, report.rows) == (3, 3, 6)
    company.assert_as_published()
    before = company.record()
    assert company.refresh().rows_written == 0
    assert company.record() == before


def test_changed_added_and_deleted_documents_are_applied_in_one_commit_per_shard(company: Company) -> None:
    company.refresh()
    company.put("oslo/people", "a.md", "Something new.")
    company.put("oslo/people", "c.md", "Another.")
    company.put("oslo/people", "b.md", None)
    company.index("oslo/people")
    assert stale_shards(company.snapshot()) == ["oslo/people"]
    before = company.record().version
    report = company.refresh()
    assert (report.replaced, report.rows_written, report.rows_deleted) == (1, 2, 2)
    assert company.record().version == before + 1
    company.assert_as_published()


def test_a_document_with_only_a_newer_modification_time_is_updated(company: Company) -> None:
    company.index("oslo/people")  # the copied source is in another place
    company.refresh()
    digest = company.snapshot().entries[Shard.parse("oslo/people")].current.content_digest
    path = company.source / "oslo/people/a.md"
    path.write_text(path.read_text())
    company.index("oslo/people")
    assert company.snapshot().entries[Shard.parse("oslo/people")].current.content_digest == digest
    assert company.refresh().replaced == 1
    company.assert_as_published()


def test_a_compacted_shard_is_noted_without_writing_rows(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_indexes, "WORDS_REBUILT_ROWS", 0)  # as in a large shard
    company.refresh()
    company.put("oslo/people", "c.md", "Another.")
    company.index("oslo/people")
    company.refresh()
    pipeline_of = lambda shard: writer_of(company.uri, shard.key)  # noqa: E731
    entries = company.snapshot().entries
    maintain_shards(
        sorted(entries),
        pipeline_of,
        warm_identity(company.uri, "all-MiniLM-L6-v2"),
        Retention(5, timedelta(seconds=60)),
        run_id="upkeep",
        log=lambda _line: None,
    )
    assert stale_shards(company.snapshot()) != []
    report = company.refresh()
    assert (report.replaced, report.rows_written) == (0, 0)
    assert report.noted >= 1
    company.assert_as_published()


def test_a_rollback_is_applied(company: Company) -> None:
    company.put("oslo/people", "a.md", "A bad version.")
    company.index("oslo/people")
    company.refresh()
    with writer_of(company.uri, "oslo/people") as writer:
        rollback(writer, by="a test")
    assert stale_shards(company.snapshot()) == ["oslo/people"]
    company.refresh()
    company.assert_as_published()
    assert not any("bad version" in row["text"] for row in company.rows())


def test_a_withdrawn_shard_is_removed(company: Company) -> None:
    company.refresh()
    company.lake.objects.delete(catalog_key(Shard.parse("lisbon/people")))
    assert stale_shards(company.snapshot()) == ["lisbon/people"]
    assert company.refresh().removed == 1
    company.assert_as_published()


def test_an_emptied_shard_has_no_rows_and_is_not_stale(company: Company) -> None:
    company.refresh()
    for name in ("a.md", "b.md"):
        company.put("oslo/people", name, None)
    company.put("oslo/people", "c.md", "   ")
    company.index("oslo/people")
    company.refresh()
    company.assert_as_published()


def test_a_shard_of_another_embedder_is_not_added_to_this_embedders_table(company: Company) -> None:
    company.refresh()
    key = catalog_key(Shard.parse("oslo/people"))
    stored = company.lake.objects.get(key)
    assert stored is not None
    fingerprint = company.record().fingerprint
    company.lake.objects.put(key, stored.data.replace(fingerprint.encode(), b"0" * 32))
    assert "oslo/people" in stale_shards(company.snapshot())
    # This embedder's table is updated before that or by the next refresh.
    with pytest.raises(Exception, match="the lake does not contain it"):
        company.refresh()


def test_a_missing_version_is_skipped_until_the_next_refresh(company: Company) -> None:
    key = catalog_key(Shard.parse("oslo/people"))
    stored = company.lake.objects.get(key)
    assert stored is not None
    current = company.snapshot().entries[Shard.parse("oslo/people")].current
    company.lake.objects.put(key, stored.data.replace(f'"version": {current.version}'.encode(), b'"version": 9999'))
    report = company.refresh()
    assert (report.added, report.skipped) == (2, 1)
    assert stale_shards(company.snapshot()) == ["oslo/people"]
    company.lake.objects.put(key, stored.data)
    company.refresh()
    company.assert_as_published()


def test_a_second_concurrent_refresh_finds_the_index_locked(company: Company) -> None:
    with (
        acquire_company_index(company.lake, "another", seconds=30, wait=0),
        pytest.raises(ShardLocked, match="another"),
    ):
        company.refresh()


class Died(Exception):
    """The writer has died."""


def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Make the writer die before its `at`-th record, after the commit; return a counter of the records."""
    whole = module._CompanyWriter._save
    count = 0

    def save(self: Any, version: int) -> None:
        nonlocal count
        count += 1
        if count >= at:
            raise Died
        whole(self, version)

    monkeypatch.setattr(module._CompanyWriter, "_save", save)
    return lambda: count


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_unrecorded_commits_of_a_dead_writer_are_never_read_and_are_rolled_back(
    company: Company, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    company.refresh()
    company.put("oslo/people", "a.md", "Changed.")
    company.index("oslo/people")
    company.put("lisbon/people", "b.md", None)
    company.index("lisbon/people")
    before = company.rows()
    with monkeypatch.context() as patched:
        dying(patched, at)
        try:
            company.refresh()
        except Died:
            if at == 1:
                assert company.rows() == before
    held = {key: company.record().shards[key].chunks for key in SHARDS}
    assert sum(held.values()) == len(company.rows())
    company.refresh()
    company.assert_as_published()


def test_a_writer_that_slept_past_its_lease_writes_no_record(company: Company) -> None:
    company.refresh()
    company.put("oslo/people", "a.md", "Changed.")
    company.index("oslo/people")
    with acquire_company_index(company.lake, "a sleeper", seconds=1, wait=1) as asleep:
        asleep._stop.set()  # like a stopped process: the lease is no longer renewed
        asleep._thread.join()
        sleeper = module._CompanyWriter(company.lake, asleep, company.record().fingerprint, lambda _line: None)
        asleep._deadline = float("inf")  # and its clock stood still
        with acquire_company_index(company.lake, "the next", seconds=30, wait=10) as lease:
            sync_company_index(
                company.lake, lease, company.snapshot(), vector_index_rows=256, pin_seconds=60, log=lambda _line: None
            )
        company.assert_as_published()
        with pytest.raises(LeaseLost):
            sleeper.bring_to(list(company.snapshot().entries.values())[:1], CompanyReport())
    company.assert_as_published()
    company.refresh()
    company.assert_as_published()


def test_a_lost_table_or_a_corrupt_record_is_rebuilt(company: Company) -> None:
    company.refresh()
    shutil.rmtree(Path(company.uri, COMPANY))
    company.refresh()
    company.assert_as_published()
    company.lake.objects.put(record_key(company.record().fingerprint), b"{")
    company.refresh()
    company.assert_as_published()


def test_tables_above_the_row_threshold_have_complete_indexes(sample_lake: str, tmp_path: Path) -> None:
    uri = str(shutil.copytree(sample_lake, tmp_path / "lake"))
    lake, snapshot = Lake(uri), Catalog(open_object_store(uri)).snapshot()
    with acquire_company_index(lake, "a test", seconds=30, wait=1) as lease:
        report = sync_company_index(
            lake, lease, snapshot, vector_index_rows=256, pin_seconds=60, log=lambda _line: None
        )
    assert report.rows == sum(entry.current.chunks for entry in snapshot.entries.values()) > 256
    (fingerprint,) = report.versions
    table = lake.open(COMPANY, CompanyTable(fingerprint))
    assert table is not None
    assert {tuple(index.columns) for index in table.list_indices()} == {("words",), ("vector",), (SHARD_COLUMN,)}
    assert report.unindexed_rows == 0


def test_the_sensor_requests_a_refresh_only_while_the_index_is_stale(
    company: Company, instance: dg.DagsterInstance
) -> None:
    definitions = build_definitions(company.settings)
    sensor = definitions.resolve_sensor_def("company_index_follows")
    resources = {"pipeline": definitions.resources["pipeline"]}  # type: ignore[index]

    def tick() -> Any:
        with dg.build_sensor_context(instance=instance, resources=resources) as context:
            return sensor(context)

    assert isinstance(tick(), dg.RunRequest)
    run = definitions.resolve_job_def(REFRESH).execute_in_process(instance=instance)
    (made,) = run.get_asset_materialization_events()
    assert made.materialization.metadata["dagster/row_count"].value == 6
    assert made.materialization.metadata["behind"].value == 0
    company.assert_as_published()
    skipped = tick()
    assert isinstance(skipped, dg.SkipReason)
    assert "the company index is up to date" in (skipped.skip_message or "")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, model_lake: str) -> Iterator[Company]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Company(tmp_path_factory.mktemp("company"), model_lake, instance)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(SHARDS), st.integers(0, 3), st.integers(0, 9)),
        st.tuples(st.just("delete"), st.sampled_from(SHARDS), st.integers(0, 3), st.just(0)),
        st.tuples(st.sampled_from(["rollback", "withdraw"]), st.sampled_from(SHARDS), st.just(0), st.just(0)),
        st.tuples(st.just("die"), st.just(SHARDS[0]), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("refresh"), st.just(SHARDS[0]), st.just(0), st.just(0)),
    ),
    min_size=3,
    max_size=8,
)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_after_any_sequence_readers_see_only_recorded_rows_and_a_refresh_catches_up(
    shared: Company, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, str, int, int]]
) -> None:
    for step, shard, number, word in steps:
        entry = shared.snapshot().entries.get(Shard.parse(shard))
        if step in ("put", "delete"):
            shared.put(shard, f"{number}.md", f"Word {word} of {shard}." if step == "put" else None)
            shared.index(shard)
        elif step == "rollback" and entry is not None:
            with writer_of(shared.uri, shard) as writer:
                with contextlib.suppress(VersionNotKept):
                    rollback(writer, by="a test")
                release(writer)
        elif step == "withdraw":
            shared.lake.objects.delete(catalog_key(Shard.parse(shard)))
        elif step == "refresh":
            shared.refresh()
        elif step == "die":
            with monkeypatch.context() as patched:
                dying(patched, number)
                with contextlib.suppress(Died):
                    shared.refresh()
        for record in shared.snapshot().companies.values():
            assert record.rows == len(shared.rows())
    shared.refresh()
    if shared.snapshot().entries:
        shared.assert_as_published()
