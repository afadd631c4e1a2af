"""The bulk path: many shards in a few warm processes, one Dagster run each, without a daemon.

A process keeps Dagster, the model and its inference streams loaded from shard to shard. Several work in parallel, so
that one reads while another embeds. They are processes because every Dagster run reconfigures the process's logging.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import dagster as dg

from rag_assets.errors import ShardLocked
from rag_assets.runs.failures import INTERRUPTED, interrupts_end_runs
from rag_assets.runs.names import INDEX_SHARD, Names
from rag_assets.runs.reporting import failure_reason, quiet_logging
from rag_assets.runs.sqlite_storage import warm_instance
from rag_assets.settings import PipelineSettings
from rag_serving.lake.shards import Shard

_WORTH_PROCESSES = 500
"""With fewer objects, starting processes takes longer than they save."""

_LOOK_AT = 20
_LOOK_AGAIN = 1.0
"""Shards to look at for one that nobody writes to, and seconds until the next look if there is none."""

Build = Callable[[PipelineSettings], dg.Definitions]


@dataclass(frozen=True, slots=True)
class ShardDone:
    """The result of one shard: the reason if it failed, the counts of its assets, and warnings of its checks."""

    shard: Shard
    reason: str | None
    totals: Mapping[str, int]
    warnings: Sequence[str] = ()


@dataclass
class BulkResult:
    """The results of all shards."""

    succeeded: list[Shard] = field(default_factory=list[Shard])
    failed: dict[Shard, str] = field(default_factory=dict[Shard, str])
    elsewhere: list[Shard] = field(default_factory=list[Shard])
    """Shards that others indexed meanwhile."""
    warnings: dict[Shard, Sequence[str]] = field(default_factory=dict[Shard, Sequence[str]])
    """What checks reported without stopping the shard."""
    totals: Counter[str] = field(default_factory=Counter[str])
    seconds: float = 0.0

    def add(self, done: ShardDone) -> None:
        """Add the result of one shard."""
        if done.reason is None:
            self.succeeded.append(done.shard)
        else:
            self.failed[done.shard] = done.reason
        self.totals.update(done.totals)
        if done.warnings:
            self.warnings[done.shard] = done.warnings


_TOTALS = {
    "raw_documents": ("added", "changed", "deleted", "unchanged", "newly_quarantined"),
    "chunks": ("chunks_written",),
    "embeddings": ("embedded", "reused", "tokens"),
    "published": ("documents", "chunks"),
}


def processes_for(shards: int, objects: int) -> int:
    """Return the number of processes to use: one per core, or this process alone for little work."""
    return min(shards, os.cpu_count() or 1) if objects >= _WORTH_PROCESSES else 1


class Others(Protocol):
    """What other processes, on this machine or another, do with the same lake."""

    def indexed(self, shard: Shard) -> bool:
        """Return whether they indexed the shard since this work was planned."""
        ...

    def are_writing(self, shard: Shard) -> bool:
        """Return whether one of them writes to the shard."""
        ...


class _Queue:
    """The shards that are still to be indexed, in order; those that others write to go to the end."""

    def __init__(self, shards: Sequence[Shard], others: Others | None, result: BulkResult) -> None:
        self._waiting = deque(shards)
        self._others = others
        self._result = result

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Shard | None:
        """Return the next shard that nobody writes to; None if there is none among the next few."""
        for _ in range(min(len(self._waiting), _LOOK_AT)):
            shard = self._waiting.popleft()
            if self._others is not None and self._others.indexed(shard):
                self._result.elsewhere.append(shard)
            elif self._others is not None and self._others.are_writing(shard):
                self._waiting.append(shard)
            else:
                return shard
        return None

    def put_back(self, shard: Shard) -> None:
        """Return a shard that another writer was faster to lock."""
        self._waiting.append(shard)


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
    others: Others | None = None,
) -> BulkResult:
    """Index the shards in that order, one Dagster run each, in this process or in `at_once` child processes.

    A failed run or a dead process is reported in the result and does not stop the other shards. Shards that `others`
    write to are left for later, and those that they indexed are left out. An interrupt (Ctrl-C) fails the active runs
    and raises KeyboardInterrupt. `done` is called for each indexed shard, with the reason if it failed. `build` makes
    the definitions; child processes import it by name.
    """
    started = time.monotonic()
    result = BulkResult()
    if not shards:
        return result
    Names.of(settings).add_shards(instance, shards)
    if others is not None:  # waiting for a lease would keep this process from other shards
        settings = settings.model_copy(update={"lease_wait": 0.0})
    work = _Work(settings, build, dict(tags), verbose)
    queue = _Queue(shards, others, result)

    def count(outcome: ShardDone) -> None:
        if others is not None and ShardLocked.__name__ in (outcome.reason or "").partition(": ")[0]:
            queue.put_back(outcome.shard)
            return
        result.add(outcome)
        done(outcome.shard, outcome.reason)

    processes = min(at_once, len(shards)) if instance.is_persistent else 1
    if processes > 1:
        _run_in_processes(instance, work, queue, processes, count)
    else:
        with warm_instance(instance) as warm:
            run = work.runner(warm)
            while queue:
                shard = queue.take()
                if shard is None:
                    time.sleep(_LOOK_AGAIN)
                else:
                    count(run(shard))
    result.seconds = time.monotonic() - started
    return result


@dataclass(frozen=True)
class _Work:
    """What a process needs to index shards."""

    settings: PipelineSettings
    build: Build
    tags: Mapping[str, str]
    verbose: bool

    def runner(self, instance: dg.DagsterInstance) -> Callable[[Shard], ShardDone]:
        """Return a function that indexes one shard in one run."""
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
            totals = _totals(made.get_asset_materialization_events())
            warned = [
                check.description or check.check_name
                for check in made.get_asset_check_evaluations()
                if not check.passed and check.severity == dg.AssetCheckSeverity.WARN
            ]
            return ShardDone(shard, reason, totals, warned)

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
    """A child process that indexes one shard after another."""

    def __init__(self, instance: dg.DagsterInstance, work: _Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, instance.get_ref(), work), name="rag-bulk")
        self.process.start()
        theirs.close()

    def give(self, shard: Shard) -> None:
        """Send the process its next shard."""
        self.shard = shard
        with contextlib.suppress(OSError):  # it died; the pipe then becomes readable and `outcome` returns None
            self.pipe.send(shard)

    def outcome(self) -> ShardDone | None:
        """Receive the result of its shard once the pipe is readable; None if the process died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def interrupt(self) -> None:
        """Stop the process like Ctrl-C does; an active run fails as interrupted."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGINT)

    def join(self) -> int | None:
        """Wait until the process ends, and return its exit code."""
        self.pipe.close()
        self.process.join()
        return self.process.exitcode


def _run_in_processes(
    instance: dg.DagsterInstance, work: _Work, queue: _Queue, count: int, done: Callable[[ShardDone], None]
) -> None:
    busy: list[_Process] = []
    idle: list[_Process] = []
    try:
        while queue or busy:
            while len(busy) < count and (shard := queue.take()) is not None:
                process = idle.pop() if idle else _Process(instance, work)
                process.give(shard)
                busy.append(process)
            ready = wait([process.pipe for process in busy], _LOOK_AGAIN if queue else None)
            for process in [process for process in busy if process.pipe in ready]:
                busy.remove(process)
                outcome = process.outcome()
                if outcome is None:
                    code = process.join()
                    done(ShardDone(process.shard, f"the process that indexed it died (exit code {code})", {}))
                    continue
                done(outcome)
                idle.append(process)
    finally:
        # After an interrupt, each process ends its run, releases its lease and exits.
        for process in busy:
            process.interrupt()
        for process in [*busy, *idle]:
            process.join()


def _serve(pipe: Connection, ref: Any, work: _Work) -> None:
    """Index the shards that the pipe delivers, until it is closed or the parent sends an interrupt."""
    os.setpgid(0, 0)  # so that only the parent, not the terminal too, sends the interrupt
    warnings.filterwarnings("ignore", module="dagster")
    # These errors mean that there is no more work, the parent died, or it was interrupted.
    with (
        contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt),
        dg.DagsterInstance.from_ref(ref) as instance,
        warm_instance(instance) as warm,
    ):
        run = work.runner(warm)
        while True:
            pipe.send(run(pipe.recv()))
