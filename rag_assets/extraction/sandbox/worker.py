"""The process that parses documents: it reads one at a time from its input and replies on its output.

`sandbox.pool` starts it with ``python -m``. A message has its length in eight bytes, then the content. The pool sends
a key and the document; the worker sends an empty message when it starts parsing, then the reply as JSON.
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
from rag_assets.extraction.formats.legacy.libreoffice import MAX_FILE_BYTES, converter
from rag_assets.extraction.registry import ParsedObject, read_object

LENGTH = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class ParserReply:
    """The parsed object, or the reason why it is unreadable."""

    reading: ParsedObject | None
    reason: QuarantineReason | None = None
    detail: str = ""
    memory: int = 0
    """Bytes of address space that the process uses afterwards; 0 if unknown."""


@cache
def answers() -> TypeAdapter[ParserReply]:
    """Return the adapter of replies. They are JSON because a compromised process's pickle could run code."""
    return TypeAdapter(ParserReply)


def limit_memory(limit: int) -> None:
    """Limit the address space, and forbid core dumps and files, which only a converter of old formats may write."""
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0 if converter() is None else MAX_FILE_BYTES))


def main() -> None:
    """Parse until the input ends; the arguments are MEMORY_BYTES and SECONDS."""
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    # Replace stdin and stdout, so that a library's output does not mix with the replies.
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
        write_message(outgoing, b"")  # from here on, the document is the cause of a crash
        with _limited_time(seconds):
            answer = _answer(data, key.decode())
        del data
        write_message(outgoing, answers().dump_json(answer))
        if answer.reason is QuarantineReason.OUT_OF_MEMORY:
            return  # the remaining memory may be too little for the next document


def _answer(data: bytes, key: str) -> ParserReply:
    try:
        return ParserReply(read_object(data, key), memory=_address_space())
    except ExtractionError as error:
        return ParserReply(None, error.reason, error.detail, _address_space())
    except MemoryError:
        return ParserReply(None, QuarantineReason.OUT_OF_MEMORY, "")


@contextlib.contextmanager
def _limited_time(seconds: int) -> Generator[None]:
    """End the process if one document takes more CPU time; the alarm ends it if the parent was killed."""
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
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # faster, and called after each document
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def read_message(source: BinaryIO, limit: int | None = None) -> bytes | None:
    """Read the next message; None at the end of the input. Raises ValueError if it is longer than `limit`."""
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    if limit is not None and length > limit:
        raise ValueError(f"a message of {length} bytes exceeds the limit of {limit}")
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
