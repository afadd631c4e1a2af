"""Writes that notice another writer: commits under a lease, each followed by a conditional write of a record.

Lance lets compatible commits of two writers through, and a writer may sleep past its lease. So every commit must make
exactly the next version, and the record is written only if nobody else wrote it meanwhile. What the record holds, and
what is rolled back to it, is decided by `ShardWriter` and by the company index.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from rag_assets.errors import LeaseLost
from rag_assets.storage.lease import Lease
from rag_serving.errors import WriteConflict
from rag_serving.lake.lance_errors import LANCE_ERRORS, is_commit_conflict
from rag_serving.lake.object_store import ABSENT, ObjectStore

if TYPE_CHECKING:
    from lancedb.table import Table


class Fence:
    """The record at `key`, and the commits that it records; `remedy` says what to run after a `LeaseLost`."""

    def __init__(self, objects: ObjectStore, key: str, lease: Lease, *, remedy: str) -> None:
        self._objects = objects
        self._key = key
        self._lease = lease
        self._remedy = remedy
        found = objects.get(key)
        self._etag = ABSENT if found is None else found.etag
        self.stored = None if found is None else found.data
        """The record as it was found."""

    def check(self) -> None:
        """Raise `LeaseLost` if another writer may hold the lease."""
        self._lease.check()

    def save(self, record: bytes) -> None:
        """Write the record; raises `LeaseLost` if another writer wrote it meanwhile."""
        self._lease.check()
        try:
            self._etag = self._objects.put(self._key, record, expect=self._etag)
        except WriteConflict as error:
            raise self._other_writer(self._key) from error

    def commit(self, table: Table, operation: Callable[[Table], object], name: str) -> int:
        """Run an operation that makes one commit, and return the table's version."""
        self._lease.check()
        before = table.version
        with self._conflicts(name):
            operation(table)
        if table.version != before + 1:
            raise self._other_writer(name)
        return table.version

    def maintain(self, table: Table, work: Callable[[Table], object], name: str) -> int:
        """Run work that changes no row, in any number of commits, and return the table's version."""
        self._lease.check()
        before = table.version
        table.checkout_latest()
        rows = table.count_rows()
        if table.version != before:
            raise self._other_writer(name)
        _return_memory()
        with self._conflicts(name):
            work(table)
        _return_memory()
        if table.count_rows() != rows:
            raise self._other_writer(name)
        return table.version

    def restore(self, table: Table, version: int) -> bool:
        """Roll the table back; return False if that version is gone, because the table was recreated or cleaned up."""
        self._lease.check()
        try:
            table.restore(version)
        except LANCE_ERRORS:
            return False
        return True

    @contextmanager
    def _conflicts(self, name: str) -> Generator[None]:
        try:
            yield
        except LANCE_ERRORS as error:
            if is_commit_conflict(error):
                raise self._other_writer(name) from error
            raise

    def _other_writer(self, name: str) -> LeaseLost:
        return LeaseLost(f"another writer wrote to {name}; {self._remedy}")


def _return_memory() -> None:
    """Return freed memory to the system: Arrow and, by thread, glibc keep it; Lance compacts on many threads."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
