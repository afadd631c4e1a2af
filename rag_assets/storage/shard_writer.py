"""The only writer of a shard's tables. It holds the shard's lease and records every commit in the lake.

The progress record (``progress/<table>.json``) names the version of every table after the last commit, and the
documents on which the tables may still disagree. A run resumes from it and compares only what changed. Commits that are
not recorded, from a crashed or expired writer, are rolled back. `fence` detects other writers.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_assets.errors import LeaseLost
from rag_assets.storage.batches import batches
from rag_assets.storage.fence import Fence
from rag_assets.storage.lake import Lake, Table, replace_rows, table_folder
from rag_assets.storage.lease import Lease
from rag_assets.storage.schemas import CHUNKS, QUARANTINE, RAW_DOCUMENTS
from rag_serving.lake.shards import Shard
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import SHARDS

PROGRESS = "progress"

MAX_DIRTY_DOCUMENTS = 2_000
"""Most documents that a record names; for more, comparing whole tables is as fast."""
FILTER_VALUES = 2_000
"""Most values in one filter, which Lance parses as a whole."""
_AS_CREATED = 1


class Progress(BaseModel):
    """The progress record of a shard; all of it describes the tables at `versions`."""

    model_config = ConfigDict(frozen=True, extra="ignore", serialize_by_alias=True)

    versions: dict[str, int] = {}
    """Version of each table by its folder in the lake."""
    dirty: tuple[str, ...] | None = Field(default=None, validation_alias="touched", serialization_alias="touched")
    """Ids of documents on which the tables may disagree or that are unchecked; None: any document."""
    source_digest: str = ""
    source_root: str = ""
    """URI of the source that the documents were read from."""
    content_digest: str = ""
    chunker: str = ""
    fingerprint: str = ""


def read_progress(lake: Lake, shard: Shard) -> Progress | None:
    """Return the shard's record; None if it is missing or unreadable, so that whole tables are compared."""
    found = lake.objects.get(_key(shard))
    return None if found is None else _parsed(found.data)


def dirty_documents(lake: Lake, shard: Shard) -> Sequence[str] | None:
    """Return the ids of documents to check; None for all, or if the tables are not at the recorded versions."""
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
    """Writes to the tables of one shard under its lease. Opening it rolls back commits that were not recorded.

    Methods that write raise `LeaseLost` once another writer may hold the shard. Read through `table`: its handles see
    what was written here. A method's `note` updates fields of the record together with the new version. With `whole`,
    every step compares whole tables.
    """

    def __init__(self, lake: Lake, shard: Shard, lease: Lease, *, whole: bool = False) -> None:
        self.lake = lake
        self.shard = shard
        self.lease = lease
        self._whole = whole
        self._tables: dict[str, Table | None] = {}
        self._fence = Fence(lake.objects, _key(shard), lease, remedy=f"run shard {shard} again")
        saved = None if self._fence.stored is None else _parsed(self._fence.stored)
        self._saved = saved or Progress()
        self._progress = self._saved if saved is not None else self._adopted()
        self.rolled_back: tuple[str, ...] = () if saved is None else tuple(self._roll_back())

    @property
    def progress(self) -> Progress:
        """The record with the changes that the next commit saves."""
        return self._progress

    @property
    def dirty(self) -> tuple[str, ...] | None:
        """Ids of documents that a step must compare; None for all."""
        return None if self._whole else self._progress.dirty

    def update_progress(self, *, save: bool = True, **facts: Any) -> None:
        """Change fields of the record; with `save`, write it if it differs from the stored one."""
        self._progress = self._progress.model_copy(update=facts)
        if save and self._progress != self._saved:
            self._save()

    def mark_dirty(self, doc_ids: Iterable[str] | None) -> None:
        """Add documents that later steps must compare; None adds all. Saved with the next commit."""
        dirty = None
        if doc_ids is not None and self._progress.dirty is not None:
            together = tuple(sorted({*self._progress.dirty, *doc_ids}))
            dirty = together if len(together) <= MAX_DIRTY_DOCUMENTS else None
        self.update_progress(save=False, dirty=dirty)

    def table(self, stage: str, fingerprint: str = "") -> Table | None:
        """Return the stage's table; None before the stage first ran."""
        folder = table_folder(stage, fingerprint)
        if folder not in self._tables:
            self._tables[folder] = self.lake.open(stage, self.shard, fingerprint=fingerprint)
        return self._tables[folder]

    def ensure(self, stage: str, schema: pa.Schema, fingerprint: str = "") -> Table:
        """Return the stage's table; create it if it does not exist."""
        table = self.table(stage, fingerprint)
        if table is None:
            self._fence.check()
            table = self.lake.ensure(stage, self.shard, schema, fingerprint=fingerprint)
            self._tables[table_folder(stage, fingerprint)] = table
            self._record_version(table_folder(stage, fingerprint), table.version)
        return table

    def overwrite(self, stage: str, schema: pa.Schema) -> Table:
        """Make an empty table of that schema the next version; older versions stay readable."""
        self._fence.check()
        table = self.lake.overwrite(stage, self.shard, schema)
        self._tables[stage] = table
        self._record_version(stage, table.version)
        return table

    def append(self, stage: str, rows: pa.Table, *, fingerprint: str = "", **note: Any) -> None:
        """Add rows in one commit."""
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
        """Replace all rows of the owners in the stage's table by `rows`, in one commit.

        `fresh` promises that no owner has a row yet, so that a cheaper append is enough.
        """
        if fresh:
            self.append(stage, rows, **note)
        else:
            where = sql_in(owner, owners)
            self._commit(stage, "", lambda table: replace_rows(table, rows, key=key, where=where), note)

    def delete(self, stage: str, column: str, among: Sequence[str], *, fingerprint: str = "", **note: Any) -> None:
        """Delete the rows whose column has one of the values, in commits with a bounded filter."""
        for some in batches(among, FILTER_VALUES):
            where = sql_in(column, some)
            self._commit(stage, fingerprint, lambda table, where=where: table.delete(where), note)

    def update(self, stage: str, where: str, values: dict[str, Any], **note: Any) -> None:
        """Update columns of the matching rows in one commit."""
        self._commit(stage, "", lambda table: table.update(where=where, values=values), note)

    def drop(self, stage: str, fingerprint: str) -> None:
        """Drop the stage's table."""
        self._fence.check()
        folder = table_folder(stage, fingerprint)
        self.lake.drop(stage, self.shard, fingerprint=fingerprint)
        self._tables.pop(folder, None)
        self.update_progress(versions=self._versions_without(folder))

    def maintain(self, stage: str, work: Callable[[Table], None], *, fingerprint: str = "") -> None:
        """Let `work` index or compact the stage's table in any number of commits; it must not change rows."""
        folder = table_folder(stage, fingerprint)
        self._record_version(folder, self._fence.maintain(self._existing(stage, fingerprint), work, self._named(stage)))

    def _versions_without(self, folder: str) -> dict[str, int]:
        return {name: version for name, version in self._progress.versions.items() if name != folder}

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
        """Return a first record: the current versions of the tables, with every document dirty."""
        versions = {
            stage: table.version
            for stage in (RAW_DOCUMENTS, QUARANTINE, CHUNKS, SHARDS)
            if (table := self.table(stage)) is not None
        }
        return Progress(versions=versions)

    def _roll_back(self) -> Iterable[str]:
        """Roll every table back to its recorded version; yield the stages that had unrecorded commits."""
        folders = {RAW_DOCUMENTS, QUARANTINE, CHUNKS, SHARDS, *self._progress.versions}
        for folder in sorted(folders):
            stage, _, fingerprint = folder.partition("/")
            table = self.table(stage, fingerprint)
            saved = self._progress.versions.get(folder, _AS_CREATED)
            if table is None:
                if folder in self._progress.versions:  # it was removed: rebuild its rows
                    self.update_progress(dirty=None, versions=self._versions_without(folder))
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
