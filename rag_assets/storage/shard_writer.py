"""The one way rows get into a shard's tables: under its lease, commit by commit, each of them noted in the lake.

The note (``progress/<table>.json``) names the version of every table that the lease's holder left, and the documents on
which the tables may still disagree. With it a run goes on where another stopped and looks at what changed alone; and
whatever else is in a table, from a holder that slept past its lease or died before it could note it, is taken back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from rag_assets.errors import LeaseLost
from rag_assets.storage.lake import Lake, table_folder
from rag_assets.storage.lease import Lease
from rag_assets.storage.schemas import CHUNKS, QUARANTINE, RAW_DOCUMENTS
from rag_serving.errors import WriteConflict
from rag_serving.lake.object_store import ABSENT
from rag_serving.lake.shards import Shard
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import SHARDS

if TYPE_CHECKING:
    from lancedb.table import Table


PROGRESS = "progress"

MAX_DIRTY_DOCUMENTS = 2_000
"""Documents that a note names at most; beyond, comparing whole tables is as quick."""
_FILTER_VALUES = 2_000
"""Values that one filter names at most: the engine parses the whole of it."""
_AS_CREATED = 1


class Progress(BaseModel):
    """The note. Everything in it is as of `versions`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    versions: dict[str, int] = {}
    """Version of each table, by its folder in the lake."""
    touched: tuple[str, ...] | None = None
    """Ids of documents on which the tables may disagree, or which nobody has checked; None: any document."""
    source_digest: str = ""
    content_digest: str = ""
    chunker: str = ""
    fingerprint: str = ""


def read_progress(lake: Lake, shard: Shard) -> Progress | None:
    """The shard's note; None where there is none, or none that can be read, which only costs a whole comparison."""
    found = lake.objects.get(_key(shard))
    return None if found is None else _parsed(found.data)


def dirty_documents(lake: Lake, shard: Shard) -> Sequence[str] | None:
    """Ids of the documents that a check must look at; None for all, also when the tables are not as noted."""
    progress = read_progress(lake, shard)
    if progress is None or progress.touched is None:
        return None
    for folder, version in progress.versions.items():
        stage, _, fingerprint = folder.partition("/")
        table = lake.open(stage, shard, fingerprint=fingerprint)
        if table is None or table.version != version:
            return None
    return progress.touched


class ShardWriter:
    """Writes to the tables of one shard, as the holder of its lease; opening it takes back what nobody noted.

    Every method that writes raises `LeaseLost` once another may hold the shard. Use `table` to read: the handles are
    kept, and see what was written here. A method's `note` is written together with the version it makes. With `whole`,
    every step compares whole tables, whatever the note says.
    """

    def __init__(self, lake: Lake, shard: Shard, lease: Lease, *, whole: bool = False) -> None:
        self.lake = lake
        self.shard = shard
        self._lease = lease
        self._whole = whole
        self._tables: dict[str, Table | None] = {}
        found = lake.objects.get(_key(shard))
        self._etag = ABSENT if found is None else found.etag
        noted = None if found is None else _parsed(found.data)
        self._noted = noted or Progress()
        self._progress = self._noted if noted is not None else self._adopted()
        self.taken_back: tuple[str, ...] = () if noted is None else tuple(self._take_back())

    @property
    def progress(self) -> Progress:
        """The note as it will stand after the next commit."""
        return self._progress

    @property
    def epoch(self) -> int:
        return self._lease.epoch

    @property
    def touched(self) -> tuple[str, ...] | None:
        """Documents that a step must look at; None for all."""
        return None if self._whole else self._progress.touched

    def check(self) -> None:
        """Raise `LeaseLost` if another writer may hold the shard by now."""
        self._lease.check()

    def note(self, *, save: bool = True, **facts: Any) -> None:
        """Change the note; with `save`, write it if that says anything new."""
        self._progress = self._progress.model_copy(update=facts)
        if save and self._progress != self._noted:
            self._save()

    def touch(self, doc_ids: Iterable[str] | None) -> None:
        """Add documents to those that the steps to come must look at; None adds all. Saved with the next commit."""
        touched = None
        if doc_ids is not None and self._progress.touched is not None:
            together = tuple(sorted({*self._progress.touched, *doc_ids}))
            touched = together if len(together) <= MAX_DIRTY_DOCUMENTS else None
        self.note(save=False, touched=touched)

    def table(self, stage: str, fingerprint: str = "") -> Table | None:
        """The stage's table, or None before the stage first ran."""
        folder = table_folder(stage, fingerprint)
        if self._tables.get(folder) is None:
            self._tables[folder] = self.lake.open(stage, self.shard, fingerprint=fingerprint)
        return self._tables[folder]

    def ensure(self, stage: str, schema: pa.Schema, fingerprint: str = "") -> Table:
        """The stage's table, made now if it is not there."""
        table = self.table(stage, fingerprint)
        if table is None:
            self._lease.check()
            table = self.lake.ensure(stage, self.shard, schema, fingerprint=fingerprint)
            self._tables[table_folder(stage, fingerprint)] = table
            self._note_version(table_folder(stage, fingerprint), table.version)
        return table

    def overwrite(self, stage: str, schema: pa.Schema) -> Table:
        """An empty table of that schema as the next version; older versions stay readable."""
        self._lease.check()
        table = self.lake.overwrite(stage, self.shard, schema)
        self._tables[stage] = table
        self._note_version(stage, table.version)
        return table

    def append(self, stage: str, rows: pa.Table, *, fingerprint: str = "", **note: Any) -> None:
        """Add rows, in one commit."""
        self._commit(stage, fingerprint, lambda table: table.add(rows), note)

    def replace(
        self,
        stage: str,
        rows: pa.Table,
        *,
        key: str,
        owner: str,
        owners: Sequence[str],
        fresh: bool = False,
        **note: Any,
    ) -> None:
        """Make `rows` all that the owners have in the stage's table, in one commit.

        `fresh` promises that no owner has a row yet: an append then does the same for less. Whatever else an owner had
        (stale chunks of a longer version, everything of a deleted document) goes in the same commit.
        """

        def merge(table: Table) -> None:
            (
                table.merge_insert(key)
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(sql_in(owner, owners))
                .use_index(False)  # a scalar index on the key would let concurrent merges duplicate rows
                .execute(rows)
            )

        if fresh:
            self.append(stage, rows, **note)
        else:
            self._commit(stage, "", merge, note)

    def delete(self, stage: str, column: str, among: Sequence[str], *, fingerprint: str = "", **note: Any) -> None:
        """Delete the rows whose column has one of the values, in commits of a bounded filter each."""
        for start in range(0, len(among), _FILTER_VALUES):
            where = sql_in(column, among[start : start + _FILTER_VALUES])
            self._commit(stage, fingerprint, lambda table, where=where: table.delete(where), note)

    def update(self, stage: str, where: str, values: dict[str, Any], **note: Any) -> None:
        """Set columns of the rows that match, in one commit."""
        self._commit(stage, "", lambda table: table.update(where=where, values=values), note)

    def drop(self, stage: str, fingerprint: str) -> None:
        """Remove the stage's table; what it held can be made again."""
        self._lease.check()
        folder = table_folder(stage, fingerprint)
        self.lake.drop(stage, self.shard, fingerprint=fingerprint)
        self._tables.pop(folder, None)
        self.note(versions={name: at for name, at in self._progress.versions.items() if name != folder})

    def maintain(self, stage: str, work: Callable[[Table], None], *, fingerprint: str = "") -> None:
        """Let `work` index or compact the stage's table, which changes no row and may take several commits."""
        table = self._existing(stage, fingerprint)
        self._lease.check()
        before = table.version
        table.checkout_latest()
        rows = table.count_rows()
        if table.version != before:
            raise self._not_alone(stage)
        _give_memory_back()
        with self._alone(stage):
            work(table)
        _give_memory_back()
        if table.count_rows() != rows:  # how many commits it takes is not known, so rows are looked at instead
            raise self._not_alone(stage)
        self._note_version(table_folder(stage, fingerprint), table.version)

    def _commit(self, stage: str, fingerprint: str, operation: Callable[[Table], object], note: dict[str, Any]) -> None:
        table = self._existing(stage, fingerprint)
        self._lease.check()
        before = table.version
        with self._alone(stage):
            operation(table)
        if table.version != before + 1:
            # Lance lets compatible commits of two writers through, and both would be in there.
            raise self._not_alone(stage)
        self._note_version(table_folder(stage, fingerprint), table.version, **note)

    @contextmanager
    def _alone(self, stage: str) -> Generator[None]:
        """Name the error by which Lance refuses a commit that is not compatible with another writer's."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if "commit conflict" in str(error).lower():
                raise self._not_alone(stage) from error
            raise

    def _not_alone(self, stage: str) -> LeaseLost:
        return LeaseLost(f"another writer wrote to {stage} of shard {self.shard}; run the shard again")

    def _existing(self, stage: str, fingerprint: str) -> Table:
        table = self.table(stage, fingerprint)
        if table is None:
            raise LeaseLost(f"{stage} of shard {self.shard} is gone; run the shard again")
        return table

    def _note_version(self, folder: str, version: int, **note: Any) -> None:
        self.note(versions={**self._progress.versions, folder: version}, **note)

    def _save(self) -> None:
        self._lease.check()
        try:
            self._etag = self.lake.objects.put(
                _key(self.shard), self._progress.model_dump_json().encode(), expect=self._etag
            )
        except WriteConflict as error:
            raise LeaseLost(f"another writer works on shard {self.shard}; run the shard again") from error
        self._noted = self._progress

    def _adopted(self) -> Progress:
        """A first note: the tables as they are, with nothing known of them."""
        versions = {
            stage: table.version
            for stage in (RAW_DOCUMENTS, QUARANTINE, CHUNKS, SHARDS)
            if (table := self.table(stage)) is not None
        }
        return Progress(versions=versions)

    def _take_back(self) -> Iterable[str]:
        """Bring every table back to the version noted; yields the stages of those that were not."""
        folders = {RAW_DOCUMENTS, QUARANTINE, CHUNKS, SHARDS, *self._progress.versions}
        for folder in sorted(folders):
            stage, _, fingerprint = folder.partition("/")
            table = self.table(stage, fingerprint)
            noted = self._progress.versions.get(folder, _AS_CREATED)
            if table is None:
                if folder in self._progress.versions:  # somebody removed it; what it held is made anew
                    self.note(touched=None, versions={k: v for k, v in self._progress.versions.items() if k != folder})
                continue
            if table.version == noted:
                continue
            self._lease.check()
            try:
                table.restore(noted)
            except (OSError, RuntimeError, ValueError):  # that version is gone: the table was made anew, or cleaned
                self.note(save=False, touched=None)
            yield stage
            self._note_version(folder, table.version)


def _give_memory_back() -> None:
    """Return to the system what was freed: Arrow keeps it, and glibc by thread; Lance indexes and compacts on many."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _key(shard: Shard) -> str:
    return f"{PROGRESS}/{shard.table_name}.json"


def _parsed(data: bytes) -> Progress | None:
    try:
        return Progress.model_validate_json(data)
    except ValidationError:
        return None
