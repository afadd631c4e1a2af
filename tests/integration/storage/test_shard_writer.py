"""The shard writer and its progress record: unrecorded commits are rolled back, lost tables are rebuilt."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from lancedb.table import Table

from rag_assets.errors import LeaseLost
from rag_assets.storage.lake import Lake
from rag_assets.storage.lease import acquire_lease
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, QUARANTINE, RAW_DOCUMENTS
from rag_assets.storage.shard_writer import PROGRESS, ShardWriter, read_progress
from rag_serving.lake.tables import SHARDS
from tests.pipelines import assert_same_tables, publication, published_rows, stage_rows
from tests.stress.test_any_sequence import (
    IDENTITY,
    SHARD,
    Died,
    FaultySource,
    HashEmbedder,
    end_lease,
    everything,
    index,
    maintain,
    write,
)

ROOT = Path(__file__).parents[3]
SLEEPER = """
import sys
import time
from pathlib import Path
from rag_assets.errors import LeaseLost
from tests.stress.test_any_sequence import FaultySource, HashEmbedder, index, write

lake, source, at, mark = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])

def looked(looks):
    if looks == at:
        print("looked", flush=True)  # now it is stopped, right after a successful lease check
        while not mark.exists():
            time.sleep(0.005)

try:
    write(lake, index(FaultySource(source), embedder=HashEmbedder()), looked, seconds=4)
    print("finished", flush=True)
except LeaseLost as error:
    print("lost:", error, flush=True)
"""


@dataclass(frozen=True)
class Bench:
    """A source and a lake, and runs of the plain functions without Dagster."""

    folder: Path

    @property
    def lake(self) -> str:
        return str(self.folder / "lake")

    @property
    def source(self) -> Path:
        return self.folder / "source"

    def put(self, name: str, text: str) -> None:
        path = self.source / SHARD.key / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, lake: str | None = None, keys: tuple[str, ...] = (), *, wait: float = 0) -> None:
        write(lake or self.lake, index(FaultySource(self.source), keys, embedder=HashEmbedder()), wait=wait)

    def assert_as_of_a_clean_run(self) -> None:
        clean = str(self.folder / "clean")
        self.run(clean)
        assert_same_tables(published_rows(self.lake, SHARD.key), published_rows(clean, SHARD.key))
        one, other = publication(self.lake, SHARD.key), publication(clean, SHARD.key)
        assert one is not None
        assert other is not None
        assert (one.content_digest, one.source_digest) == (other.content_digest, other.source_digest)
        shutil.rmtree(clean)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    for number in range(4):
        bench.put(f"{number}.txt", f"Page {number} says that the canteen opens at {number}.")
    return bench


@pytest.fixture
def published(bench: Bench) -> Bench:
    bench.run()
    return bench


def texts(bench: Bench) -> set[str]:
    return {row["text"] for row in published_rows(bench.lake, SHARD.key)}


class Sleeper:
    """A process that indexes the shard and is stopped at its `at`-th lease check."""

    def __init__(self, bench: Bench, at: int) -> None:
        self._mark = bench.folder / "go-on"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SLEEPER, bench.lake, str(bench.source), str(at), str(self._mark)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def sleep(self) -> None:
        assert self._process.stdout is not None
        said = iter(self._process.stdout.readline, "")
        assert any(line == "looked\n" for line in said)
        self._process.send_signal(signal.SIGSTOP)
        self._mark.touch()

    def wake(self) -> str:
        """Continue the process and return its last line of output."""
        self._process.send_signal(signal.SIGCONT)
        said, _ = self._process.communicate(timeout=60)
        return said.splitlines()[-1]

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def sleepers() -> Iterator[list[Sleeper]]:
    started: list[Sleeper] = []
    yield started
    for sleeper in started:
        sleeper.end()


# A run that changes one document checks its lease before the commit and the progress record of raw_documents (1, 2),
# of chunks (3, 4), embeddings (5, 6) and shards (7, 8), and before it writes the catalog object (9).
@pytest.mark.parametrize(("at", "stage"), [(1, RAW_DOCUMENTS), (3, CHUNKS), (7, SHARDS), (9, "catalog")])
def test_a_writer_that_slept_past_its_lease_publishes_nothing_and_is_rolled_back(
    published: Bench, sleepers: list[Sleeper], at: int, stage: str
) -> None:
    published.put("0.txt", "What the sleeper reads.")
    sleeper = Sleeper(published, at)
    sleepers.append(sleeper)
    sleeper.sleep()
    published.put("0.txt", "What the second holder reads, which is newer.")
    published.run(wait=60)  # for the sleeper's lease to expire
    current = publication(published.lake, SHARD.key)

    assert sleeper.wake().startswith("lost:")
    assert publication(published.lake, SHARD.key) == current
    assert "What the second holder reads, which is newer." in texts(published)
    with acquire_lease(Lake(published.lake).objects, SHARD, "a test") as lease:
        writer = ShardWriter(Lake(published.lake), SHARD, lease)
    assert writer.rolled_back == (() if stage == "catalog" else (stage,))
    published.run()
    assert "What the sleeper reads." not in texts(published)
    published.assert_as_of_a_clean_run()


def test_a_commit_of_another_writer_between_two_of_ours_is_a_lost_lease(published: Bench) -> None:
    lake = Lake(published.lake)

    def race(writer: ShardWriter) -> None:
        chunks = writer.table(CHUNKS)
        assert chunks is not None
        other = Lake(published.lake).open(CHUNKS, SHARD)
        assert other is not None
        rows = chunks.to_arrow().slice(0, 1)
        other.add(rows)
        with pytest.raises(LeaseLost, match="another writer wrote to chunks of shard Oslo/people"):
            writer.append(CHUNKS, rows)

    write(published.lake, race)
    with acquire_lease(lake.objects, SHARD, "a test") as lease:
        assert ShardWriter(lake, SHARD, lease).rolled_back == (CHUNKS,)
    published.assert_as_of_a_clean_run()


def test_a_compaction_that_conflicts_with_another_writers_is_a_lost_lease(published: Bench) -> None:
    published.put("4.txt", "One more file to compact.")
    published.run()

    def race(writer: ShardWriter) -> None:
        def compact(table: Table) -> None:
            other = Lake(published.lake).open(CHUNKS, SHARD)
            assert other is not None
            other.optimize()
            table.optimize()

        with pytest.raises(LeaseLost, match="another writer wrote to chunks of shard Oslo/people"):
            writer.maintain(CHUNKS, compact)

    write(published.lake, race)
    published.assert_as_of_a_clean_run()


@pytest.mark.parametrize("when", ["before", "during"])
def test_rows_added_by_another_writer_during_maintenance_are_rolled_back(published: Bench, when: str) -> None:
    published.put("4.txt", "One more file to compact.")
    published.run()

    def intrude(*_: object) -> None:
        other = Lake(published.lake).open(CHUNKS, SHARD)
        assert other is not None
        other.add(other.to_arrow().slice(0, 1))

    def race(writer: ShardWriter) -> None:
        def work(table: Table) -> None:
            if when == "during":
                intrude()
            table.optimize()

        with pytest.raises(LeaseLost, match="another writer wrote to chunks of shard Oslo/people"):
            writer.maintain(CHUNKS, work)

    write(published.lake, race, intrude if when == "before" else lambda _: None)
    with acquire_lease(Lake(published.lake).objects, SHARD, "a test") as lease:
        assert ShardWriter(Lake(published.lake), SHARD, lease).rolled_back == (CHUNKS,)
    published.assert_as_of_a_clean_run()


def test_progress_recorded_by_another_writer_is_not_overwritten(published: Bench) -> None:
    def race(writer: ShardWriter) -> None:
        end_lease(Lake(published.lake))
        published.put("0.txt", "Read by the second holder.")
        published.run()
        with pytest.raises(LeaseLost, match=r"another writer wrote to progress/.*run shard Oslo/people again"):
            writer.update_progress(source_digest="of the first")

    write(published.lake, race)
    published.assert_as_of_a_clean_run()


@pytest.mark.parametrize("data", [b"", b"{", b'{"touched": 3}', b'{"versions": {"chunks": "old"}}'])
def test_unreadable_progress_only_costs_a_comparison_of_whole_tables(published: Bench, data: bytes) -> None:
    before = {stage: stage_rows(published.lake, stage, SHARD.key) for stage in (RAW_DOCUMENTS, CHUNKS, SHARDS)}
    state = everything(published.lake)
    Lake(published.lake).objects.put(f"{PROGRESS}/{SHARD.table_name}.json", data)
    assert read_progress(Lake(published.lake), SHARD) is None
    published.run()
    assert {stage: stage_rows(published.lake, stage, SHARD.key) for stage in before} == before
    assert {**everything(published.lake), "note": ""} == {**state, "note": ""}
    progress = read_progress(Lake(published.lake), SHARD)
    assert progress is not None
    assert progress.dirty == ()
    published.assert_as_of_a_clean_run()


@pytest.mark.parametrize("stage", [RAW_DOCUMENTS, QUARANTINE, CHUNKS, EMBEDDINGS, SHARDS])
@pytest.mark.parametrize("changed", [False, True], ids=["unchanged", "changed"])
def test_a_removed_table_is_rebuilt(published: Bench, stage: str, changed: bool) -> None:
    (published.source / SHARD.key / "photo.bin").write_bytes(bytes(range(256)))
    published.run()
    fingerprint = IDENTITY.fingerprint if stage == EMBEDDINGS else ""
    Lake(published.lake).drop(stage, SHARD, fingerprint=fingerprint)
    if changed:
        published.put("0.txt", "Changed since.")
    published.run(keys=(f"{SHARD.key}/0.txt",))
    published.run()
    assert stage_rows(published.lake, stage, SHARD.key, fingerprint)
    published.assert_as_of_a_clean_run()


def test_a_recorded_version_that_was_cleaned_up_does_not_stop_a_run(published: Bench) -> None:
    noted = read_progress(Lake(published.lake), SHARD)
    assert noted is not None
    for stage in (RAW_DOCUMENTS, CHUNKS):
        table = Lake(published.lake).open(stage, SHARD)
        assert table is not None
        table.delete("true")
        table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)
        assert noted.versions[stage] not in {version["version"] for version in table.list_versions()}
    published.run()
    published.assert_as_of_a_clean_run()


def test_a_document_that_turned_unreadable_is_marked_stale_wherever_the_run_died(published: Bench) -> None:
    (published.source / SHARD.key / "0.txt").write_bytes(bytes(range(256)))
    named = index(FaultySource(published.source), [f"{SHARD.key}/0.txt"], embedder=HashEmbedder())
    for at in range(1, 30):
        lake = str(shutil.copytree(published.lake, published.folder / f"lake-{at}"))

        def die(looks: int, at: int = at) -> None:
            if looks == at:
                raise Died

        try:
            write(lake, named, die)
        except Died:
            published.run(lake)
            assert [row["stale"] for row in published_rows(lake, SHARD.key)] == [True, False, False, False], at
        else:
            break
    assert at > 6


def test_maintenance_that_dies_anywhere_keeps_every_version_named_in_the_progress_record(published: Bench) -> None:
    """Otherwise the next writer would roll back to a version whose files are gone."""
    for number in range(4):  # small files to compact
        published.put("0.txt", f"Version {number}.")
        published.run()
    lease_checks = 0

    def count(looks: int) -> None:
        nonlocal lease_checks
        lease_checks = looks

    copies = [shutil.copytree(published.lake, published.folder / f"lake-{number}") for number in range(20)]
    write(str(copies.pop()), maintain, count)
    assert 0 < lease_checks < len(copies)
    for at, lake in enumerate(copies[:lease_checks], start=1):

        def die(looks: int, at: int = at) -> None:
            if looks == at:
                raise Died

        with pytest.raises(Died):
            write(str(lake), maintain, die)
        progress = read_progress(Lake(str(lake)), SHARD)
        assert progress is not None
        for folder, version in progress.versions.items():
            stage, _, fingerprint = folder.partition("/")
            table = Lake(str(lake)).open(stage, SHARD, fingerprint=fingerprint)
            assert table is not None
            assert version in {known["version"] for known in table.list_versions()}, f"{folder} at lease check {at}"
