"""Open and read the pipeline's tables; rows are written through `shard_writer` and `stages.company_index`.

Each stage has its own folder in the lake, with one LanceDB table per shard.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
else:
    Table = Any  # importing lancedb takes seconds, which loading the code location must not

Log = Callable[[str], None]

KEEP_ALL_VERSIONS = timedelta(days=36_500)
"""Passed as `cleanup_older_than`, so that an indexing run removes no version; maintenance does."""
_METADATA_CACHE_BYTES = 16 * 2**20
_INDEX_CACHE_BYTES = 32 * 2**20


class TableOwner(Protocol):
    """Something with its own tables and one writer at a time: a shard or the company index."""

    @property
    def table_name(self) -> str:
        """Name of its tables and its lease, unique in each folder."""
        ...


@dataclass(frozen=True)
class Lake:
    """The lake at one URI: small objects, and tables by stage and shard."""

    uri: str
    _connections: dict[str, Any] = field(default_factory=dict[str, Any], compare=False, repr=False)

    @cached_property
    def objects(self) -> ObjectStore:
        """The store of the lake's small objects."""
        return open_object_store(self.uri)

    @cached_property
    def _session(self) -> Any:
        # Its warnings are about indexes of many equal vectors, and would run through the progress of a command.
        os.environ.setdefault("LANCEDB_LOG", "error")
        import lancedb

        _return_large_blocks()
        # Lance's defaults are gigabytes: in a long run it would cache the file list of every version.
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
        """Return the stage's table of the shard; None before the stage first ran."""
        connection = self._connect(table_folder(stage, fingerprint))
        try:
            return connection.open_table(shard.table_name)
        except LANCE_ERRORS as error:
            if isinstance(error, ValueError | FileNotFoundError) and "not found" in str(error).lower():
                return None
            raise LakeUnavailable(f"cannot open {stage} of {shard}: {first_line(error)}") from error

    def ensure(self, stage: str, shard: TableOwner, schema: pa.Schema, *, fingerprint: str = "") -> Table:
        """Return the stage's table of the shard; create it if it does not exist."""
        table = self.open(stage, shard, fingerprint=fingerprint)
        if table is not None:
            return table
        return self._connect(table_folder(stage, fingerprint)).create_table(shard.table_name, schema=schema)

    def overwrite(self, stage: str, shard: TableOwner, schema: pa.Schema) -> Table:
        """Make an empty table of that schema the next version; older versions stay readable."""
        return self._connect(table_folder(stage, "")).create_table(shard.table_name, schema=schema, mode="overwrite")

    def drop(self, stage: str, shard: TableOwner, *, fingerprint: str = "") -> None:
        """Drop the stage's table of the shard with all its versions."""
        self._connect(table_folder(stage, fingerprint)).drop_table(shard.table_name, ignore_missing=True)


def open_lake(uri: str) -> Lake:
    """Return this process's lake at that URI with its open connections; a changed endpoint or region reopens it."""
    return _shared(uri, tuple(sorted((storage_options(uri) or {}).items())))


@lru_cache(maxsize=8)
def _shared(uri: str, options: tuple[tuple[str, str], ...]) -> Lake:  # noqa: ARG001 - part of the cache key
    return Lake(uri)


_M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
_LARGE_BLOCK = 2**20


@cache
def _return_large_blocks() -> None:
    """Make glibc return large freed blocks to the system.

    By default glibc returns blocks of 128 KiB and more, but raises that threshold as it sees larger blocks, and keeps
    the rest per thread: building a large vector index on many threads would hold 100 MiB more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def table_folder(stage: str, fingerprint: str = "") -> str:
    """Return the folder of the lake that holds a stage's tables."""
    return f"{stage}/{fingerprint}" if fingerprint else stage


def scan(
    table: Table | None, columns: list[str], *, where: str | None = None, batch_rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the table's rows in batches; nothing if the table does not exist."""
    if table is None:
        return
    query = table.search().select(columns)
    if where is not None:
        query = query.where(where)
    yield from query.to_batches(batch_rows)


def rows_of(
    table: Table | None, *names: str, where: str | None = None, batch_rows: int | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield the table's rows as tuples of Python values of those columns."""
    for batch in scan(table, list(names), where=where, batch_rows=batch_rows):
        yield from columns(batch, *names)


def column_values(table: Table | None, name: str, *, where: str | None = None) -> Iterator[Any]:
    """Yield one column of the table as Python values."""
    for batch in scan(table, [name], where=where):
        yield from values(batch, name)


def read(table: Table, columns: list[str], *, where: str | None = None) -> pa.Table:
    """Return the table's rows at once; use it with narrow columns or a bounded filter."""
    query = table.search().select(columns)
    return (query.where(where) if where is not None else query).to_arrow()


def replace_rows(table: Table, rows: pa.Table, *, key: str, where: str) -> None:
    """Upsert the rows by `key` and delete all other rows that match `where`, in one commit."""
    (
        table.merge_insert(key)
        .when_matched_update_all()
        .when_not_matched_insert_all()
        .when_not_matched_by_source_delete(where)
        .use_index(False)  # a scalar index on the key would let concurrent merges duplicate rows
        .execute(rows)
    )


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
    """Return the rows as tuples of Python values of those columns."""
    return zip(*(values(rows, name) for name in names), strict=True)


def values(rows: pa.RecordBatch | pa.Table, name: str) -> list[Any]:
    """Return one column as Python values."""
    return cast("Any", rows).column(name).to_pylist()


def made_at(version: dict[str, Any]) -> datetime:
    """Return the creation time of a table's version."""
    made: datetime = version["timestamp"]
    return made.astimezone(UTC)  # Lance returns naive local time
