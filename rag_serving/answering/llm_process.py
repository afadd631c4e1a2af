"""litellm in a child process per worker of the service, so that its CPU time does not delay cache hits.

litellm uses about 55 ms of CPU for an answer of 100 pieces, mostly to build objects for each piece; its settings for
logging and callbacks make no difference. With the child process, the worker's event loop spends 8 to 10 ms on the same
answer. A thread with its own event loop would save 40 MiB and this module, but it would share the interpreter's lock.
The 95th percentile of the latency of cache hits in ms (1,000 connections, two workers, two cores, median of three
alternating runs):

- 16 questions per second, answers of 100 pieces: process 8, thread 26
- 48 per second, answers of 10 pieces: process 10, thread 38
- 66 per second, answers of 10 pieces: process 51, thread 332

Lowering the thread's priority makes it worse, because the thread is preempted while it holds the lock: 400 ms instead
of 74 ms at 16 questions per second, in a pair of runs on a busier machine.

The processes exchange JSON, one message per line, over the child's standard input and output. The child exits when its
input closes, which also happens when the parent dies. If the child dies, the calls in progress fail, and the next call
starts another child. If children keep dying before their first message, restarts back off exponentially, and calls in
between fail immediately.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rag_serving.litellm_calls import AnswerPart, ModelError, answer_parts, litellm_completion, model_error

_log = logging.getLogger(__name__)

_LINE_BYTES = 64 * 2**20
_NICENESS = 5
"""On a busy core, the child gets about a third as much CPU time as the event loop."""
_SECONDS_TO_END = 5.0
_PRINTED_CHARACTERS = 2_000
_LONGEST_PAUSE = 60.0


class ModelProcessDied(ModelError):
    """The child process died during the call, or keeps dying when it starts."""

    def __init__(self, message: str = "") -> None:
        super().__init__(type(self).__name__, message)


@dataclass(slots=True)
class _Child:
    """A running child process, with a queue of messages per call."""

    process: Process
    waiting: dict[int, asyncio.Queue[dict[str, Any]]] = field(
        default_factory=dict[int, "asyncio.Queue[dict[str, Any]]"]
    )
    reading: asyncio.Future[Any] | None = None
    spoke: bool = False

    def send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None  # noqa: S101  # a pipe
        self.process.stdin.write(json.dumps(message).encode() + b"\n")


class ModelProcess:
    """litellm in a child process that the first call starts. Belongs to one event loop.

    If two children in a row die without a message, the next start waits up to `pause` seconds; each further death
    doubles that time.
    """

    def __init__(self, *, pause: float = 1.0) -> None:
        self._pause = pause
        self._deaths = 0
        self._not_before = 0.0
        self._child: _Child | None = None
        self._starting = asyncio.Lock()
        self._ids = itertools.count(1)
        self._beginning: asyncio.Task[None] | None = None
        self.is_warm = False
        """Whether a process has imported litellm."""

    def begin(self) -> None:
        """Start and warm the process in the background."""

        async def begin() -> None:
            with contextlib.suppress(ModelError, OSError):  # the first call retries and reports the error
                await self.warm()

        self._beginning = asyncio.create_task(begin())

    async def warm(self) -> None:
        """Start the process and let it import litellm."""
        async with contextlib.aclosing(self._parts({"warm": True})) as parts:
            async for _ in parts:
                pass

    def answer_parts(self, call: Mapping[str, Any]) -> AsyncGenerator[AnswerPart]:
        """Run `litellm_calls.answer_parts` in the child; raises its `ModelError`."""
        return self._parts({"call": call})

    async def close(self) -> None:
        """Stop the process; calls in progress fail."""
        if self._beginning is not None:
            self._beginning.cancel()
        child, self._child = self._child, None
        if child is None:
            return
        assert child.process.stdin is not None  # noqa: S101  # a pipe
        child.process.stdin.close()
        try:
            await asyncio.wait_for(child.process.wait(), _SECONDS_TO_END)
        except TimeoutError:
            child.process.kill()
            await child.process.wait()
        if child.reading is not None:
            await child.reading

    async def _parts(self, request: Mapping[str, Any]) -> AsyncGenerator[AnswerPart]:
        """Send a request and yield the parts of its answer; closing the generator early cancels the request."""
        child = await self._running()
        number = next(self._ids)
        queue = child.waiting[number] = asyncio.Queue()
        over = False
        try:
            child.send({"id": number, **request})
            while True:
                message = await queue.get()
                if "part" in message:
                    yield message["part"]
                    continue
                over = True
                error = message.get("error")
                if error is None:
                    return
                if error["name"] == ModelProcessDied.__name__:
                    raise ModelProcessDied
                raise ModelError(error["name"], error["message"], too_long=error["too_long"])
        finally:
            child.waiting.pop(number, None)
            if not over and child is self._child:
                child.send({"id": number, "cancel": True})

    async def _running(self) -> _Child:
        async with self._starting:
            if self._child is None or self._child.process.returncode is not None:
                if time.monotonic() < self._not_before:
                    raise ModelProcessDied("the language model process dies when it starts; the log shows its output")
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-W", "ignore", "-m", __name__),
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=PIPE,
                    limit=_LINE_BYTES,
                )
                self._child = _Child(process)
                self._child.reading = asyncio.gather(self._read(self._child), _log_output(process))
            return self._child

    async def _read(self, child: _Child) -> None:
        """Dispatch the child's messages to the calls until it dies; then fail the calls in progress."""
        assert child.process.stdout is not None  # noqa: S101  # a pipe
        try:
            async for line in child.process.stdout:
                message = json.loads(line)
                child.spoke = self.is_warm = True
                self._deaths = 0
                queue = child.waiting.get(message["id"])
                if queue is not None:
                    queue.put_nowait(message)
        finally:
            if self._child is child:
                self._child = None
                if not child.spoke:
                    self._put_off()
            for queue in child.waiting.values():
                queue.put_nowait({"end": True, "error": {"name": ModelProcessDied.__name__}})
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()  # still running if it sent a malformed message
            await child.process.wait()

    def _put_off(self) -> None:
        """Delay the next start, unless this is the first child that died without a message."""
        self._deaths += 1
        if self._deaths > 1:
            pause = min(self._pause * 2.0 ** min(self._deaths - 2, 30), _LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
            self._not_before = time.monotonic() + pause
            _log.error(
                "the language model process died when it started; it restarts after %.0f s at the earliest", pause
            )


async def _log_output(process: Process) -> None:
    """Log what the child prints, line by line, as part of this process's log."""
    assert process.stderr is not None  # noqa: S101  # a pipe
    async for line in process.stderr:
        _log.warning("language model process: %s", line.decode("utf-8", "replace").rstrip()[:_PRINTED_CHARACTERS])


class _Worker:
    """The child's side: runs litellm calls concurrently. The parent identifies them by number."""

    def __init__(self, output: asyncio.StreamWriter) -> None:
        self._output = output
        self._is_nice = False
        self._calls: dict[int, asyncio.Task[None]] = {}

    async def work(self, requests: asyncio.StreamReader) -> None:
        """Serve requests until the input closes. Running calls are cancelled when the event loop ends."""
        async for line in requests:
            request = json.loads(line)
            number = request["id"]
            if "cancel" in request:
                if (call := self._calls.get(number)) is not None:
                    call.cancel()
                continue
            task = self._calls[number] = asyncio.create_task(self._answer(number, request.get("call")))
            task.add_done_callback(lambda _, number=number: self._calls.pop(number, None))

    async def _answer(self, number: int, call: dict[str, Any] | None) -> None:
        try:
            completion = litellm_completion()
            if not self._is_nice:  # only now, because callers wait for the import of litellm
                self._is_nice = True
                with contextlib.suppress(OSError):
                    os.nice(_NICENESS)
            if call is not None:
                async with contextlib.aclosing(answer_parts(call, completion)) as parts:
                    async for part in parts:
                        await self._send({"id": number, "part": part})
            await self._send({"id": number, "end": True})
        except Exception as error:  # noqa: BLE001 - the parent raises it again
            known = error if isinstance(error, ModelError) else model_error(error, ())
            told = {"name": known.name, "message": known.message, "too_long": known.too_long}
            await self._send({"id": number, "end": True, "error": told})

    async def _send(self, message: Mapping[str, Any]) -> None:
        self._output.write(json.dumps(message).encode() + b"\n")
        await self._output.drain()


async def _work(output: int) -> None:
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader(limit=_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(output, "wb"))
    await _Worker(asyncio.StreamWriter(transport, protocol, None, loop)).work(requests)


def main() -> None:
    """Run the child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the parent finishes its requests and stops the child
    output = os.dup(1)
    os.dup2(2, 1)  # litellm's prints must not mix with the messages
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        asyncio.run(_work(output))


if __name__ == "__main__":
    main()
