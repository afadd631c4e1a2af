"""Measure an unchanged shard as a separate queued run.

A real daemon dequeues the run and starts a process for it, which loads the code, checks the shard, finds nothing to do
and exits. Times are from Dagster's event log: from the start of the process, and from the first step, to the end of the
run. CPU time is that of the run's process. Time in the queue, which depends on the daemon's interval, is excluded.
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
from rag_assets.cli.init import write_instance
from tests.stress.burst import ROOT, daemon, daemon_environment, daemon_is_ready

if TYPE_CHECKING:
    import dagster as dg

REGION = "harbour"


def measure(scratch: Path, model_lake: Path, documents: int, runs: int) -> list[dict[str, float]]:
    """Return the seconds and CPU of each run, without the first one, whose caches are cold."""
    import dagster as dg

    from rag_assets.runs.dagster_api import local_api
    from rag_assets.runs.names import Names
    from rag_serving.lake.shards import Shard

    source, lake, home = scratch / "source", scratch / "lake", scratch / "home"
    fill(source, REGION, documents)
    shutil.copytree(model_lake, lake)
    write_instance(home)
    environment = daemon_environment(source, lake, home)
    command = [str(Path(sys.executable).with_name("rag-assets")), "backfill", "--all", "--here"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=1800)
    found: list[dict[str, float]] = []
    with dg.DagsterInstance.from_config(str(home)) as instance, daemon(environment, scratch / "daemon.log"):
        deadline = time.monotonic() + 120
        while not daemon_is_ready(instance):
            if time.monotonic() > deadline:
                raise SystemExit("the daemon does not start")
            time.sleep(0.5)
        for _ in range(runs + 1):
            with local_api(instance, Names(), None) as dagster, _cpu_of_runs() as cpu:
                backfill = dagster.launch([Shard(REGION, DEPARTMENT)], {})
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
    """Wait for the only run of the backfill and return its record; raises SystemExit if it failed."""
    import dagster as dg

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        records = instance.get_run_records(dg.RunsFilter(tags={"dagster/backfill": backfill}))
        if records and records[0].dagster_run.is_finished:
            if not records[0].dagster_run.is_success:
                raise SystemExit("the run failed")
            return records[0]
        time.sleep(0.1)
    raise SystemExit("the run did not finish in time")


def _instants(instance: dg.DagsterInstance, record: dg.RunRecord) -> tuple[float, float]:
    """Return when the daemon requested the run's process, and when its first step started."""
    import dagster as dg

    def first(of: dg.DagsterEventType) -> float:
        return min(event.timestamp for event in instance.all_logs(record.dagster_run.run_id, of_type=of))

    return first(dg.DagsterEventType.PIPELINE_STARTING), first(dg.DagsterEventType.STEP_START)


@contextmanager
def _cpu_of_runs() -> Generator[dict[int, float]]:
    """Sample the CPU seconds of each run process that the daemon's code server spawns; the last sample is kept."""
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
    """Run the benchmark and print its table."""
    warnings.simplefilter("ignore")
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, default=42, help="documents in the shard (default 42)")
    parser.add_argument("--runs", type=int, default=5, help="runs per median (default 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rag-bench-", ignore_cleanup_errors=True) as scratch:
        model_lake = Path(scratch, "model")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(export, str(model_lake)).result()
        found = measure(Path(scratch), model_lake, options.documents, 1 if options.quick else options.runs)
    medians = {name: round(statistics.median(run[name] for run in found), 2) for name in found[0]}
    row = {"documents": options.documents, "runs": len(found), **medians}
    show("an unchanged shard as a separate queued run", [row], options.json, runs=found)


if __name__ == "__main__":
    main()
