"""A parser process for tests that fails like a parser of a hostile document; the document's key names the failure."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import NoReturn

from rag_assets.extraction.errors import QuarantineReason
from rag_assets.extraction.registry import ParsedObject, read_object
from rag_assets.extraction.sandbox import worker as parser_process


def hang() -> NoReturn:
    while True:
        time.sleep(1)


def spin() -> NoReturn:
    while True:
        pass


def swell() -> NoReturn:
    kept: list[bytearray] = []
    while True:
        kept.append(bytearray(16 * 2**20))


def read(data: bytes, key: str) -> ParsedObject:
    name = key.rpartition("/")[2]
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("quit"):
        os._exit(3)
    if name.startswith("hang"):
        hang()
    if name.startswith("spin"):
        spin()
    if name.startswith("swell"):
        swell()
    if name.startswith("babble"):
        os.write(3, b"\xff" * 64)  # its pipes are the first descriptors after the standard ones
        os.write(4, b"\x00" * 7 + b"\x08no json!")
    if name.startswith("print"):
        print("x" * 100_000)
        print("y" * 100_000, file=sys.stderr)
    if name.startswith("environment"):
        return read_object("\n\n".join(f"{k}={v}" for k, v in os.environ.items()).encode(), "a/b/c.txt")
    return read_object(data, key)


if __name__ == "__main__":
    assert QuarantineReason.CRASHED
    parser_process.read_object = read  # pyright: ignore[reportPrivateLocalImportUsage]
    parser_process.main()
