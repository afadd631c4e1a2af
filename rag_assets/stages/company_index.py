"""The company index: one wide table for each embedder over the published rows of all shards, for wide questions.

It is brought after the catalog shard by shard, each replaced in one commit, under a lease of its own. What it holds of
each shard is noted in a record that readers go by, so that it may lag behind without anybody seeing an old row: a shard
of which the record does not hold what is published is searched directly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rag_assets.storage.fence import Fence
from rag_assets.storage.lake import KEEP_VERSIONS, Lake, Log, columns, made_at, read, scan, small_fragments
from rag_assets.storage.lease import Lease, acquire_lease
from rag_assets.storage.search_indexes import (
    UNINDEXED_ROWS,
    index_text,
    index_vectors,
    table_fingerprint,
    unindexed_rows,
)
from rag_serving.errors import LakeCorrupt
from rag_serving.lake.catalog import Snapshot
from rag_serving.lake.catalog_entry import CatalogEntry
from rag_serving.lake.company_index import (
    COMPANY,
    SHARD_COLUMN,
    CompanyRecord,
    IndexedShard,
    company_schema,
    read_record,
    record_key,
)
from rag_serving.lake.embedders.base import read_manifest
from rag_serving.lake.lance_errors import LANCE_ERRORS
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import SHARDS, TABLE_FORMAT

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager

    from lancedb.table import Table

_BATCH_ROWS = 100_000
"""Rows of shards that are new to the index and come in with one commit, but for a larger shard."""
_FILTER_VALUES = 2_000
_NOTED_AT_ONCE = 200
"""Shards with nothing to write whose new versions are noted together."""
_REMOVED_AT_ONCE = 20
"""Versions that no reader can be on, from which on they are removed."""
_NAME = "the company index"
_MOST_SEGMENTS = 8
_SMALL_FRAGMENTS = 40
_FACTS = ("chunk_id", "ordinal", "path", "title", "start", "end", "content_hash", "etag", "modified_at", "stale")
"""Columns by which a row of the index is compared with the shard's."""


@dataclass(frozen=True, slots=True)
class CompanyTable:
    """Owner of an embedder's company table in the lake."""

    fingerprint: str

    @property
    def table_name(self) -> str:
        return self.fingerprint


@dataclass(frozen=True, slots=True)
class _Lock:
    """What the lease of the company index is of. Tables of shards have a dot in their names."""

    table_name: str = "company_index"

    def __str__(self) -> str:
        return self.table_name


@dataclass(slots=True)
class CompanyReport:
    """What a run did; `shards`, `rows` and `unindexed_rows` describe the tables afterwards."""

    added: int = 0
    replaced: int = 0
    noted: int = 0
    """Shards whose rows were right already, but of an older version."""
    removed: int = 0
    skipped: int = 0
    """Shards whose published version could not be read: published anew meanwhile, or of an older form."""
    rows_written: int = 0
    rows_deleted: int = 0
    shards: int = 0
    rows: int = 0
    unindexed_rows: int = 0
    seconds: float = 0.0
    versions: dict[str, int] = field(default_factory=dict[str, int])
    """Version of each table, by fingerprint."""


def stale_shards(snapshot: Snapshot) -> list[str]:
    """Keys of shards of which the company index differs from what is published, or that are no longer published."""
    published = {shard.key: entry for shard, entry in snapshot.entries.items()}
    behind = {
        key
        for key, entry in published.items()
        if _can_be_indexed(entry) and not _is_indexed(snapshot.companies.get(entry.current.fingerprint), entry)
    }
    for fingerprint, record in snapshot.companies.items():
        behind |= {key for key in record.shards if _of(published.get(key)) != fingerprint}
    return sorted(behind)


def _of(entry: CatalogEntry | None) -> str | None:
    return None if entry is None else entry.current.fingerprint


def _can_be_indexed(entry: CatalogEntry) -> bool:
    return entry.current.table_format == TABLE_FORMAT


def _is_indexed(record: CompanyRecord | None, entry: CatalogEntry) -> bool:
    return record is not None and record.shards.get(entry.shard.key) == _indexed(entry)


def _indexed(entry: CatalogEntry) -> IndexedShard:
    current = entry.current
    return IndexedShard(content_digest=current.content_digest, version=current.version, chunks=current.chunks)


def acquire_company_index(lake: Lake, holder: str, *, seconds: float, wait: float) -> AbstractContextManager[Lease]:
    """The lease of the company index for the length of a block; raises `ShardLocked`."""
    return acquire_lease(lake.objects, _Lock(), holder, seconds=seconds, wait=wait)


def sync_company_index(
    lake: Lake, lease: Lease, snapshot: Snapshot, *, vector_index_rows: int, pin_seconds: float, log: Log
) -> CompanyReport:
    """Bring the company tables to what the snapshot says is published.

    Every commit is recorded as it is made, so that a run that is killed goes on where it was. Raises `LeaseLost`,
    `LakeUnavailable`.
    """
    started = time.monotonic()
    report = CompanyReport()
    wanted: dict[str, list[CatalogEntry]] = {fingerprint: [] for fingerprint in snapshot.companies}
    for _, entry in sorted(snapshot.entries.items()):
        if _can_be_indexed(entry):
            wanted.setdefault(entry.current.fingerprint, []).append(entry)
        else:
            report.skipped += 1
    for fingerprint, entries in sorted(wanted.items()):
        writer = _CompanyWriter(lake, lease, fingerprint, log)
        if not entries:
            writer.withdraw()
            continue
        writer.bring_to(entries, report)
        writer.keep_indexes(vector_index_rows, timedelta(seconds=pin_seconds))
        report.shards += len(writer.record.shards)
        report.rows += writer.table.count_rows()
        report.unindexed_rows = max(report.unindexed_rows, unindexed_rows(writer.table))
        report.versions[fingerprint] = writer.record.version
    report.seconds = time.monotonic() - started
    return report


class _CompanyWriter:
    """Writes to one company table; opening it rolls back commits that a dead or sleeping writer did not record."""

    def __init__(self, lake: Lake, lease: Lease, fingerprint: str, log: Log) -> None:
        self._lake = lake
        self._epoch = lease.epoch
        self._log = log
        self._owner = CompanyTable(fingerprint)
        self._changed = False
        self._unsaved = 0
        self._fence = Fence(lake.objects, record_key(fingerprint), lease, remedy="materialize company_index again")
        record: CompanyRecord | None = None
        if self._fence.stored is not None:
            try:
                record = read_record(fingerprint, self._fence.stored)
            except LakeCorrupt as error:
                log(f"the company index is made anew: {error}")
        table = lake.open(COMPANY, self._owner)
        if record is None or table is None or not self._as_recorded(table, record):
            self.table, self.record = self._blank(there=table is not None)
            self._save(self.table.version)
        else:
            self.table, self.record = table, record
            if table.version != record.version or lease.taken_over:
                # Saved in any case after a takeover: a sleeper's conditional write of the record then fails.
                self._save(table.version)

    def _as_recorded(self, table: Table, record: CompanyRecord) -> bool:
        """Whether the table is at the recorded version, or could be brought back to it."""
        if table.version == record.version:
            return True
        restored = self._fence.restore(table, record.version)
        if restored:
            self._log(f"rolled back unrecorded writes to the company index, to version {record.version}")
        return restored

    def _blank(self, *, there: bool) -> tuple[Table, CompanyRecord]:
        """An empty table, in place of the one that is there, with its record."""
        self._fence.check()
        fingerprint = self._owner.fingerprint
        identity = read_manifest(self._lake.objects, fingerprint)
        if identity is None:
            raise LakeCorrupt(f"the lake holds no embedder {fingerprint}, of which vectors are published; export it")
        schema = company_schema(identity.dimensions, fingerprint)
        table = (self._lake.overwrite if there else self._lake.ensure)(COMPANY, self._owner, schema)
        return table, CompanyRecord(
            format=1, fingerprint=fingerprint, version=table.version, epoch=self._epoch, shards={}
        )

    def withdraw(self) -> None:
        """No shard has vectors of this embedder any more: the record goes, and with it the table for readers."""
        self._fence.check()
        self._lake.objects.delete(record_key(self._owner.fingerprint))

    def bring_to(self, entries: Sequence[CatalogEntry], report: CompanyReport) -> None:
        """Make the table hold the published rows of exactly those shards."""
        published = {entry.shard.key: entry for entry in entries}
        gone = sorted(self.record.shards.keys() - published.keys())
        if gone:
            before = self.table.count_rows()
            for start in range(0, len(gone), _FILTER_VALUES):
                keys = gone[start : start + _FILTER_VALUES]
                where = sql_in(SHARD_COLUMN, keys)
                self._commit(lambda table, where=where: table.delete(where), {}, without=keys)
            report.removed += len(gone)
            report.rows_deleted += before - self.table.count_rows()
        known: list[CatalogEntry] = []
        fresh: list[CatalogEntry] = []
        for key, entry in published.items():
            indexed = self.record.shards.get(key)
            if indexed != _indexed(entry):
                (known if indexed is not None and indexed.chunks else fresh).append(entry)
        self._add(fresh, report)
        self._replace(known, report)

    def _add(self, entries: Sequence[CatalogEntry], report: CompanyReport) -> None:
        """Bring in shards of which the table has no row."""
        done = 0
        for group in _groups(entries):
            opened = [(entry, table) for entry in group if (table := self._published(entry, report)) is not None]
            if not opened:
                continue
            rows = sum(table.count_rows() for _, table in opened)
            noted = {entry.shard.key: _indexed(entry) for entry, _ in opened}
            if rows:
                reader = pa.RecordBatchReader.from_batches(self._schema, self._rows(opened))
                self._commit(lambda table, reader=reader: table.add(reader), noted)
            else:
                self._note(noted)
            done += len(opened)
            report.added += len(opened)
            report.rows_written += rows
            self._log(f"company index: {done} of {len(entries)} new shards, {report.rows_written} rows written")
        self._save_if_noted()

    def _replace(self, entries: Sequence[CatalogEntry], report: CompanyReport) -> None:
        """Bring shards of which the table has rows to what is published of them."""
        for number, entry in enumerate(entries, start=1):
            table = self._published(entry, report)
            if table is None:
                continue
            key = entry.shard.key
            where = sql_in(SHARD_COLUMN, [key])
            wanted, have = _facts(table, None), _facts(self.table, where)
            changed = [chunk_id for chunk_id, facts in wanted.items() if have.get(chunk_id) != facts]
            gone = [chunk_id for chunk_id in have if chunk_id not in wanted]
            noted = {key: _indexed(entry)}
            if not changed and not gone:
                report.noted += 1
                self._note(noted)
                continue
            few = len(changed) <= _FILTER_VALUES and len(gone) <= _FILTER_VALUES
            rows = self._rows([(entry, table)], sql_in("chunk_id", changed) if few else None)
            self._merge(rows, sql_in("chunk_id", gone) if few else where, noted, only_deletes=few and not changed)
            report.replaced += 1
            report.rows_written += len(changed)
            report.rows_deleted += len(gone)
            self._log(f"company index: {number} of {len(entries)} changed shards")
        self._save_if_noted()

    def _merge(
        self, rows: Iterable[pa.RecordBatch], doomed: str, noted: Mapping[str, IndexedShard], *, only_deletes: bool
    ) -> None:
        """Put rows in by their ids, and take out those that match `doomed` and are not among them, in one commit."""
        if only_deletes:
            self._commit(lambda table: table.delete(doomed), noted)
            return
        source = pa.Table.from_batches(list(rows), schema=self._schema)

        def merge(table: Table) -> None:
            (
                table.merge_insert("chunk_id")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(doomed)
                .use_index(False)  # a scalar index on the key would let concurrent merges duplicate rows
                .execute(source)
            )

        self._commit(merge, noted)

    @property
    def _schema(self) -> pa.Schema:
        return self.table.schema

    def _published(self, entry: CatalogEntry, report: CompanyReport) -> Table | None:
        """The shard's table at its published version; None if that is gone, so that the next run sees to it."""
        table = self._lake.open(SHARDS, entry.shard)
        try:
            if table is not None:
                table.checkout(entry.current.version)
                if table_fingerprint(table) == self._owner.fingerprint:
                    return table
        except LANCE_ERRORS:  # cleaned up after a newer one was published
            pass
        report.skipped += 1
        self._log(f"company index: {entry.shard} is left out, version {entry.current.version} cannot be read")
        return None

    def _rows(self, opened: Sequence[tuple[CatalogEntry, Table]], where: str | None = None) -> Iterator[pa.RecordBatch]:
        names = [name for name in self._schema.names if name != SHARD_COLUMN]
        for entry, table in opened:
            for batch in scan(table, names, where=where):
                shard = pa.array([entry.shard.key] * batch.num_rows, pa.string())
                yield pa.RecordBatch.from_arrays([*batch.select(names).columns, shard], schema=self._schema)

    def keep_indexes(self, vector_index_rows: int, pin: timedelta) -> None:
        """Give the table the indexes that are due, fold in what lies outside, and remove versions without readers."""
        table = self.table
        rows = table.count_rows()
        if not rows:
            return
        indexes = {index.columns[0]: index for index in table.list_indices()}
        due: dict[str, Callable[[Table], None]] = {"text": index_text}
        if rows >= vector_index_rows:
            due |= {"vector": index_vectors, SHARD_COLUMN: _index_shards}
        for column, build in due.items():
            if column not in indexes or (indexes[column].num_segments or 0) > _MOST_SEGMENTS:
                self._maintain(build)
        if unindexed_rows(table) > UNINDEXED_ROWS or small_fragments(table) > _SMALL_FRAGMENTS:
            self._maintain(lambda table: table.optimize(cleanup_older_than=KEEP_VERSIONS))
        if self._changed:
            cutoff = datetime.now(UTC) - pin
            # What the record names is the newest version, and readers may be on those of the last hour.
            if sum(made_at(version) < cutoff for version in table.list_versions()[:-1]) > _REMOVED_AT_ONCE:
                self._maintain(lambda table: table.optimize(cleanup_older_than=pin))

    def _maintain(self, work: Callable[[Table], object]) -> None:
        """Index or compact, which changes no row and may take several commits."""
        version = self._fence.maintain(self.table, work, _NAME)
        if version != self.record.version:
            self._save(version)

    def _commit(
        self, operation: Callable[[Table], object], noted: Mapping[str, IndexedShard], *, without: Sequence[str] = ()
    ) -> None:
        """Make one commit to the table, and record it."""
        version = self._fence.commit(self.table, operation, _NAME)
        shards = {key: indexed for key, indexed in self.record.shards.items() if key not in set(without)}
        self.record = self.record.model_copy(update={"shards": {**shards, **noted}})
        self._save(version)

    def _note(self, noted: Mapping[str, IndexedShard]) -> None:
        """Have the record say something that the table holds already; saved after some of them."""
        self.record = self.record.model_copy(update={"shards": {**self.record.shards, **noted}})
        self._unsaved += 1
        if self._unsaved >= _NOTED_AT_ONCE:
            self._save(self.table.version)

    def _save_if_noted(self) -> None:
        if self._unsaved:
            self._save(self.table.version)

    def _save(self, version: int) -> None:
        self.record = self.record.model_copy(update={"version": version, "epoch": self._epoch})
        self._fence.save(self.record.model_dump_json().encode())
        self._unsaved = 0
        self._changed = True


def _groups(entries: Sequence[CatalogEntry]) -> Generator[list[CatalogEntry]]:
    """Shards to bring in with one commit each time."""
    group: list[CatalogEntry] = []
    rows = 0
    for entry in entries:
        if group and rows + entry.current.chunks > _BATCH_ROWS:
            yield group
            group, rows = [], 0
        group.append(entry)
        rows += entry.current.chunks
    if group:
        yield group


def _facts(table: Table, where: str | None) -> dict[str, tuple[Any, ...]]:
    rows = read(table, list(_FACTS), where=where)
    return {facts[0]: facts for facts in columns(rows, *_FACTS)}


def _index_shards(table: Table) -> None:
    from lancedb.index import Bitmap

    table.create_index(SHARD_COLUMN, config=Bitmap(), replace=True)
