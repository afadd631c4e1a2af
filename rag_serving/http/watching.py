"""Find what blocked or killed a worker: a watch on the event loop, and a record of the requests in progress."""

import asyncio
import logging
import mmap
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from rag_serving.http.logs import request_id

_BLOCKED_SECONDS = 1.0
_BEATS_PER_SECOND = 4
_FRAMES = 12

_SLOTS = 256
"""Requests in progress that are recorded; more than these at once are counted, but not named."""
_SLOT_BYTES = 128

_log = logging.getLogger(__name__)


class LoopWatch:
    """Logs what blocks the running event loop for more than a second, with the request and the stack."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread_of_loop = threading.get_ident()
        self._beat = time.monotonic()
        self._closed = threading.Event()
        self._timer = self._loop.call_soon(self._on_time)
        self._loop.set_task_factory(_named_by_request)
        self.blocked = 0
        """How often the loop was blocked."""
        threading.Thread(target=self._watch, name="loop watch", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._timer.cancel()

    def _on_time(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(1 / _BEATS_PER_SECOND, self._on_time)

    def _watch(self) -> None:
        reported = 0.0
        while not self._closed.wait(1 / _BEATS_PER_SECOND):
            beat = self._beat
            late = time.monotonic() - beat
            if late < _BLOCKED_SECONDS or beat == reported:
                continue
            reported = beat
            self.blocked += 1
            task = asyncio.current_task(self._loop)
            frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
            frame = frames.get(self._thread_of_loop)
            stack = "".join(traceback.format_stack(frame)[-_FRAMES:]) if frame is not None else ""
            _log.error(
                "the event loop has been blocked for %.1f s by request %s:\n%s",
                late,
                "unknown" if task is None else task.get_name(),
                stack,
            )


def _named_by_request(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> "asyncio.Task[Any]":
    """Create a task with the id of the request as its name, because another thread cannot read its context."""
    task = asyncio.Task(work, loop=loop, **options)
    if request_id.get():
        task.set_name(request_id.get())
    return task


class RequestsInProgress:
    """Names of the requests in progress, in a file that outlives the process."""

    def __init__(self, folder: Path) -> None:
        path = _record_of(folder, os.getpid())
        path.write_bytes(bytes(_SLOTS * _SLOT_BYTES))
        with path.open("r+b") as file:
            self._slots = mmap.mmap(file.fileno(), 0)
        self._free = list(range(_SLOTS))

    def begin(self, name: str) -> int | None:
        """Record a request; returns its slot for `end`, or None if all are taken."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._write(slot, name.encode()[:_SLOT_BYTES])
        return slot

    def end(self, slot: int | None) -> None:
        """Remove a request from the record."""
        if slot is not None:
            self._write(slot, b"")
            self._free.append(slot)

    def _write(self, slot: int, name: bytes) -> None:
        self._slots[slot * _SLOT_BYTES : (slot + 1) * _SLOT_BYTES] = name.ljust(_SLOT_BYTES, b"\0")


def requests_of_dead_process(folder: Path, pid: int) -> list[str]:
    """Return the requests that were in progress in a process that ended, and remove its record."""
    path = _record_of(folder, pid)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    path.unlink()
    slots = (data[at : at + _SLOT_BYTES].rstrip(b"\0") for at in range(0, len(data), _SLOT_BYTES))
    return [name.decode("utf-8", "replace") for name in slots if name]


def _record_of(folder: Path, pid: int) -> Path:
    return folder / f"requests-{pid}"
