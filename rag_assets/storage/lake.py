"""The pipeline's tables: where each stage's table of a shard lies, its schema, and the few ways rows get in and out.

Every stage keeps one LanceDB table per shard, in a folder of the lake of its own, under the shard's table name.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol, cast

import pyarrow as pa

from rag_serving.errors import LakeUnavailable, first_line
from rag_serving.lake.lance_errors import LANCE_ERRORS, named_lance_errors
from rag_serving.lake.object_store import ObjectStore, open_object_store
from rag_serving.lake.tables import database_uri, storage_options

if TYPE_CHECKING:
    from lancedb.table import Table

Log = Callable[[str], None]

KEEP_VERSIONS = timedelta(days=36_500)
"""An age at which no version is cleaned up; an indexing run leaves them all, for a reader may be on one."""
_METADATA_CACHE_BYTES = 16 * 2**20
_INDEX_CACHE_BYTES = 32 * 2**20


class TableOwner(Protocol):
    """What has tables of its own and one writer at a time: a shard, or an embedder's company table."""

    @property
    def table_name(self) -> str:
        """Name of its tables and of its lease; no two owners of one folder have the same."""
        ...


@dataclass(frozen=True)
class Lake:
    """The lake at one URI: its small objects, and its tables by stage and shard."""

    uri: str

    @cached_property
    def objects(self) -> ObjectStore:
        return open_object_store(self.uri)

    @cached_property
    def _connections(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _session(self) -> Any:
        import lancedb

        _return_large_blocks()
        # Lance's own bounds are gigabytes: it would keep the list of files of every version that a long run makes.
        return lancedb.Session(
            index_cache_size_bytes=_INDEX_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
        )

    def _connect(self, folder: str) -> Any:
        import lancedb

        if folder not in self._connections:
            options = storage_options(self.uri)
            with named_lance_errors(f"cannot open the lake {self.uri}", "; check RAG_LAKE_URI"):
                self._connections[folder] = lancedb.connect(
                    database_uri(self.uri, folder), storage_options=options, session=self._session
                )
        return self._connections[folder]

    def open(self, stage: str, shard: TableOwner, *, fingerprint: str = "") -> Table | None:
        """The stage's table of the shard, or None before the stage first ran."""
        connection = self._connect(table_folder(stage, fingerprint))
        try:
            return connection.open_table(shard.table_name)
        except LANCE_ERRORS as error:
            if isinstance(error, ValueError | FileNotFoundError) and "not found" in str(error).lower():
                return None
            raise LakeUnavailable(f"cannot open {stage} of {shard}: {first_line(error)}") from error

    def ensure(self, stage: str, shard: TableOwner, schema: pa.Schema, *, fingerprint: str = "") -> Table:
        """The stage's table of the shard, made now if it is not there."""
        table = self.open(stage, shard, fingerprint=fingerprint)
        if table is not None:
            return table
        return self._connect(table_folder(stage, fingerprint)).create_table(shard.table_name, schema=schema)

    def overwrite(self, stage: str, shard: TableOwner, schema: pa.Schema) -> Table:
        """An empty table of that schema as the next version; older versions stay readable."""
        return self._connect(table_folder(stage, "")).create_table(shard.table_name, schema=schema, mode="overwrite")

    def drop(self, stage: str, shard: TableOwner, *, fingerprint: str = "") -> None:
        """Remove the stage's table of the shard, with all its versions."""
        self._connect(table_folder(stage, fingerprint)).drop_table(shard.table_name, ignore_missing=True)


def open_lake(uri: str) -> Lake:
    """Return this process's lake at that URI, with the connections that it has open.

    Another endpoint or region in the environment is another lake.
    """
    return _shared(uri, tuple(sorted((storage_options(uri) or {}).items())))


@lru_cache(maxsize=8)
def _shared(uri: str, options: tuple[tuple[str, str], ...]) -> Lake:  # noqa: ARG001 - a part of the key
    return Lake(uri)


_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE_BLOCK = 2**20


@cache
def _return_large_blocks() -> None:
    """Have what Lance frees go back to the system.

    glibc begins with that for 128 KiB and more, but raises the size with the blocks that it sees, and then keeps such
    blocks for itself, by thread: an index of many vectors, made on many threads, takes a hundred MiB more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def table_folder(stage: str, fingerprint: str = "") -> str:
    """The folder of the lake in which a stage's tables lie."""
    return f"{stage}/{fingerprint}" if fingerprint else stage


def scan(table: Table | None, columns: list[str], *, where: str | None = None) -> Iterator[pa.RecordBatch]:
    """The table's rows, a batch at a time; nothing for a table that is not there."""
    if table is None:
        return
    query = table.search().select(columns)
    if where is not None:
        query = query.where(where)
    yield from query.to_batches()


def read(table: Table, columns: list[str], *, where: str | None = None) -> pa.Table:
    """The table's rows at once; for narrow columns or a bounded filter."""
    query = table.search().select(columns)
    return (query.where(where) if where is not None else query).to_arrow()


def row_count(table: Table | None) -> int:
    """Return the rows of a table; 0 if the table does not exist yet."""
    return 0 if table is None else table.count_rows()


def table_bytes(table: Table) -> int:
    """Return the size of the table's current version in bytes."""
    return _stats(table)["total_bytes"]


def small_fragments(table: Table) -> int:
    """Return the number of files that are small enough to be worth compacting."""
    return _stats(table)["fragment_stats"]["num_small_fragments"]


def _stats(table: Table) -> dict[str, Any]:
    return cast("dict[str, Any]", table.stats())  # declared as an object, but a dictionary


def columns(rows: pa.RecordBatch | pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    """The rows as tuples of Python values of those columns."""
    return zip(*(values(rows, name) for name in names), strict=True)


def values(rows: pa.RecordBatch | pa.Table, name: str) -> list[Any]:
    """One column as Python values."""
    return cast("Any", rows).column(name).to_pylist()


def made_at(version: dict[str, Any]) -> datetime:
    """When a version of a table was made."""
    made: datetime = version["timestamp"]
    return made.astimezone(UTC)  # Lance tells local time, without saying so
