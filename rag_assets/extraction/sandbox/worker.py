"""The process in which documents are parsed: reads one at a time from its input, answers, and trusts nobody's content.

`sandbox.pool` starts it with ``python -m``. A message is its length in eight bytes, then that many bytes. The pool
sends a key and the document; the worker answers with an empty message when it starts parsing, then with the
result as JSON.
"""

import contextlib
import os
import resource
import signal
import struct
import sys
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

from pydantic import TypeAdapter

from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import ParsedObject, read_object

LENGTH = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class ParserReply:
    """What became of one document: a reading, or the reason why there is none."""

    reading: ParsedObject | None
    reason: QuarantineReason | None = None
    detail: str = ""
    memory: int = 0
    """Bytes of address space that the process holds after it; 0 where the system does not say."""


@cache
def answers() -> TypeAdapter[ParserReply]:
    """Writes and validates answers. JSON, because a pickle from a process gone astray would run in the reader."""
    return TypeAdapter(ParserReply)


def limit_memory(limit: int) -> None:
    """Bound the address space, and forbid core dumps and files: a parser needs neither."""
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for forbidden in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(forbidden, (0, 0))


def main() -> None:
    """Parse until the input ends; the arguments are MEMORY_BYTES and SECONDS."""
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    # What a library prints must not get between the answers.
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    limit_memory(memory)
    while (key := read_message(incoming)) is not None:
        try:
            data = read_message(incoming)
        except MemoryError:
            write_message(outgoing, b"", answers().dump_json(ParserReply(None, QuarantineReason.OUT_OF_MEMORY)))
            return
        if data is None:
            return
        write_message(outgoing, b"")  # from here on, what happens is this document's doing
        with _limited_time(seconds):
            answer = _answer(data, key.decode())
        del data
        write_message(outgoing, answers().dump_json(answer))
        if answer.reason is QuarantineReason.OUT_OF_MEMORY:
            return  # what is left of it may be too little for the next


def _answer(data: bytes, key: str) -> ParserReply:
    try:
        return ParserReply(read_object(data, key), memory=_address_space())
    except ExtractionError as error:
        return ParserReply(None, error.reason, error.detail, _address_space())
    except MemoryError:
        return ParserReply(None, QuarantineReason.OUT_OF_MEMORY, "")


@contextlib.contextmanager
def _limited_time(seconds: int) -> Generator[None]:
    """End the process when one document takes more CPU than that.

    The alarm is for the case that nobody is left to end it: a parent that was killed cannot.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.alarm(2 * seconds + 10)
    try:
        yield
    finally:
        signal.alarm(0)


def _address_space() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # read after each document
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def read_message(source: BinaryIO, limit: int | None = None) -> bytes | None:
    """The next message; None at the end of the input. Raises ValueError for one longer than `limit`."""
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    if limit is not None and length > limit:
        raise ValueError(f"a message of {length} bytes, {limit} at most")
    message = source.read(length)
    return message if len(message) == length else None


def write_message(target: BinaryIO, *parts: bytes) -> None:
    """Write messages and flush."""
    for part in parts:
        target.write(LENGTH.pack(len(part)))
        target.write(part)
    target.flush()


if __name__ == "__main__":
    main()
