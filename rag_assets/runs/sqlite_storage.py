"""A Dagster instance over the same SQLite storage, for a process that makes many runs: a third of the CPU per run.

Dagster opens a database engine for each of the hundreds of statements of a run. Here the connections stay open, and the
output of steps is not captured into files; what runs log is in the event log.

Dagster has no public setting for this, so two of its storage classes are subclassed, and a third one that combines
them. The classes are documented, but their methods are not stable: `_check_dagster` refuses a Dagster that changed
them. CPU per run of an unchanged shard, without one part at a time, where all of them together take 1.00 (0.22 s, the
median of 15, two cores with AMX):

- event log connections kept open: 3.0; its `has_table` remembered: 1.2; blank database copied: 1.2;
  `synchronous=NORMAL` for all connections: 1.2, and twice the seconds
- run storage connection kept open: 1.15
- no captured output: 1.2
- all of them, a plain instance: 3.5. Public alternatives: the consolidated SQLite event log 2.7; runs in an ephemeral
  instance, copied to the persistent one afterwards, 2.9
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as db
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy import event
from sqlalchemy.pool import StaticPool

_OPEN_DATABASES = 32
"""Dagster keeps one database per run and one for all runs; the least recently used ones are closed."""

_BUSY_SECONDS = 30
"""How long a statement waits for another process's lock."""

_REPLACED: Mapping[type, tuple[str, ...]] = {
    SqliteEventLogStorage: ("_connect", "_initdb", "conn_string_for_shard", "has_table", "path_for_shard"),
    SqliteRunStorage: ("connect", "from_local"),
    DagsterSqliteStorage: ("from_config_value", "from_local", "event_log_storage", "run_storage"),
}
"""What is overridden or called below."""


@contextmanager
def warm_instance(instance: dg.DagsterInstance) -> Generator[dg.DagsterInstance]:
    """Open the instance for this process's many runs, one at a time; an ephemeral one is returned as it is.

    Raises `RuntimeError` if this version of Dagster lacks something that the storage below replaces.
    """
    if not instance.is_persistent:
        yield instance
        return
    ref = instance.get_ref()
    storage = ref.storage_data
    _check_dagster()
    if storage is not None and storage.class_name == DagsterSqliteStorage.__name__:
        storage = ConfigurableClassData(__name__, WarmSqliteStorage.__name__, storage.config_yaml)
    no_capture = ConfigurableClassData("dagster._core.storage.noop_compute_log_manager", "NoOpComputeLogManager", "{}")
    with dg.DagsterInstance.from_ref(ref._replace(storage_data=storage, compute_logs_data=no_capture)) as warm:
        yield warm


def _check_dagster() -> None:
    """Refuse a Dagster whose storage changed: an override that nothing calls would only be slow, and go unnoticed."""
    missing = [
        f"{base.__name__}.{name}" for base, names in _REPLACED.items() for name in names if name not in vars(base)
    ]
    if missing:
        raise RuntimeError(
            f"dagster {dg.__version__} has no {', '.join(missing)}: install a version that rag-shards allows, "
            "or leave out --here, so that the daemon runs the backfill"
        )


class WarmSqliteEventLogStorage(SqliteEventLogStorage):
    """Dagster's event log in SQLite files, with the connections kept open."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._open: OrderedDict[str, db.Engine] = OrderedDict()
        self._opening = threading.Lock()
        self._tables: set[str] = set()
        self._blank = b""
        super().__init__(base_dir, inst_data)

    @property
    def open_databases(self) -> int:
        return len(self._open)

    @contextmanager
    def _connect(self, shard: str) -> Generator[Any]:
        with self._opening, self._engine(shard).connect() as connection, connection.begin():
            yield connection

    def has_table(self, table_name: str) -> bool:
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def dispose(self) -> None:
        with self._opening:
            while self._open:
                self._open.popitem()[1].dispose()
        super().dispose()

    def _engine(self, shard: str) -> db.Engine:
        engine = self._open.get(shard)
        if engine is None:
            engine = self._open[shard] = self._opened(shard)
            while len(self._open) > _OPEN_DATABASES:
                self._open.popitem(last=False)[1].dispose()
        self._open.move_to_end(shard)
        return engine

    def _opened(self, shard: str) -> db.Engine:
        path = Path(self.path_for_shard(shard))
        new = not path.exists()
        if new and self._blank:
            # Dagster creates the tables by its migrations, which takes longer than a small run's use of them.
            with contextlib.suppress(FileExistsError), path.open("xb") as file:
                file.write(self._blank)
            self._initialized_dbs.add(shard)
        engine = _one_connection(self.conn_string_for_shard(shard))
        if shard not in self._initialized_dbs:
            self._initdb(engine)
            self._initialized_dbs.add(shard)
            if new:
                with engine.connect() as connection:
                    connection.execute(db.text("PRAGMA wal_checkpoint(TRUNCATE)"))
                self._blank = path.read_bytes()
        return engine


class WarmSqliteRunStorage(SqliteRunStorage):
    """Dagster's table of runs in a SQLite file, with the connection kept open."""

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engine = _one_connection(conn_string)
        self._using = threading.RLock()
        super().__init__(conn_string, inst_data)

    @contextmanager
    def connect(self) -> Generator[Any]:
        with self._using, self._engine.connect() as connection, connection.begin():
            yield connection

    def dispose(self) -> None:
        self._engine.dispose()
        super().dispose()


class WarmSqliteStorage(DagsterSqliteStorage):
    """Dagster's SQLite storage with those two."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Any) -> WarmSqliteStorage:
        return cls.from_local(inst_data=inst_data, **config_value)

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        history = Path(base_dir, "history")
        self._event_log_storage = WarmSqliteEventLogStorage(str(history / "runs"))
        self._run_storage = WarmSqliteRunStorage.from_local(str(history))


def _one_connection(database: str) -> db.Engine:
    """For use by one thread at a time."""
    arguments = {"timeout": _BUSY_SECONDS, "check_same_thread": False}
    engine = db.create_engine(database, poolclass=StaticPool, connect_args=arguments)

    def connected(connection: Any, _record: Any) -> None:
        # With a write-ahead log, as Dagster has it, this loses nothing when a process dies; when the machine does, at
        # most the last events of runs that are over with it as well.
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(engine, "connect", connected)
    return engine
