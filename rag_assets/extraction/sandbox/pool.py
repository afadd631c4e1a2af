"""Parse documents in limited processes, so that a document that crashes its parser affects no other document.

Each process parses one document at a time. A crash, a hang or excessive memory use only ends that process. The standard
library's executors do not fit: one crash breaks the whole executor, a single process cannot be killed, and results are
pickles.
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
_KEPT_VARIABLES = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "TESSDATA_PREFIX",
    "TMPDIR",
    "TZ",
    "VIRTUAL_ENV",
)

_COMMAND = (sys.executable, "-m", "rag_assets.extraction.sandbox.worker")


@dataclass(frozen=True, slots=True)
class ParserLimits:
    """Limits of a parser process."""

    seconds: int = 120
    """Per document, for wall-clock and for CPU time."""
    memory: int = 1536 * 2**20
    """Bytes of address space."""
    documents: int = 500
    """Documents after which a process is replaced, because libraries leak."""
    ocr: bool = False
    ocr_languages: str = "eng"


class ParserPool:
    """Up to `workers` parser processes, started on demand. Thread-safe.

    `command` starts a process, with the limits as arguments. Without `close`, the processes end with this one.
    """

    def __init__(self, limits: ParserLimits, workers: int, *, command: Sequence[str] = _COMMAND) -> None:
        self._limits = limits
        self._command = (*command, str(limits.memory), str(limits.seconds))
        # The last used process comes first, so that a small run starts only one.
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._slots.put(None)
        self._workers = workers
        self.started = 0

    def read(self, data: bytes, key: str) -> ParsedObject:
        """Parse one object; raise ExtractionError if it is unreadable, `ParserUnavailable` if no process starts."""
        worker = self._slots.get()
        reusable = False
        try:
            answer = None
            if worker is not None:
                try:
                    answer = worker.exchange(data, key, self._limits)
                except _NotStarted:  # it died while idle, so the document is not the cause
                    worker.end()
            if worker is None or answer is None:
                self.started += 1
                worker = _Worker(self._command, self._limits)
                answer = worker.exchange(data, key, self._limits)
            worn = worker.served >= self._limits.documents or answer.memory > self._limits.memory // 2
            reusable = not worn and answer.reason is not QuarantineReason.OUT_OF_MEMORY
        except _NotStarted as error:
            raise ParserUnavailable(
                f"no parser process can be started ({error}); check its memory limit (RAG_PARSE_MEMORY)"
            ) from error
        finally:
            # After a crash or an interrupt, the process must not deliver this document's reply to the next caller.
            if worker is not None and not reusable:
                worker.end()
            self._slots.put(worker if reusable else None)
        if answer.reading is not None:
            return answer.reading
        reason = answer.reason or QuarantineReason.MALFORMED
        detail = _memory_detail(self._limits) if reason is QuarantineReason.OUT_OF_MEMORY else answer.detail
        raise ExtractionError(reason, detail)

    def close(self) -> None:
        """End the processes, after the documents that they are parsing."""
        for worker in [self._slots.get() for _ in range(self._workers)]:
            if worker is not None:
                worker.end()
            self._slots.put(None)


@cache
def warm_parsers(limits: ParserLimits, workers: int) -> ParserPool:
    """Return the pool with these limits, which lives as long as this process."""
    pool = ParserPool(limits, workers)
    atexit.register(pool.close)
    return pool


class _NotStarted(Exception):
    """The process ended before it started to parse the document."""


class _Worker:
    """One parser process."""

    def __init__(self, command: Sequence[str], limits: ParserLimits) -> None:
        self.served = 0
        # Own pipes, because those of Popen are less precisely typed.
        theirs, ours = os.pipe()
        self._sending = os.fdopen(ours, "wb")
        ours, answers_to = os.pipe()
        self._receiving = os.fdopen(ours, "rb")
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=theirs,
                stdout=answers_to,
                stderr=subprocess.DEVNULL,  # warnings of parsers quote documents
                env=_environment(limits),
                start_new_session=True,  # the parent handles Ctrl-C, and the programs it starts end with it
            )
        finally:
            os.close(theirs)
            os.close(answers_to)

    def exchange(self, data: bytes, key: str, limits: ParserLimits) -> ParserReply:
        """Send a document and wait for the reply.

        Raises ExtractionError if the document kills the process, and _NotStarted if it was dead before.
        """
        overdue = threading.Event()

        def kill() -> None:
            overdue.set()
            self._kill()

        timer = threading.Timer(limits.seconds, kill)
        timer.daemon = True
        timer.start()
        started = False
        try:
            # A process that rejects a document replies before it has received all of it.
            with contextlib.suppress(BrokenPipeError):
                write_message(self._sending, key.encode(errors="replace"), data)
            started = read_message(self._receiving, 0) is not None
            message = read_message(self._receiving, _ANSWER_BYTES) if started else None
            if message is not None:
                self.served += 1
                return answers().validate_json(message)
        except (ValueError, ValidationError) as error:
            self._kill()
            detail = "its parser sent an invalid reply; report the file"
            raise ExtractionError(QuarantineReason.CRASHED, detail) from error
        finally:
            timer.cancel()
        # A dead process keeps its group's number until `wait`, so the programs that it started can be ended safely.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._kill()
        status = self._process.wait()
        if not started and not overdue.is_set():
            raise _NotStarted(f"exit status {status}")
        raise _death(status, limits, overdue=overdue.is_set())

    def _kill(self) -> None:
        """Kill the process with the programs that it started."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        self._kill()
        self._process.wait()
        for pipe in (self._sending, self._receiving):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _death(status: int, limits: ParserLimits, *, overdue: bool) -> ExtractionError:
    if overdue or status in (-signal.SIGXCPU, -signal.SIGALRM):
        detail = f"parsing took longer than {limits.seconds} s (RAG_PARSE_SECONDS); split the file or save it again"
        return ExtractionError(QuarantineReason.TIMED_OUT, detail)
    if status == -signal.SIGKILL:  # the kernel killed it because the machine ran out of memory
        return ExtractionError(QuarantineReason.OUT_OF_MEMORY, _memory_detail(limits))
    how = signal.Signals(-status).name if -status in set(signal.Signals) else f"exit status {status}"
    detail = f"its parser crashed ({how}); open the file and save it again"
    return ExtractionError(QuarantineReason.CRASHED, detail)


def _memory_detail(limits: ParserLimits) -> str:
    return f"parsing needs more than {limits.memory // 2**20} MiB (RAG_PARSE_MEMORY); split the file or save it again"


def _environment(limits: ParserLimits) -> dict[str, str]:
    """Return the variables that a parser process needs to start, and no secrets."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    package_root = str(Path(__file__).parents[3])
    paths = [package_root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    # Many malloc arenas would use up the limited address space.
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MALLOC_ARENA_MAX": "2",
        **({"RAG_OCR": "true"} if limits.ocr else {}),
        "RAG_OCR_LANGUAGES": limits.ocr_languages,
    }
