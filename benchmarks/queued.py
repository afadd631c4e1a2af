"""What a shard with nothing to do costs as a queued run of its own.

A real daemon takes the run from its queue and starts a process for it, which loads the code, looks at the shard, finds
nothing to do and ends. The seconds are those of Dagster's records: from the start of the process, and of the run's
first step, to the end of the run. CPU is that of the run's process. What the queue adds is the daemon's interval.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.incremental import DEPARTMENT, fill
from benchmarks.ingest import export
from benchmarks.reporting import arguments, show
from tests.stress.burst import ROOT, daemon, daemon_environment

if TYPE_CHECKING:
    import dagster as dg

REGION = "harbour"


def measure(scratch: Path, model_lake: Path, documents: int, runs: int) -> list[dict[str, float]]:
    """The seconds and the CPU of each run; the first, which finds nothing warm, is not among them."""
    import dagster as dg

    from rag_assets.errors import OrchestrationError
    from rag_assets.runs.backfill import launch_backfill, require_daemon
    from rag_serving.lake.shards import Shard

    source, lake, home = scratch / "source", scratch / "lake", scratch / "home"
    fill(source, REGION, documents)
    shutil.copytree(model_lake, lake)
    home.mkdir()
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    environment = daemon_environment(source, lake, home)
    command = [str(Path(sys.executable).with_name("rag-assets")), "backfill", "--all", "--here"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=1800)
    found: list[dict[str, float]] = []
    with dg.DagsterInstance.from_config(str(home)) as instance, daemon(environment, scratch / "daemon.log"):
        deadline = time.monotonic() + 120
        while True:
            try:
                require_daemon(instance)
                break
            except OrchestrationError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        for _ in range(runs + 1):
            with _cpu_of_runs() as cpu:
                backfill = launch_backfill(instance, [Shard(REGION, DEPARTMENT)], {})
                record = _over(instance, backfill)
            starting, first = _instants(instance, record)
            assert record.end_time is not None
            found.append(
                {
                    "process s": record.end_time - starting,
                    "run s": record.end_time - first,
                    "CPU s": max(cpu.values(), default=0.0),
                }
            )
    return found[1:]


def _over(instance: dg.DagsterInstance, backfill: str) -> dg.RunRecord:
    """The record of the backfill's one run, once it is over; raises SystemExit if it failed."""
    import dagster as dg

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        records = instance.get_run_records(dg.RunsFilter(tags={"dagster/backfill": backfill}))
        if records and records[0].dagster_run.is_finished:
            if not records[0].dagster_run.is_success:
                raise SystemExit("the run failed")
            return records[0]
        time.sleep(0.1)
    raise SystemExit("the run was not over in time")


def _instants(instance: dg.DagsterInstance, record: dg.RunRecord) -> tuple[float, float]:
    """When the daemon asked for the run's process, and when its first step started."""
    import dagster as dg

    def first(of: dg.DagsterEventType) -> float:
        return min(event.timestamp for event in instance.all_logs(record.dagster_run.run_id, of_type=of))

    return first(dg.DagsterEventType.PIPELINE_STARTING), first(dg.DagsterEventType.STEP_START)


@contextmanager
def _cpu_of_runs() -> Generator[dict[int, float]]:
    """CPU seconds of each process that the daemon's code server spawns below this one, as they were when last seen."""
    seen: dict[int, float] = {}
    over = threading.Event()
    me = psutil.Process()

    def look() -> None:
        while not over.wait(0.02):
            for process in me.children(recursive=True):
                try:
                    if any("spawn_main" in argument for argument in process.cmdline()):
                        times = process.cpu_times()
                        seen[process.pid] = times.user + times.system + times.children_user + times.children_system
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, default=42, help="documents of the shard (default 42)")
    parser.add_argument("--runs", type=int, default=5, help="runs to take the medians of (default 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rag-bench-", ignore_cleanup_errors=True) as scratch:
        model_lake = Path(scratch, "model")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(export, str(model_lake)).result()
        found = measure(Path(scratch), model_lake, options.documents, 1 if options.quick else options.runs)
    medians = {name: round(statistics.median(run[name] for run in found), 2) for name in found[0]}
    row = {"documents": options.documents, "runs": len(found), **medians}
    show("an unchanged shard as a queued run of its own", [row], options.json, runs=found)


if __name__ == "__main__":
    main()
