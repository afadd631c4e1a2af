"""A Dagster instance for a process with many runs: the same SQLite storage for a third of the CPU per run.

Dagster opens a database engine for each of the hundreds of statements of a run. Here connections stay open, and the
output of steps is not captured into files; the event log still has the logs of runs.

Dagster has no public setting for this, so two of its storage classes, and the one that combines them, are subclassed.
Their methods are not a stable API: `_check_dagster` rejects a Dagster that changed them. Relative CPU per run of an
unchanged shard if one part is left out (with all parts: 1.00 = 0.22 s, the median of 15, two cores with AMX):

- event log connections kept open: 3.0; its `has_table` cached: 1.2; blank database copied: 1.2;
  `synchronous=NORMAL` for all connections: 1.2, and twice the wall-clock time
- run storage connection kept open: 1.15
- no captured output: 1.2
- all of them, a plain instance: 3.5. Public alternatives: the consolidated SQLite event log 2.7; runs in an ephemeral
  instance, copied to the persistent one afterwards, 2.9
"""

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
"""Dagster keeps one database per run and one for all runs; the least recently used are closed."""

_BUSY_SECONDS = 30
"""Seconds that a statement waits for another process's lock."""

_REPLACED: Mapping[type, tuple[str, ...]] = {
    SqliteEventLogStorage: ("_connect", "_initdb", "conn_string_for_shard", "has_table", "path_for_shard"),
    SqliteRunStorage: ("connect", "from_local"),
    DagsterSqliteStorage: ("from_config_value", "from_local", "event_log_storage", "run_storage"),
}
"""The methods that are overridden or called below."""


@contextmanager
def warm_instance(instance: dg.DagsterInstance) -> Generator[dg.DagsterInstance]:
    """Open the instance for consecutive runs in this process; an ephemeral instance is yielded unchanged.

    Raises `RuntimeError` if this version of Dagster lacks a method that the storage below replaces.
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
    """Reject a Dagster whose storage changed: an override that is never called would silently be slow."""
    missing = [
        f"{base.__name__}.{name}" for base, names in _REPLACED.items() for name in names if name not in vars(base)
    ]
    if missing:
        raise RuntimeError(
            f"dagster {dg.__version__} has no {', '.join(missing)}: install a version that rag-shards supports, "
            "or omit --here to let the daemon run the backfill"
        )


class WarmSqliteEventLogStorage(SqliteEventLogStorage):
    """Dagster's event log in SQLite files, with open connections."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._open: OrderedDict[str, db.Engine] = OrderedDict()
        self._opening = threading.Lock()
        self._tables: set[str] = set()
        self._blank = b""
        super().__init__(base_dir, inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Generator[Any]:
        with self._opening, self._engine(shard).connect() as connection, connection.begin():
            yield connection

    def has_table(self, table_name: str) -> bool:
        """Return whether the table exists; caches True."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def dispose(self) -> None:
        """Close all connections."""
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
            # Dagster creates the tables by migrations, which take longer than a small run's statements.
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
    """Dagster's table of runs in a SQLite file, with an open connection."""

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engine = _one_connection(conn_string)
        self._using = threading.RLock()
        super().__init__(conn_string, inst_data)

    @contextmanager
    def connect(self) -> Generator[Any]:
        """Yield the open connection in a transaction."""
        with self._using, self._engine.connect() as connection, connection.begin():
            yield connection

    def dispose(self) -> None:
        """Close the connection."""
        self._engine.dispose()
        super().dispose()


class WarmSqliteStorage(DagsterSqliteStorage):
    """Dagster's SQLite storage, made of the two classes above."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Any) -> "WarmSqliteStorage":
        """Create the storage from an instance's configuration."""
        return cls.from_local(inst_data=inst_data, **config_value)

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        history = Path(base_dir, "history")
        self._event_log_storage = WarmSqliteEventLogStorage(str(history / "runs"))
        self._run_storage = WarmSqliteRunStorage.from_local(str(history))


def _one_connection(database: str) -> db.Engine:
    """Return an engine with a single connection, for one thread at a time."""
    arguments = {"timeout": _BUSY_SECONDS, "check_same_thread": False}
    engine = db.create_engine(database, poolclass=StaticPool, connect_args=arguments)

    def connected(connection: Any, _record: Any) -> None:
        # Dagster uses a write-ahead log, so this loses nothing if the process dies. If the machine does, it loses at
        # most the last events of runs, which die with it.
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(engine, "connect", connected)
    return engine
