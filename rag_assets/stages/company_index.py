"""The company index: one table per embedder with the published rows of all shards, for questions over many shards.

It is updated one shard per commit, under its own lease. A record lists which published version of each shard it
contains. Readers search shards whose copy is out of date directly, so the index may lag behind.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from rag_assets.storage.batches import batches
from rag_assets.storage.fence import Fence
from rag_assets.storage.lake import (
    KEEP_ALL_VERSIONS,
    Lake,
    Log,
    Table,
    columns,
    made_at,
    read,
    replace_rows,
    scan,
    small_fragments,
)
from rag_assets.storage.lease import Lease, acquire_lease
from rag_assets.storage.search_indexes import (
    UNINDEXED_ROWS,
    index_vectors,
    index_words,
    table_fingerprint,
    unindexed_rows,
)
from rag_assets.storage.shard_writer import FILTER_VALUES
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
from rag_serving.lake.search.statistics import STATISTICS, WordStatistics
from rag_serving.lake.sql import sql_in
from rag_serving.lake.tables import SHARDS, TABLE_FORMAT

_BATCH_ROWS = 100_000
"""Most rows of new shards in one commit, unless a single shard is larger."""
_NOTED_AT_ONCE = 200
"""Shards without changed rows whose new versions are recorded together."""
_REMOVED_AT_ONCE = 20
"""Versions without readers are removed once there are more than these."""
_NAME = "the company index"
_MOST_SEGMENTS = 8
_SAME_STATISTICS = 0.05
"""Share of rows that may come or go before the words are counted again."""
_SMALL_FRAGMENTS = 40
_FACTS = (
    *("chunk_id", "ordinal", "source", "path", "title", "table_header", "language", "start", "end", "content_hash"),
    *("etag", "modified_at", "stale"),
)
"""Columns by which a row of the index is compared with the shard's row."""


@dataclass(frozen=True, slots=True)
class CompanyTable:
    """A name for `TableOwner`: a fingerprint for one embedder's table, or `company_index` for the lease of all."""

    table_name: str

    def __str__(self) -> str:
        return self.table_name


_LEASED = CompanyTable("company_index")  # no shard has this name: their table names contain a dot


@dataclass(slots=True)
class CompanyReport:
    """What a run did; `shards`, `rows` and `unindexed_rows` describe the tables afterwards."""

    added: int = 0
    replaced: int = 0
    noted: int = 0
    """Shards with a new version but unchanged rows."""
    removed: int = 0
    skipped: int = 0
    """Shards whose published version could not be read: it was just replaced, or has an older table format."""
    rows_written: int = 0
    rows_deleted: int = 0
    shards: int = 0
    rows: int = 0
    unindexed_rows: int = 0
    seconds: float = 0.0
    versions: dict[str, int] = field(default_factory=dict[str, int])
    """Version of each table by fingerprint."""


def stale_shards(snapshot: Snapshot) -> list[str]:
    """Return the keys of shards whose copy in the company index differs from the published version."""
    published = {shard.key: entry for shard, entry in snapshot.entries.items()}
    behind = {
        key
        for key, entry in published.items()
        if _can_be_indexed(entry) and not _is_indexed(snapshot.companies.get(entry.current.fingerprint), entry)
    }
    for fingerprint, record in snapshot.companies.items():
        current = {key for key, entry in published.items() if entry.current.fingerprint == fingerprint}
        behind |= record.shards.keys() - current
    return sorted(behind)


def _can_be_indexed(entry: CatalogEntry) -> bool:
    return entry.current.table_format == TABLE_FORMAT


def _is_indexed(record: CompanyRecord | None, entry: CatalogEntry) -> bool:
    return record is not None and record.shards.get(entry.shard.key) == _indexed(entry)


def _indexed(entry: CatalogEntry) -> IndexedShard:
    current = entry.current
    return IndexedShard(content_digest=current.content_digest, version=current.version, chunks=current.chunks)


def acquire_company_index(lake: Lake, holder: str, *, seconds: float, wait: float) -> AbstractContextManager[Lease]:
    """Hold the lease of the company index for the length of a block; raise `ShardLocked` after `wait` seconds."""
    return acquire_lease(lake.objects, _LEASED, holder, seconds=seconds, wait=wait)


def sync_company_index(
    lake: Lake, lease: Lease, snapshot: Snapshot, *, vector_index_rows: int, pin_seconds: float, log: Log
) -> CompanyReport:
    """Update the company tables to match the published versions in the snapshot.

    Every commit is recorded, so that the next run continues after a crash. Raises `LeaseLost` and `LakeUnavailable`.
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
        writer.count_words()
        report.shards += len(writer.record.shards)
        report.rows += writer.table.count_rows()
        report.unindexed_rows = max(report.unindexed_rows, unindexed_rows(writer.table))
        report.versions[fingerprint] = writer.record.version
    report.seconds = time.monotonic() - started
    return report


class _CompanyWriter:
    """Writes to one company table. Opening it rolls back commits that were not recorded."""

    def __init__(self, lake: Lake, lease: Lease, fingerprint: str, log: Log) -> None:
        self._lake = lake
        self._epoch = lease.epoch
        self._fingerprint = fingerprint
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
                log(f"rebuilding the company index: {error}")
        if record is not None and record.table_format != TABLE_FORMAT:
            log(f"rebuilding the company index in table format {TABLE_FORMAT}")
            record = None
        table = lake.open(COMPANY, self._owner)
        if record is None or table is None or not self._as_recorded(table, record):
            self.table, self.record = self._blank(there=table is not None)
            self._save(self.table.version)
        else:
            self.table, self.record = table, record
            if table.version != record.version or lease.taken_over:
                # Always save after a takeover: it makes a sleeping writer's conditional write of the record fail.
                self._save(table.version)

    def _as_recorded(self, table: Table, record: CompanyRecord) -> bool:
        """Roll the table back to the recorded version if needed; return whether it is at that version."""
        if table.version == record.version:
            return True
        restored = self._fence.restore(table, record.version)
        if restored:
            self._log(f"rolled back unrecorded writes to the company index, to version {record.version}")
        return restored

    def _blank(self, *, there: bool) -> tuple[Table, CompanyRecord]:
        """Create an empty table, or overwrite the existing one; return it with its record."""
        self._fence.check()
        identity = read_manifest(self._lake.objects, self._fingerprint)
        if identity is None:
            raise LakeCorrupt(
                f"vectors of embedder {self._fingerprint} are published, but the lake does not contain it; export it"
            )
        schema = company_schema(identity.dimensions, self._fingerprint)
        table = (self._lake.overwrite if there else self._lake.ensure)(COMPANY, self._owner, schema)
        return table, CompanyRecord(
            format=1,
            fingerprint=self._fingerprint,
            version=table.version,
            epoch=self._epoch,
            table_format=TABLE_FORMAT,
            shards={},
        )

    def withdraw(self) -> None:
        """Delete the record, which hides the table from readers: no shard has vectors of this embedder any more."""
        self._fence.check()
        self._lake.objects.delete(record_key(self._fingerprint))

    def bring_to(self, entries: Sequence[CatalogEntry], report: CompanyReport) -> None:
        """Make the table hold the published rows of exactly those shards."""
        published = {entry.shard.key: entry for entry in entries}
        gone = sorted(self.record.shards.keys() - published.keys())
        if gone:
            before = self.table.count_rows()
            for keys in batches(gone, FILTER_VALUES):
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
        """Add shards that have no rows in the table."""
        done = 0
        for group in batches(entries, len(entries), weigh=_chunks, most_weight=_BATCH_ROWS):
            opened = [(entry, table) for entry in group if (table := self._published(entry, report)) is not None]
            if not opened:
                continue
            rows = sum(table.count_rows() for _, table in opened)
            noted = {entry.shard.key: _indexed(entry) for entry, _ in opened}
            if rows:
                reader = pa.RecordBatchReader.from_batches(self.table.schema, self._rows(opened))
                self._commit(lambda table, reader=reader: table.add(reader), noted)
            else:
                self._note(noted)
            done += len(opened)
            report.added += len(opened)
            report.rows_written += rows
            self._log(f"company index: {done} of {len(entries)} new shards, {report.rows_written} rows written")
        self._save_if_noted()

    def _replace(self, entries: Sequence[CatalogEntry], report: CompanyReport) -> None:
        """Update shards that have rows in the table."""
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
            few = len(changed) <= FILTER_VALUES and len(gone) <= FILTER_VALUES
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
        """Upsert the rows and delete all others that match `doomed`, in one commit."""
        if only_deletes:
            self._commit(lambda table: table.delete(doomed), noted)
            return
        source = pa.Table.from_batches(list(rows), schema=self.table.schema)
        self._commit(lambda table: replace_rows(table, source, key="chunk_id", where=doomed), noted)

    def _published(self, entry: CatalogEntry, report: CompanyReport) -> Table | None:
        """Open the shard's table at its published version; None if it cannot be read, for the next run to retry."""
        table = self._lake.open(SHARDS, entry.shard)
        try:
            if table is not None:
                table.checkout(entry.current.version)
                if table_fingerprint(table) == self._fingerprint:
                    return table
        except LANCE_ERRORS:  # cleaned up after a newer version was published
            pass
        report.skipped += 1
        self._log(f"company index: skipped {entry.shard}, whose version {entry.current.version} cannot be read")
        return None

    def _rows(self, opened: Sequence[tuple[CatalogEntry, Table]], where: str | None = None) -> Iterator[pa.RecordBatch]:
        schema = self.table.schema
        names = [name for name in schema.names if name != SHARD_COLUMN]
        for entry, table in opened:
            for batch in scan(table, names, where=where):
                shard = pa.array([entry.shard.key] * batch.num_rows, pa.string())
                yield pa.RecordBatch.from_arrays([*batch.select(names).columns, shard], schema=schema)

    def count_words(self) -> None:
        """Store the word statistics unless they were counted over about as many rows."""
        key = f"{STATISTICS}/{self._fingerprint}.npz"
        rows = self.table.count_rows()
        stored = self._lake.objects.get(key)
        try:
            counted = None if stored is None else WordStatistics.from_bytes(stored.data).rows
        except LakeCorrupt as error:
            self._log(f"counting again: {error}")
            counted = None
        if counted is not None and abs(counted - rows) <= _SAME_STATISTICS * rows:
            return
        self._log(f"company index: counting the words of {rows} rows")
        statistics = WordStatistics.of(scan(self.table, ["words"]))
        self._lake.objects.put(key, statistics.to_bytes())

    def keep_indexes(self, vector_index_rows: int, pin: timedelta) -> None:
        """Create missing indexes, add unindexed rows to them, and remove versions without readers."""
        table = self.table
        rows = table.count_rows()
        if not rows:
            return
        indexes = {index.columns[0]: index for index in table.list_indices()}
        due: dict[str, Callable[[Table], None]] = {"words": index_words}
        if rows >= vector_index_rows:
            due |= {"vector": index_vectors, SHARD_COLUMN: _index_shards}
        for column, build in due.items():
            if column not in indexes or (indexes[column].num_segments or 0) > _MOST_SEGMENTS:
                self._maintain(build)
        if unindexed_rows(table) > UNINDEXED_ROWS or small_fragments(table) > _SMALL_FRAGMENTS:
            self._maintain(lambda table: table.optimize(cleanup_older_than=KEEP_ALL_VERSIONS))
        if self._changed:
            cutoff = datetime.now(UTC) - pin
            # The record names the newest version; readers may use any that is younger than `pin`.
            if sum(made_at(version) < cutoff for version in table.list_versions()[:-1]) > _REMOVED_AT_ONCE:
                self._maintain(lambda table: table.optimize(cleanup_older_than=pin))

    def _maintain(self, work: Callable[[Table], object]) -> None:
        """Index or compact the table, which changes no row."""
        version = self._fence.maintain(self.table, work, _NAME)
        if version != self.record.version:
            self._save(version)

    def _commit(
        self, operation: Callable[[Table], object], noted: Mapping[str, IndexedShard], *, without: Sequence[str] = ()
    ) -> None:
        """Make one commit to the table and record it."""
        version = self._fence.commit(self.table, operation, _NAME)
        shards = {key: indexed for key, indexed in self.record.shards.items() if key not in set(without)}
        self.record = self.record.model_copy(update={"shards": {**shards, **noted}})
        self._save(version)

    def _note(self, noted: Mapping[str, IndexedShard]) -> None:
        """Record versions whose rows the table already holds; saved in batches."""
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


def _chunks(entry: CatalogEntry) -> int:
    return entry.current.chunks


def _facts(table: Table, where: str | None) -> dict[str, tuple[Any, ...]]:
    rows = read(table, list(_FACTS), where=where)
    return {facts[0]: facts for facts in columns(rows, *_FACTS)}


def _index_shards(table: Table) -> None:
    from lancedb.index import Bitmap

    table.create_index(SHARD_COLUMN, config=Bitmap(), replace=True)
