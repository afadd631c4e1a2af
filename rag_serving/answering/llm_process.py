"""litellm in a process of its own beside each worker of the service, so that its CPU does not delay cache hits.

litellm takes about 55 ms of CPU for an answer of 100 pieces (0.5 ms a piece), most of it for the objects of each piece;
its settings for logging and callbacks change nothing. Here the worker's event loop spends 8 to 10 ms on the same
answer. In the worker, an event loop in a thread of its own saves 40 MiB and this module, but shares the interpreter's
lock. 95th percentile of hits in ms, median of three runs in turn (1,000 connections, two workers, two cores):

- 16 questions a second, answers of 100 pieces: process 8, thread 26
- 48 a second, answers of 10 pieces: process 10, thread 38
- 66 a second, answers of 10 pieces: process 51, thread 332

Lowering the thread's priority makes it worse: it is preempted while it holds the lock (400 against 74 in a pair of runs
on a busier machine, 16 questions a second).

The two processes exchange JSON, one message per line, through the child's standard input and output. The child ends
when its input does, and so with its parent. If it dies, the calls under way fail and the next call starts another; if
it keeps dying before its first message, starts back off exponentially and calls between them fail at once.
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

from rag_serving.litellm_calls import AnswerPart, answer_parts, litellm_completion

_log = logging.getLogger(__name__)

_LINE_BYTES = 64 * 2**20
_NICENESS = 5
"""Where both want a core, the child is left about a third of what the event loop gets."""
_SECONDS_TO_END = 5.0
_LONGEST_PAUSE = 60.0


class ModelCallFailed(Exception):
    """What became of a call in the other process, by the name of its error there."""


class ModelProcessDied(ModelCallFailed):
    """The other process ended during the call, or does so whenever it is started."""


@dataclass(slots=True)
class _Child:
    """A running process and who waits for which of its messages."""

    process: Process
    waiting: dict[int, asyncio.Queue[dict[str, Any]]] = field(
        default_factory=dict[int, "asyncio.Queue[dict[str, Any]]"]
    )
    reading: asyncio.Task[None] | None = None
    spoke: bool = False

    def say(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None  # noqa: S101  # asked for
        self.process.stdin.write(json.dumps(message).encode() + b"\n")


class ModelProcess:
    """litellm behind a pipe; of one event loop. Nothing starts before the first call.

    After a second death without a word, the next start waits up to `pause` seconds, which double with each further one.
    """

    def __init__(self, *, pause: float = 1.0) -> None:
        self._pause = pause
        self._deaths = 0
        self._not_before = 0.0
        self._child: _Child | None = None
        self._starting = asyncio.Lock()
        self._ids = itertools.count(1)
        self._beginning: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the process while other things go on, so that the first question finds it warm."""

        async def begin() -> None:
            with contextlib.suppress(ModelCallFailed, OSError):  # the first call tries again, and tells of it
                await self.warm()

        self._beginning = asyncio.create_task(begin())

    async def warm(self) -> None:
        """Start the process, and have it import litellm, before a question waits for it."""
        async with contextlib.aclosing(self._parts({"warm": True})) as parts:
            async for _ in parts:
                pass

    def answer_parts(self, call: Mapping[str, Any]) -> AsyncGenerator[AnswerPart]:
        """Do what `litellm_calls.answer_parts` does; errors are `ModelCallFailed`, by the names they have there."""
        return self._parts({"call": call})

    async def close(self) -> None:
        """End the process; calls under way fail."""
        if self._beginning is not None:
            self._beginning.cancel()
        child, self._child = self._child, None
        if child is None:
            return
        assert child.process.stdin is not None  # noqa: S101  # asked for
        child.process.stdin.close()
        try:
            await asyncio.wait_for(child.process.wait(), _SECONDS_TO_END)
        except TimeoutError:
            child.process.kill()
            await child.process.wait()
        if child.reading is not None:
            await child.reading

    async def _parts(self, request: Mapping[str, Any]) -> AsyncGenerator[AnswerPart]:
        """Send a request and yield the parts that answer it; closing this early cancels the request."""
        child = await self._running()
        number = next(self._ids)
        queue = child.waiting[number] = asyncio.Queue()
        over = False
        try:
            child.say({"id": number, **request})
            while True:
                message = await queue.get()
                if "part" in message:
                    yield message["part"]
                    continue
                over = True
                error = message.get("error")
                if error == ModelProcessDied.__name__:
                    raise ModelProcessDied
                if error is not None:
                    raise type(str(error), (ModelCallFailed,), {})
                return
        finally:
            child.waiting.pop(number, None)
            if not over and child is self._child:
                child.say({"id": number, "cancel": True})

    async def _running(self) -> _Child:
        async with self._starting:
            if self._child is None or self._child.process.returncode is not None:
                if time.monotonic() < self._not_before:
                    raise ModelProcessDied("it ends whenever it is started; its last words are on standard error")
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", __name__, stdin=PIPE, stdout=PIPE, limit=_LINE_BYTES
                )
                self._child = _Child(process)
                self._child.reading = asyncio.create_task(self._read(self._child))
            return self._child

    async def _read(self, child: _Child) -> None:
        """Hand the child's messages to who waits for them, until it dies, which whoever still waits is told then."""
        assert child.process.stdout is not None  # noqa: S101  # asked for
        try:
            async for line in child.process.stdout:
                message = json.loads(line)
                child.spoke = True
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
                queue.put_nowait({"end": True, "error": ModelProcessDied.__name__})
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()  # if what it said was no message
            await child.process.wait()

    def _put_off(self) -> None:
        """Have the next start wait if this is not the first that died without a word."""
        self._deaths += 1
        if self._deaths > 1:
            pause = min(self._pause * 2.0 ** min(self._deaths - 2, 30), _LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
            self._not_before = time.monotonic() + pause
            _log.error("the process that calls language models ended at its start; tried again in %.0f s", pause)


class _Worker:
    """The child's side: calls of litellm, at once, by the numbers that the parent gave them."""

    def __init__(self, output: asyncio.StreamWriter) -> None:
        self._output = output
        self._gives_way = False
        self._calls: dict[int, asyncio.Task[None]] = {}

    async def work(self, requests: asyncio.StreamReader) -> None:
        """Until the parent has no more to say; the end of the event loop then cancels what is under way."""
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
            if not self._gives_way:  # from now on: until litellm was imported, somebody waits for that
                self._gives_way = True
                with contextlib.suppress(OSError):
                    os.nice(_NICENESS)
            if call is not None:
                async with contextlib.aclosing(answer_parts(call, completion)) as parts:
                    async for part in parts:
                        await self._say({"id": number, "part": part})
            await self._say({"id": number, "end": True})
        except Exception as error:  # noqa: BLE001 - the parent tells by its name, as it does of litellm's own
            await self._say({"id": number, "end": True, "error": type(error).__name__})

    async def _say(self, message: Mapping[str, Any]) -> None:
        self._output.write(json.dumps(message).encode() + b"\n")
        await self._output.drain()


async def _work(output: int) -> None:
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader(limit=_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(output, "wb"))
    await _Worker(asyncio.StreamWriter(transport, protocol, None, loop)).work(requests)


def main() -> None:
    """The child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent finishes what is under way, and ends this
    output = os.dup(1)
    os.dup2(2, 1)  # what litellm prints is no message
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        asyncio.run(_work(output))


if __name__ == "__main__":
    main()
