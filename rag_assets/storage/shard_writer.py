"""The one way rows get into a shard's tables: under its lease, commit by commit, each recorded in the lake.

The progress record (``progress/<table>.json``) names the version of every table that the lease's holder left, and the
documents on which the tables may still disagree. A run resumes from it and looks only at what changed. Commits that are
not recorded, from a crashed or expired writer, are rolled back. How another writer is noticed is in `fence`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_assets.errors import LeaseLost
from rag_assets.storage.fence import Fence
from rag_assets.storage.lake import Lake, table_folder
from rag_assets.storage.lease import Lease
from rag_assets.storage.schemas import CHUNKS, QUARANTINE, RAW_DOCUMENTS
from rag_serving.lake.shards import Shard
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import SHARDS

if TYPE_CHECKING:
    from lancedb.table import Table

PROGRESS = "progress"

MAX_DIRTY_DOCUMENTS = 2_000
"""Most documents that a record names; above, comparing whole tables is as fast."""
_FILTER_VALUES = 2_000
"""Values that one filter names at most: the engine parses the whole of it."""
_AS_CREATED = 1


class Progress(BaseModel):
    """The progress record of a shard. Everything in it is as of `versions`."""

    model_config = ConfigDict(frozen=True, extra="ignore", serialize_by_alias=True)

    versions: dict[str, int] = {}
    """Version of each table, by its folder in the lake."""
    dirty: tuple[str, ...] | None = Field(default=None, validation_alias="touched", serialization_alias="touched")
    """Ids of documents on which the tables may disagree, or which are unchecked; None: any document."""
    source_digest: str = ""
    content_digest: str = ""
    chunker: str = ""
    fingerprint: str = ""


def read_progress(lake: Lake, shard: Shard) -> Progress | None:
    """Return the shard's record; None if it is missing or unreadable, which costs a comparison of whole tables."""
    found = lake.objects.get(_key(shard))
    return None if found is None else _parsed(found.data)


def dirty_documents(lake: Lake, shard: Shard) -> Sequence[str] | None:
    """Return the ids of documents that a check must look at; None for all, also if tables are not as recorded."""
    progress = read_progress(lake, shard)
    if progress is None or progress.dirty is None:
        return None
    for folder, version in progress.versions.items():
        stage, _, fingerprint = folder.partition("/")
        table = lake.open(stage, shard, fingerprint=fingerprint)
        if table is None or table.version != version:
            return None
    return progress.dirty


class ShardWriter:
    """Writes to the tables of one shard under its lease; opening it rolls back commits that were not recorded.

    Every method that writes raises `LeaseLost` once another writer may hold the shard. Read through `table`: its
    handles see what was written here. A method's `note` is recorded together with the version it makes. With `whole`,
    every step compares whole tables, whatever the record says.
    """

    def __init__(self, lake: Lake, shard: Shard, lease: Lease, *, whole: bool = False) -> None:
        self.lake = lake
        self.shard = shard
        self._lease = lease
        self._whole = whole
        self._tables: dict[str, Table | None] = {}
        self._fence = Fence(lake.objects, _key(shard), lease, remedy=f"run shard {shard} again")
        saved = None if self._fence.stored is None else _parsed(self._fence.stored)
        self._saved = saved or Progress()
        self._progress = self._saved if saved is not None else self._adopted()
        self.rolled_back: tuple[str, ...] = () if saved is None else tuple(self._roll_back())

    @property
    def progress(self) -> Progress:
        """The record as it will be after the next commit."""
        return self._progress

    @property
    def epoch(self) -> int:
        return self._lease.epoch

    @property
    def dirty(self) -> tuple[str, ...] | None:
        """Documents that a step must look at; None for all."""
        return None if self._whole else self._progress.dirty

    def check(self) -> None:
        """Raise `LeaseLost` if another writer may hold the shard by now."""
        self._fence.check()

    def update_progress(self, *, save: bool = True, **facts: Any) -> None:
        """Change the record; with `save`, write it if it differs from what is stored."""
        self._progress = self._progress.model_copy(update=facts)
        if save and self._progress != self._saved:
            self._save()

    def mark_dirty(self, doc_ids: Iterable[str] | None) -> None:
        """Add documents that later steps must look at; None adds all. Saved with the next commit."""
        dirty = None
        if doc_ids is not None and self._progress.dirty is not None:
            together = tuple(sorted({*self._progress.dirty, *doc_ids}))
            dirty = together if len(together) <= MAX_DIRTY_DOCUMENTS else None
        self.update_progress(save=False, dirty=dirty)

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
            self._fence.check()
            table = self.lake.ensure(stage, self.shard, schema, fingerprint=fingerprint)
            self._tables[table_folder(stage, fingerprint)] = table
            self._record_version(table_folder(stage, fingerprint), table.version)
        return table

    def overwrite(self, stage: str, schema: pa.Schema) -> Table:
        """An empty table of that schema as the next version; older versions stay readable."""
        self._fence.check()
        table = self.lake.overwrite(stage, self.shard, schema)
        self._tables[stage] = table
        self._record_version(stage, table.version)
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
        self._fence.check()
        folder = table_folder(stage, fingerprint)
        self.lake.drop(stage, self.shard, fingerprint=fingerprint)
        self._tables.pop(folder, None)
        self.update_progress(versions={name: at for name, at in self._progress.versions.items() if name != folder})

    def maintain(self, stage: str, work: Callable[[Table], None], *, fingerprint: str = "") -> None:
        """Let `work` index or compact the stage's table, which changes no row and may take several commits."""
        folder = table_folder(stage, fingerprint)
        self._record_version(folder, self._fence.maintain(self._existing(stage, fingerprint), work, self._named(stage)))

    def _commit(self, stage: str, fingerprint: str, operation: Callable[[Table], object], note: dict[str, Any]) -> None:
        version = self._fence.commit(self._existing(stage, fingerprint), operation, self._named(stage))
        self._record_version(table_folder(stage, fingerprint), version, **note)

    def _named(self, stage: str) -> str:
        return f"{stage} of shard {self.shard}"

    def _existing(self, stage: str, fingerprint: str) -> Table:
        table = self.table(stage, fingerprint)
        if table is None:
            raise LeaseLost(f"{stage} of shard {self.shard} is gone; run the shard again")
        return table

    def _record_version(self, folder: str, version: int, **note: Any) -> None:
        self.update_progress(versions={**self._progress.versions, folder: version}, **note)

    def _save(self) -> None:
        self._fence.save(self._progress.model_dump_json().encode())
        self._saved = self._progress

    def _adopted(self) -> Progress:
        """Return a first record: the tables as they are, with nothing known about them."""
        versions = {
            stage: table.version
            for stage in (RAW_DOCUMENTS, QUARANTINE, CHUNKS, SHARDS)
            if (table := self.table(stage)) is not None
        }
        return Progress(versions=versions)

    def _roll_back(self) -> Iterable[str]:
        """Roll every table back to its recorded version; yield the stages of those that had moved on."""
        folders = {RAW_DOCUMENTS, QUARANTINE, CHUNKS, SHARDS, *self._progress.versions}
        for folder in sorted(folders):
            stage, _, fingerprint = folder.partition("/")
            table = self.table(stage, fingerprint)
            saved = self._progress.versions.get(folder, _AS_CREATED)
            if table is None:
                if folder in self._progress.versions:  # it was removed; its rows are made again
                    self.update_progress(
                        dirty=None, versions={k: v for k, v in self._progress.versions.items() if k != folder}
                    )
                continue
            if table.version == saved:
                continue
            if not self._fence.restore(table, saved):
                self.update_progress(save=False, dirty=None)
            yield stage
            self._record_version(folder, table.version)


def _key(shard: Shard) -> str:
    return f"{PROGRESS}/{shard.table_name}.json"


def _parsed(data: bytes) -> Progress | None:
    try:
        return Progress.model_validate_json(data)
    except ValidationError:
        return None
