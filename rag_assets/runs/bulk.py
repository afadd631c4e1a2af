"""The bulk path: many shards in a few warm processes, one Dagster run each, without a daemon.

A process that indexes shard after shard keeps Dagster, the model and its inference streams alive between them. Several
such processes work at once, so that one reads while another embeds. They are processes and not threads because Dagster
sets up the logging of its whole process anew for every run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import dagster as dg

from rag_assets.runs.failures import INTERRUPTED, interrupts_end_runs
from rag_assets.runs.names import INDEX_SHARD, Names
from rag_assets.runs.reporting import failure_reason, quiet_logging
from rag_assets.runs.sqlite_storage import warm_instance
from rag_assets.settings import PipelineSettings
from rag_serving.lake.shards import Shard

_WORTH_PROCESSES = 500
"""Objects from which the seconds that processes take to start are soon made up for."""

Build = Callable[[PipelineSettings], dg.Definitions]


@dataclass
class BulkResult:
    """What the bulk path did."""

    succeeded: list[Shard] = field(default_factory=list[Shard])
    failed: dict[Shard, str] = field(default_factory=dict[Shard, str])
    totals: dict[str, int] = field(default_factory=dict[str, int])
    seconds: float = 0.0

    def add(self, done: ShardDone) -> None:
        """Count one shard."""
        if done.reason is None:
            self.succeeded.append(done.shard)
        else:
            self.failed[done.shard] = done.reason
        for name, value in done.totals.items():
            self.totals[name] = self.totals.get(name, 0) + value


@dataclass(frozen=True, slots=True)
class ShardDone:
    """What became of one shard: the reason if it failed, and what its assets counted."""

    shard: Shard
    reason: str | None
    totals: Mapping[str, int]


_TOTALS = {
    "raw_documents": ("added", "changed", "deleted", "unchanged", "newly_quarantined"),
    "chunks": ("chunks_written",),
    "embeddings": ("embedded", "reused", "tokens"),
    "published": ("documents", "chunks"),
}


def processes_for(shards: int, objects: int) -> int:
    """How many processes serve so much work best: one a core, so that one reads while another embeds.

    Little work is done sooner in this process than others start.
    """
    return min(shards, os.cpu_count() or 1) if objects >= _WORTH_PROCESSES else 1


def run_here(
    instance: dg.DagsterInstance,
    settings: PipelineSettings,
    shards: Sequence[Shard],
    *,
    tags: Mapping[str, str],
    verbose: bool = False,
    at_once: int = 1,
    build: Build,
    done: Callable[[Shard, str | None], None],
) -> BulkResult:
    """Index the shards in that order, one Dagster run each, in this process or in `at_once` others.

    A shard that fails is named in the result and does not stop the others; so is one whose process died. An interrupt
    (Ctrl-C) ends the runs that are under way, as failed, and raises KeyboardInterrupt. `done` is told
    of each shard, with the reason if it failed. `build` makes the definitions; it must be importable by
    name when `at_once` is more than one.
    """
    started = time.monotonic()
    result = BulkResult()
    if not shards:
        return result
    Names.of(settings).add_shards(instance, shards)
    work = _Work(settings, build, dict(tags), verbose)

    def count(outcome: ShardDone) -> None:
        result.add(outcome)
        done(outcome.shard, outcome.reason)

    processes = min(at_once, len(shards)) if instance.is_persistent else 1
    if processes > 1:
        _run_in_processes(instance, work, shards, processes, count)
    else:
        with warm_instance(instance) as warm:
            run = work.runner(warm)
            for shard in shards:
                count(run(shard))
    result.seconds = time.monotonic() - started
    return result


@dataclass(frozen=True)
class _Work:
    """What a process must know to index shards."""

    settings: PipelineSettings
    build: Build
    tags: Mapping[str, str]
    verbose: bool

    def runner(self, instance: dg.DagsterInstance) -> Callable[[Shard], ShardDone]:
        """A function that indexes one shard by one run."""
        job = self.build(self.settings).resolve_job_def(Names.of(self.settings).job(INDEX_SHARD))

        def run(shard: Shard) -> ShardDone:
            with interrupts_end_runs():
                made = job.execute_in_process(
                    partition_key=shard.key,
                    instance=instance,
                    raise_on_error=False,
                    tags=dict(self.tags),
                    run_config=quiet_logging(verbose=self.verbose),
                )
            reason = None if made.success else failure_reason(made.all_events)
            if reason == INTERRUPTED:
                raise KeyboardInterrupt
            return ShardDone(shard, reason, _totals(made.get_asset_materialization_events()))

        return run


def _totals(materializations: Sequence[dg.DagsterEvent]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for event in materializations:
        name = event.asset_key.path[-1] if event.asset_key else ""
        metadata = event.materialization.metadata
        for field_name in _TOTALS.get(name, ()):
            total = f"published_{field_name}" if name == "published" else field_name
            value = metadata[field_name].value if field_name in metadata else 0
            totals[total] = totals.get(total, 0) + int(value)  # pyright: ignore[reportArgumentType]
    return totals


class _Process:
    """A process that indexes the shards it is given, one after another."""

    def __init__(self, instance: dg.DagsterInstance, work: _Work, first: Shard) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, instance.get_ref(), work), name="rag-bulk")
        self.process.start()
        theirs.close()
        self.give(first)

    def give(self, shard: Shard) -> None:
        """Let it index that shard next."""
        self.shard = shard
        with contextlib.suppress(OSError):  # it died; the pipe is readable then, and says so
            self.pipe.send(shard)

    def outcome(self) -> ShardDone | None:
        """What became of its shard, once the pipe is readable; None if the process died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def interrupt(self) -> None:
        """Have it stop as by Ctrl-C; a run that is under way ends as one that was interrupted."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGINT)

    def join(self) -> int | None:
        """Wait for its end; gives the exit code."""
        self.pipe.close()
        self.process.join()
        return self.process.exitcode


def _run_in_processes(
    instance: dg.DagsterInstance,
    work: _Work,
    shards: Sequence[Shard],
    count: int,
    done: Callable[[ShardDone], None],
) -> None:
    waiting = deque(shards)
    busy: list[_Process] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < count:
                busy.append(_Process(instance, work, waiting.popleft()))
            ready = wait([process.pipe for process in busy])
            for process in [process for process in busy if process.pipe in ready]:
                outcome = process.outcome()
                if outcome is None:
                    busy.remove(process)
                    code = process.join()
                    done(ShardDone(process.shard, f"the process that indexed it died (exit code {code})", {}))
                    continue
                done(outcome)
                if waiting:
                    process.give(waiting.popleft())
                else:
                    busy.remove(process)
                    process.join()
    finally:
        # After an interrupt: each ends its run, gives its lease back and leaves.
        for process in busy:
            process.interrupt()
        for process in busy:
            process.join()


def _serve(pipe: Connection, ref: Any, work: _Work) -> None:
    """Index what the pipe names until it is closed, or until the parent interrupts."""
    os.setpgid(0, 0)  # so that an interrupt at the terminal comes from the parent alone, and once
    warnings.filterwarnings("ignore", module="dagster")
    # There is nothing more to do, or the parent died, or it was interrupted.
    with (
        contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt),
        dg.DagsterInstance.from_ref(ref) as instance,
        warm_instance(instance) as warm,
    ):
        run = work.runner(warm)
        while True:
            pipe.send(run(pipe.recv()))
