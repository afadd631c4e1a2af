"""A real cluster on loopback: Postgres, Redis, a Dagster daemon and Celery workers. Tests kill parts of it.

It runs the profile `workers` as `rag-assets init` writes it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from rag_assets.cli.init import write_instance
from tests.servers import RedisServer, postgres_server, redis_server
from tests.stress.burst import ROOT, daemon, daemon_environment, daemon_is_ready

if TYPE_CHECKING:
    import dagster as dg

RECOVERY_SECONDS = 120
"""Within this time after a worker's death, a retry of its run must be at work."""


@dataclass
class Cluster:
    """A running cluster without workers; `start_worker` adds one."""

    home: Path
    environment: dict[str, str]
    instance: dg.DagsterInstance
    broker: RedisServer
    workers: list[psutil.Popen] = field(default_factory=list[psutil.Popen])
    _brokers: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def start_worker(self) -> psutil.Popen:
        """Start a worker that executes one run at a time."""
        with (self.home / f"worker-{len(self.workers)}.log").open("wb") as log:
            worker = psutil.Popen(
                [sys.executable, "-m", "rag_assets.cli", "worker"],
                env=self.environment,
                cwd=self.home,
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def restart_broker(self) -> None:
        """Kill Redis, which forgets everything, and start an empty one at the same address."""
        process = self.broker.process
        process.kill()
        process.wait()
        again = subprocess.Popen(process.args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._brokers.append(again)

    def stop(self) -> None:
        """End every worker and its children."""
        for worker in self.workers:
            kill_with_children(worker)
        for process in self._brokers:
            process.kill()
            process.wait()

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `rag-assets` against the cluster."""
        return subprocess.Popen(
            [sys.executable, "-m", "rag_assets.cli", *arguments],
            env=self.environment,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def runs(self, *statuses: dg.DagsterRunStatus) -> list[dg.RunRecord]:
        """Return the records of runs with these statuses, or of all, newest first."""
        import dagster as dg

        return list(self.instance.get_run_records(dg.RunsFilter(statuses=list(statuses)) if statuses else None))

    def wait_for(self, what: str, condition: Callable[[], Any], seconds: float) -> Any:
        """Return the first true value of the condition; fail with the logs after that many seconds."""
        until = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > until:
                logs = "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in sorted(self.home.glob("*.log")))
                raise TimeoutError(f"{what} did not happen in {seconds:.0f} s\n{logs}")
            time.sleep(0.5)
        return found

    def worker_of(self, run_id: str) -> psutil.Popen | None:
        """Return the worker whose log names the run."""
        for number, worker in enumerate(self.workers):
            if run_id in (self.home / f"worker-{number}.log").read_text(errors="replace"):
                return worker
        return None

    def busy_worker(self, *, apart_from: set[str]) -> tuple[str, psutil.Popen, psutil.Process] | None:
        """Return another started run with its worker and the worker's child process; None if there is none."""
        import dagster as dg

        for record in self.runs(dg.DagsterRunStatus.STARTED):
            run_id = record.dagster_run.run_id
            worker = None if run_id in apart_from else self.worker_of(run_id)
            if worker is not None and worker.poll() is None and (child := pool_process(worker)):
                return run_id, worker, child
        return None


@contextlib.contextmanager
def cluster(
    binaries: Path, folder: Path, source_uri: str, lake_uri: str, environment: dict[str, str], *, slots: int
) -> Generator[Cluster]:
    """Run a cluster that executes `slots` runs at once."""
    import dagster as dg

    home = folder / "home"
    write_instance(home, "workers")
    with postgres_server(binaries) as postgres, redis_server(binaries, search=False) as broker:
        variables = {
            **daemon_environment(Path(source_uri), Path(lake_uri), home),
            **environment,
            "RAG_SOURCE_URI": source_uri,
            "RAG_LAKE_URI": lake_uri,
            "RAG_BROKER_URL": broker.url,
            "RAG_WORKERS": str(slots),
            "DAGSTER_POSTGRES_URL": postgres.url,
            "PYTHONPATH": str(ROOT),
        }
        with (
            patched(variables),
            dg.DagsterInstance.from_config(str(home)) as instance,
            daemon(variables, home / "daemon.log"),
        ):
            running = Cluster(home, variables, instance, broker)
            running.wait_for("a heartbeat of the daemon", partial(daemon_is_ready, instance), 120)
            try:
                yield running
            finally:
                running.stop()


@contextlib.contextmanager
def patched(variables: dict[str, str]) -> Generator[None]:
    """Set the environment variables of this process that dagster.yaml names."""
    names = ("RAG_BROKER_URL", "RAG_WORKERS", "DAGSTER_POSTGRES_URL")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: variables[name] for name in names})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def pool_process(worker: psutil.Process) -> psutil.Process | None:
    """Return the process that executes the worker's runs; its other child is multiprocessing's resource tracker."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in worker.children():
            if not any("resource_tracker" in word for word in child.cmdline()):
                return child
    return None


def kill_with_children(worker: psutil.Popen) -> None:
    """Kill a worker the way a lost machine does: all of its processes at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        processes = [worker, *worker.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)


def pages(shards: int, documents: int) -> dict[str, dict[str, str]]:
    """Return documents of about 1,500 tokens by shard and name."""
    return {
        f"harbour/team-{number}": {
            f"{at:04}.txt": "\n".join(
                f"Berth {at} of team {number}: crane {line} moves container {at * 977 + line}." for line in range(80)
            )
            for at in range(documents)
        }
        for number in range(shards)
    }


@dataclass
class Survival:
    """What was killed, how long it took until a retry worked, and every broken promise."""

    recovery_seconds: dict[str, float] = field(default_factory=dict[str, float])
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list[str])


def survive(running: Cluster, keys: list[str], documents: int) -> Survival:
    """Index the shards with two workers; kill a worker's child, then a whole worker, and restart the broker."""
    found, started, dead = Survival(), time.monotonic(), set[str]()
    running.start_worker()
    running.start_worker()
    backfill = running.command("backfill", "--all", "--wait")
    for what in ("child", "worker"):
        run_id, worker, child = running.wait_for(
            f"a run to kill the {what} of", partial(running.busy_worker, apart_from=dead), 240
        )
        dead.add(run_id)
        died = time.monotonic()
        if what == "child":
            child.kill()
        else:
            kill_with_children(worker)
            running.start_worker()
        running.wait_for(f"a retry after the {what}'s death", partial(retry_of, running, run_id), 240)
        found.recovery_seconds[what] = time.monotonic() - died
    running.restart_broker()
    running.wait_for("the end of every run", lambda: all_published(running, keys, documents), 600)
    found.seconds = time.monotonic() - started
    output, errors = backfill.communicate(timeout=120)
    if backfill.returncode or "all shards are published" not in output:
        found.problems.append(f"the backfill command reported a failure: {output}{errors}")
    for what, seconds in found.recovery_seconds.items():
        if seconds > RECOVERY_SECONDS:
            found.problems.append(f"a retry worked only {seconds:.0f} s after the death of a {what}")
    found.problems += doubled(running, keys, documents)
    return found


def cancel(running: Cluster) -> list[str]:
    """Terminate a run while it works, as the UI does, and return the problems: its worker must live on."""
    import dagster as dg

    problems: list[str] = []
    known = {record.dagster_run.run_id for record in running.runs()}
    backfill = running.command("backfill", "--wait")
    run_id, _, child = running.wait_for("a run to cancel", partial(running.busy_worker, apart_from=known), 240)
    if not running.instance.run_launcher.terminate(run_id):
        problems.append("the launcher found nothing to cancel")

    def ended() -> dg.DagsterRun | None:
        run = running.instance.get_run_by_id(run_id)
        return run if run is not None and run.is_finished else None

    run = running.wait_for("the end of the canceled run", ended, 120)
    if run.status != dg.DagsterRunStatus.CANCELED:
        problems.append(f"the canceled run is {run.status.value}")
    output, errors = backfill.communicate(timeout=300)
    if backfill.returncode != 2 or "1 run terminated" not in errors:
        problems.append(f"the backfill command did not report the canceled run: {output}{errors}")
    if not child.is_running():
        problems.append("the worker's process did not survive the cancellation")
    again = running.command("backfill", "--wait")
    output, errors = again.communicate(timeout=300)
    if again.returncode:
        problems.append(f"the shard could not be indexed after the cancellation: {output}{errors}")
    return problems


def retry_of(running: Cluster, run_id: str) -> str | None:
    """Return the id of a started run that repeats this one."""
    for record in running.runs():
        run = record.dagster_run
        if run.tags.get("dagster/parent_run_id") == run_id and record.start_time is not None:
            return run.run_id
    return None


def all_published(running: Cluster, keys: list[str], documents: int) -> bool:
    """Return whether no run is left and every shard is published with all documents."""
    from rag_assets.runs.status import ACTIVE
    from rag_serving.lake.catalog import Catalog
    from rag_serving.lake.object_store import open_object_store

    if running.runs(*ACTIVE):
        return False
    entries = Catalog(open_object_store(running.environment["RAG_LAKE_URI"])).snapshot().entries
    published = {shard.key: entry.current.documents for shard, entry in entries.items()}
    return published == dict.fromkeys(keys, documents)


def doubled(running: Cluster, keys: list[str], documents: int) -> list[str]:
    """Return the problems of the published tables: chunks that occur twice, documents that are missing."""
    from rag_assets.storage.lake import open_lake
    from rag_serving.lake.shards import Shard
    from rag_serving.lake.tables import SHARDS

    problems: list[str] = []
    for key in keys:
        table = open_lake(running.environment["RAG_LAKE_URI"]).open(SHARDS, Shard.parse(key))
        rows = [] if table is None else table.to_arrow().select(["chunk_id", "source"]).to_pylist()
        if len({row["chunk_id"] for row in rows}) != len(rows):
            problems.append(f"{key} has chunks twice")
        if len({row["source"] for row in rows}) != documents:
            problems.append(f"{key} has {len({row['source'] for row in rows})} documents instead of {documents}")
    return problems
