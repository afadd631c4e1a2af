"""Writes that detect another writer: commits under a lease, each followed by a conditional write of a record.

Lance accepts compatible commits of two writers, and a writer may sleep past its lease. So every commit must make
exactly the next version, and the record is written only if it has not changed. `ShardWriter` and the company index
decide what the record holds and when tables are rolled back to it.
"""

import ctypes
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pyarrow as pa

from rag_assets.errors import LeaseLost
from rag_assets.storage.lake import Table
from rag_assets.storage.lease import Lease
from rag_serving.errors import WriteConflict
from rag_serving.lake.lance_errors import LANCE_ERRORS, is_commit_conflict
from rag_serving.lake.object_store import ABSENT, ObjectStore


class Fence:
    """The record at `key` and the commits that it records; `remedy` tells the user what to do after a `LeaseLost`."""

    def __init__(self, objects: ObjectStore, key: str, lease: Lease, *, remedy: str) -> None:
        self._objects = objects
        self._key = key
        self._lease = lease
        self._remedy = remedy
        found = objects.get(key)
        self._etag = ABSENT if found is None else found.etag
        self.stored = None if found is None else found.data
        """The record when the fence was created."""

    def check(self) -> None:
        """Raise `LeaseLost` if another writer may hold the lease."""
        self._lease.check()

    def save(self, record: bytes) -> None:
        """Write the record; raise `LeaseLost` if another writer changed it."""
        self._lease.check()
        try:
            self._etag = self._objects.put(self._key, record, expect=self._etag)
        except WriteConflict as error:
            raise self._other_writer(self._key) from error

    def commit(self, table: Table, operation: Callable[[Table], object], name: str) -> int:
        """Run an operation that makes one commit, and return the table's new version."""
        self._lease.check()
        before = table.version
        with self._conflicts(name):
            operation(table)
        if table.version != before + 1:
            raise self._other_writer(name)
        return table.version

    def maintain(self, table: Table, work: Callable[[Table], object], name: str) -> int:
        """Run work that changes no row, in any number of commits, and return the table's new version."""
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
        """Roll the table back; return False if the version is gone because the table was recreated or cleaned up."""
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
    """Return freed memory to the system: Arrow keeps it, and so does glibc for each of Lance's threads."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
