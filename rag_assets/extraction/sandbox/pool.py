"""Parsing in processes of their own, with limits: whatever a document does to its parser, it does to nobody else.

One document at a time goes to one process. A crash, a hang or a blow-up of memory ends that process and costs that
document; the next one starts another. `multiprocessing` and `concurrent.futures` do not fit: one crash breaks a whole
executor, nothing in it can be killed alone, and what comes back is a pickle.
"""

import atexit
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from rag_assets.errors import ParserUnavailable
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import ParsedObject
from rag_assets.extraction.sandbox.worker import ParserReply, answers, read_message, write_message

_ANSWER_BYTES = 512 * 2**20
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "VIRTUAL_ENV")

_COMMAND = (sys.executable, "-m", "rag_assets.extraction.sandbox.worker")


@dataclass(frozen=True, slots=True)
class ParserLimits:
    """What one document may take, and how long a process lives."""

    seconds: int = 120
    """Of the clock, and of CPU."""
    memory: int = 1536 * 2**20
    """Bytes of address space of the process."""
    documents: int = 500
    """After so many documents a process makes room for a fresh one, whatever its libraries have leaked."""


class ParserPool:
    """Up to `workers` parser processes, started when there is work. Safe between threads.

    `command` starts one; it is given the limits as arguments. Close the pool, or its processes end with this one.
    """

    def __init__(self, limits: ParserLimits, workers: int, *, command: Sequence[str] = _COMMAND) -> None:
        self._limits = limits
        self._command = (*command, str(limits.memory), str(limits.seconds))
        # The last used first: what is warm stays warm, and a small run starts one process only.
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._slots.put(None)
        self._workers = workers
        self.started = 0

    def read(self, data: bytes, key: str) -> ParsedObject:
        """The documents of one object; raises ExtractionError with the reason where there are none."""
        worker = self._slots.get()
        try:
            answer = None
            if worker is not None:
                try:
                    answer = worker.exchange(data, key, self._limits)
                except _NotStarted:  # it died while it had nothing to do, which is no document's fault
                    worker.end()
                    worker = None
            if worker is None or answer is None:
                self.started += 1
                worker = _Worker(self._command)
                answer = worker.exchange(data, key, self._limits)
            worn = worker.served >= self._limits.documents or answer.memory > self._limits.memory // 2
            if worn or answer.reason is QuarantineReason.OUT_OF_MEMORY:
                worker.end()
                worker = None
        except _NotStarted as error:
            if worker is not None:
                worker.end()
                worker = None
            raise ParserUnavailable(
                f"no parser process can be started ({error}); look at its memory limit (RAG_PARSE_MEMORY)"
            ) from error
        except BaseException:
            # A crash, or a stop of this very process between question and answer: that answer is nobody's.
            if worker is not None:
                worker.end()
                worker = None
            raise
        finally:
            self._slots.put(worker)
        if answer.reading is not None:
            return answer.reading
        reason = answer.reason or QuarantineReason.MALFORMED
        detail = _memory_detail(self._limits) if reason is QuarantineReason.OUT_OF_MEMORY else answer.detail
        raise ExtractionError(reason, detail)

    def close(self) -> None:
        """End the processes; a document under way is waited for."""
        for _ in range(self._workers):
            worker = self._slots.get()
            if worker is not None:
                worker.end()
        for _ in range(self._workers):
            self._slots.put(None)


@cache
def warm_parsers(limits: ParserLimits, workers: int) -> ParserPool:
    """The pool of that size, kept for the life of this process."""
    pool = ParserPool(limits, workers)
    atexit.register(pool.close)
    return pool


class _NotStarted(Exception):
    """The process ended before it started on the document."""


class _Worker:
    """One parser process, with one document in it at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self.served = 0
        # Pipes of our own: those of Popen are of a type that says less.
        theirs, ours = os.pipe()
        self._sending = os.fdopen(ours, "wb")
        ours, answers_to = os.pipe()
        self._receiving = os.fdopen(ours, "rb")
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=theirs,
                stdout=answers_to,
                stderr=subprocess.DEVNULL,  # what parsers complain about quotes documents
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the parent to handle
            )
        finally:
            os.close(theirs)
            os.close(answers_to)

    def exchange(self, data: bytes, key: str, limits: ParserLimits) -> ParserReply:
        """Send a document and wait for the answer.

        Raises ExtractionError when the process dies of it, and _NotStarted when it was dead before.
        """
        overdue = threading.Event()

        def kill() -> None:
            overdue.set()
            self._process.kill()

        timer = threading.Timer(limits.seconds, kill)
        timer.daemon = True
        timer.start()
        started = False
        try:
            # A process that refuses a document has answered before it took all of it.
            with contextlib.suppress(BrokenPipeError):
                write_message(self._sending, key.encode(errors="replace"), data)
            started = read_message(self._receiving, 0) is not None
            message = read_message(self._receiving, _ANSWER_BYTES) if started else None
            if message is not None:
                self.served += 1
                return answers().validate_json(message)
        except (ValueError, ValidationError) as error:
            self._process.kill()
            detail = "its parser answered what is no answer; report the file"
            raise ExtractionError(QuarantineReason.CRASHED, detail) from error
        finally:
            timer.cancel()
        status = self._process.wait()
        if not started and not overdue.is_set():
            raise _NotStarted(f"exit status {status}")
        raise _death(status, limits, overdue=overdue.is_set())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._sending, self._receiving):
            # What was not sent has nobody to go to.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _death(status: int, limits: ParserLimits, *, overdue: bool) -> ExtractionError:
    if overdue or status in (-signal.SIGXCPU, -signal.SIGALRM):
        detail = f"parsing took longer than {limits.seconds} s (RAG_PARSE_SECONDS); split the file or save it anew"
        return ExtractionError(QuarantineReason.TIMED_OUT, detail)
    if status == -signal.SIGKILL:  # the kernel's answer to a machine without memory left
        return ExtractionError(QuarantineReason.OUT_OF_MEMORY, _memory_detail(limits))
    how = signal.Signals(-status).name if -status in set(signal.Signals) else f"exit status {status}"
    detail = f"its parser crashed ({how}); open the file and save it anew"
    return ExtractionError(QuarantineReason.CRASHED, detail)


def _memory_detail(limits: ParserLimits) -> str:
    return f"parsing needs more than {limits.memory // 2**20} MiB (RAG_PARSE_MEMORY); split the file or save it anew"


def _environment() -> dict[str, str]:
    """Variables of a parser process: how to start, and no secret of ours."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    package_root = str(Path(__file__).parents[1])
    paths = [package_root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    # Many arenas of malloc would use up the address space that is limited.
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "MALLOC_ARENA_MAX": "2"}
