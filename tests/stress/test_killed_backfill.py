"""Promise 1: a killed run that is repeated leaves the table of one clean run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from rag_assets.storage.schemas import EMBEDDINGS, RAW_DOCUMENTS
from rag_serving.lake.catalog_entry import CATALOG
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS
from tests.pipelines import (
    assert_same_tables,
    failure_of,
    publication,
    published_rows,
    run_shard,
    seed_model,
    settings_for,
)

SHARD = Shard("Oslo", "people")
PAGES = 230  # more than fit into one commit


def write(source: Path, number: int, text: str) -> None:
    path = source / SHARD.key / f"{number:03}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def versions(lake: Path, stage: str) -> int:
    """Return the number of commits to the stage's table, 0 without a table."""
    return sum(1 for _ in lake.glob(f"{stage}/**/{SHARD.table_name}.lance/_versions/*.manifest"))


class Killer:
    """Start the command that indexes the shard, and kill it as soon as something appears in the lake."""

    def __init__(self, source: Path, lake: Path, home: Path) -> None:
        home.mkdir()
        self._lake = lake
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAG_", "AWS_", "DAGSTER_"))},
            "RAG_SOURCE_URI": str(source),
            "RAG_LAKE_URI": str(lake),
            "RAG_LEASE_SECONDS": "2",
            "DAGSTER_HOME": str(home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
        }

    def kill_at(self, seen: Callable[[], bool]) -> None:
        log = self._lake.parent / "killed.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "rag_assets.cli", "backfill", "--all", "--here"],
                env=self._environment,
                stdout=output,
                stderr=output,
            )
            try:
                deadline = time.monotonic() + 90
                while not seen():
                    assert process.poll() is None, (
                        f"the command ended before it could be killed:\n{log.read_text()[-2000:]}"
                    )
                    assert time.monotonic() < deadline, log.read_text()[-2000:]
                    time.sleep(0.002)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
        assert process.returncode == -signal.SIGKILL, log.read_text()[-2000:]

    def kill_at_commit(self, stage: str, commits: int = 1) -> None:
        """Kill the command after `commits` more commits to the stage's table."""
        before = versions(self._lake, stage)
        self.kill_at(lambda: versions(self._lake, stage) >= before + commits)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_backfill_killed_at_a_commit_and_repeated_leaves_the_table_of_a_clean_run(
    model_lake: str, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    source, lake = tmp_path / "source", tmp_path / "lake"
    seed_model(model_lake, str(lake))
    for number in range(PAGES):
        write(source, number, f"Page {number} says that room {number * 7} is closed.")
    killer = Killer(source, lake, tmp_path / "home")

    killer.kill_at_commit(RAW_DOCUMENTS, 2)  # the empty table and the first batch of two
    killer.kill_at_commit(EMBEDDINGS)
    assert publication(str(lake), SHARD.key) is None
    finish_and_compare(instance, model_lake, source, lake, tmp_path / "clean")

    for number in range(0, PAGES, 3):
        write(source, number, f"Page {number} now says that room {number * 5} is open.")
    for number in range(1, PAGES, 10):
        (source / SHARD.key / f"{number:03}.txt").unlink()
    write(source, PAGES, "One more page.")
    before = publication(str(lake), SHARD.key)
    killer.kill_at_commit(SHARDS)
    assert publication(str(lake), SHARD.key) == before  # readers saw none of it
    finish_and_compare(instance, model_lake, source, lake, tmp_path / "clean after the change")

    write(source, 0, "The last change.")
    current = lake / CATALOG / f"{SHARD.table_name}.json"
    written = current.stat().st_mtime_ns
    killer.kill_at(lambda: current.stat().st_mtime_ns != written)
    finish_and_compare(instance, model_lake, source, lake, tmp_path / "clean at last")


def finish_and_compare(
    instance: dg.DagsterInstance, model_lake: str, source: Path, lake: Path, clean_lake: Path
) -> None:
    result = run_shard(instance, settings_for(str(source), str(lake)), SHARD.key)
    assert result.success, failure_of(result)
    seed_model(model_lake, str(clean_lake))
    clean = run_shard(instance, settings_for(str(source), str(clean_lake)), SHARD.key)
    assert clean.success, failure_of(clean)
    rows = published_rows(str(lake), SHARD.key)
    assert len({row["chunk_id"] for row in rows}) == len(rows)
    assert_same_tables(rows, published_rows(str(clean_lake), SHARD.key))
