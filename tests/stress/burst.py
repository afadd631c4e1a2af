"""Thousands of documents arrive at once, and more during indexing, handled by a real Dagster daemon.

The objects of a burst are put into a folder, and the sensor `s3_arrivals` runs in a real daemon on a new instance. When
every shard is published as listed in the source, the instance's run records are checked: no run failed, no two runs of
a shard overlapped, and no shard had more runs than arrivals. A shard's objects of one wave arrive in a single rename,
so that a wave is one arrival for each of its shards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.ingest import export
from benchmarks.reporting import arguments, show
from rag_assets.cli.init import write_instance

if TYPE_CHECKING:
    import dagster as dg

ROOT = Path(__file__).parents[2]
_SECONDS_A_SHARD = 60


@dataclass
class Burst:
    """What arrived and how it was processed. `problems` lists every broken promise."""

    objects: int
    shards: int
    runs: int = 0
    seconds: float = 0.0
    max_queued: int = 0
    problems: list[str] = field(default_factory=list[str])


class Arrivals:
    """A folder into which waves of documents arrive."""

    def __init__(self, folder: Path, objects: int, shards: int) -> None:
        self.folder = folder
        self.objects = objects
        self.keys = [f"region-{number % 20:02}/department-{number:03}" for number in range(shards)]
        self.waves: Counter[str] = Counter()
        self._staging = folder.parent / "staging"
        folder.mkdir()

    def arrive(self, keys: list[str], objects: int) -> None:
        """Add `objects` objects, spread evenly over the shards `keys`."""
        for number, key in enumerate(keys):
            self.waves[key] += 1
            name = f"wave-{self.waves[key]}"
            staged = self._staging / name
            staged.mkdir(parents=True)
            for at in range(number, objects, len(keys)):
                text = f"Notice {at} of {key}, {name}: room {at * 7} is closed on day {at % 28 + 1} of the month.\n"
                (staged / f"{at:05}.txt").write_text(text)
            (self.folder / key).mkdir(parents=True, exist_ok=True)
            staged.rename(self.folder / key / name)


def burst(scratch: Path, model_lake: Path, *, objects: int, shards: int) -> Burst:
    """Add nine tenths of the objects at once and the rest, in a quarter of the shards, while runs are active."""
    import dagster as dg

    arrivals = Arrivals(scratch / "source", objects, shards)
    lake, home = scratch / "lake", scratch / "home"
    shutil.copytree(model_lake, lake)
    write_instance(home)
    environment = daemon_environment(arrivals.folder, lake, home) | {"RAG_ARRIVALS_INTERVAL": "1"}
    # Opened here first: two processes that create the same database at once conflict.
    with dg.DagsterInstance.from_config(str(home)) as instance:
        sensor = [str(Path(sys.executable).with_name("dagster")), "sensor", "start", "s3_arrivals"]
        subprocess.run(
            [*sensor, "-w", "workspace.yaml"], env=environment, cwd=ROOT, check=True, capture_output=True, timeout=120
        )
        with daemon(environment, scratch / "daemon.log"):
            started = time.perf_counter()
            first = objects * 9 // 10
            arrivals.arrive(arrivals.keys, first)
            found = Burst(objects, shards)
            deadline = time.monotonic() + 120 + _SECONDS_A_SHARD * shards
            later = arrivals.keys[::4]
            while True:
                found.max_queued = max(found.max_queued, _count(instance, dg.DagsterRunStatus.QUEUED))
                if later and _count(instance, dg.DagsterRunStatus.SUCCESS):
                    arrivals.arrive(later, objects - first)
                    later = []
                if not later and _all_published(arrivals.folder, lake):
                    break
                if time.monotonic() > deadline:
                    found.problems.append("not every shard was published in time")
                    break
                time.sleep(1)
            found.seconds = time.perf_counter() - started
            while not found.problems and _active(instance):  # so that superfluous runs are counted, too
                time.sleep(0.5)
        _judge(found, instance, arrivals)
    return found


def daemon_environment(source: Path, lake: Path, home: Path) -> dict[str, str]:
    """Return the environment of a daemon on these folders and of commands run with it."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAG_", "AWS_", "DAGSTER_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
        "RAG_SOURCE_URI": str(source),
        "RAG_LAKE_URI": str(lake),
        "RAG_PARSE_WORKERS": "1",
        "DAGSTER_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }


@contextmanager
def daemon(environment: dict[str, str], log: Path, workspace: Path = ROOT / "workspace.yaml") -> Generator[None]:
    """Run a Dagster daemon during the block; end it and all its children afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("dagster-daemon")), "run", "-w", str(workspace)],
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    try:
        yield
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for left in psutil.wait_procs(started, timeout=10)[1]:
            left.kill()


def daemon_is_ready(instance: dg.DagsterInstance) -> bool:
    """Return whether a daemon that launches backfills and runs sent a recent heartbeat."""
    statuses = instance.get_daemon_statuses()
    return all(name in statuses and statuses[name].healthy for name in ("BACKFILL", "QUEUED_RUN_COORDINATOR"))


def _count(instance: dg.DagsterInstance, status: Any) -> int:
    import dagster as dg

    return instance.get_runs_count(dg.RunsFilter(statuses=[status]))


def _active(instance: dg.DagsterInstance) -> int:
    import dagster as dg

    from rag_assets.runs.status import ACTIVE

    return instance.get_runs_count(dg.RunsFilter(statuses=ACTIVE))


def _all_published(source: Path, lake: Path) -> bool:
    from rag_assets.arrivals.listing import sweep
    from rag_assets.sources.open import open_source
    from rag_serving.lake.catalog import Catalog
    from rag_serving.lake.object_store import open_object_store

    listed = sweep(open_source(str(source)), seconds=float("inf")).digests
    entries = Catalog(open_object_store(str(lake))).snapshot().entries
    return {shard: entry.current.source_digest for shard, entry in entries.items()} == listed


def _judge(found: Burst, instance: dg.DagsterInstance, arrivals: Arrivals) -> None:
    """Check the records of all runs."""
    import dagster as dg

    from rag_assets.runs.tags import PARTITION_TAG

    of_shard: dict[str, list[dg.RunRecord]] = defaultdict(list)
    for record in instance.get_run_records():
        found.runs += 1
        of_shard[record.dagster_run.tags.get(PARTITION_TAG, "")].append(record)
        if record.dagster_run.status != dg.DagsterRunStatus.SUCCESS:
            found.problems.append(f"run {record.dagster_run.run_id} is {record.dagster_run.status.value}")
    for key in sorted(arrivals.waves.keys() | of_shard.keys()):
        records = sorted(of_shard[key], key=lambda record: record.start_time or 0)
        if not 1 <= len(records) <= arrivals.waves[key]:
            found.problems.append(f"{key} had {len(records)} runs for {arrivals.waves[key]} arrivals")
        for before, after in pairwise(records):
            if (before.end_time or float("inf")) > (after.start_time or 0):
                found.problems.append(f"two runs of {key} overlapped")


def main() -> None:
    """Run a burst and print the result; exit with 1 if a promise was broken."""
    warnings.simplefilter("ignore")
    parser = arguments(__doc__ or "")
    parser.add_argument("--objects", type=int, help="objects that arrive (default 5000, 60 with --quick)")
    parser.add_argument("--shards", type=int, help="shards they are spread over (default 200, 4 with --quick)")
    options = parser.parse_args()
    objects = options.objects or (60 if options.quick else 5000)
    shards = options.shards or (4 if options.quick else 200)
    with tempfile.TemporaryDirectory(prefix="rag-bench-", ignore_cleanup_errors=True) as scratch:
        model_lake = Path(scratch, "model")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(export, str(model_lake)).result()
        found = burst(Path(scratch), model_lake, objects=objects, shards=shards)
    for problem in found.problems:
        print(problem)
    row = {
        "objects": found.objects,
        "shards": found.shards,
        "runs": found.runs,
        "seconds": round(found.seconds, 1),
        "objects/s": round(found.objects / found.seconds, 1),
        "most queued": found.max_queued,
        "promises broken": len(found.problems),
    }
    show("a burst of arrivals through the daemon", [row], options.json, problems=found.problems)
    sys.exit(1 if found.problems else 0)


if __name__ == "__main__":
    main()
