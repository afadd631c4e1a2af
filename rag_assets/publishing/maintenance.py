"""Maintain a shard's tables: compact small files, rebuild fragmented indexes, remove versions without readers.

Maintenance holds the shard's lease, so it never overlaps with a run. It keeps tagged versions (see `retention`).
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from rag_assets.errors import ShardLocked
from rag_assets.evaluation.verdict import Quality
from rag_assets.publishing.publish import publish
from rag_assets.publishing.retention import Retention, drop_old_tags, kept_versions
from rag_assets.storage.id_indexes import ID_COLUMNS, ensure_id_indexes, index_ids
from rag_assets.storage.lake import KEEP_ALL_VERSIONS, Log, Table, made_at, small_fragments
from rag_assets.storage.schemas import EMBEDDINGS
from rag_assets.storage.search_indexes import index_vectors, index_words, unindexed_rows
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.errors import RagError
from rag_serving.lake.catalog_entry import read_catalog_entry
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS

_MOST_SEGMENTS = 8
"""An index with more segments is rebuilt: every search pays for each segment."""
_MARGIN = timedelta(minutes=10)


@dataclass(slots=True)
class MaintenanceReport:
    """What maintenance did to one or more shards."""

    shards: int = 0
    tables: int = 0
    indexes_rebuilt: int = 0
    versions_removed: int = 0
    skipped: list[str] = field(default_factory=list[str])
    """Keys of shards that another writer held."""
    failed: dict[str, str] = field(default_factory=dict[str, str])


def maintain_shards(
    shards: Iterable[Shard],
    writer: Callable[[Shard], AbstractContextManager[ShardWriter]],
    identity: EmbedderIdentity,
    retention: Retention,
    *,
    run_id: str,
    log: Log,
    quality: Quality | None = None,
) -> MaintenanceReport:
    """Maintain the shards one after another; a shard that fails or is locked does not stop the others."""
    report = MaintenanceReport()
    for shard in shards:
        try:
            with writer(shard) as shard_writer:
                maintain_shard(shard_writer, identity, retention, report, run_id=run_id, quality=quality)
        except ShardLocked:
            report.skipped.append(shard.key)
            log(f"{shard}: skipped, another writer holds it")
        except RagError as error:
            report.failed[shard.key] = f"{type(error).__name__}: {error}"
            log(f"{shard}: {report.failed[shard.key]}")
        else:
            report.shards += 1
    return report


def maintain_shard(
    writer: ShardWriter,
    identity: EmbedderIdentity,
    retention: Retention,
    report: MaintenanceReport,
    *,
    run_id: str,
    quality: Quality | None = None,
) -> None:
    """Maintain the tables of one shard; if the search table's head was published, publish the maintained version.

    Maintenance changes no row, so of `quality` only the index recall is checked: nothing is asked or embedded.
    """
    found = read_catalog_entry(writer.lake.objects, writer.shard)
    head = writer.table(SHARDS)
    as_published = False
    if found is not None and head is not None:
        entry, built = found[0], (head.version, writer.progress.source_digest)
        as_published = entry.hold is None and (entry.current.version, entry.current.source_digest) == built
        drop_old_tags(head, entry, retention)
    for folder in sorted(writer.progress.versions):
        stage, _, fingerprint = folder.partition("/")
        if stage == EMBEDDINGS and fingerprint != identity.fingerprint:
            writer.drop(stage, fingerprint)  # of a model that is no longer configured
            continue
        table = writer.table(stage, fingerprint)
        if table is not None:
            _maintain(writer, table, stage, fingerprint, retention.pin, report)
    if as_published:
        indexes_only = None if quality is None else replace(quality, embedder=None, source=None)
        publish(writer, identity, retention, run_id=run_id, quality=indexes_only)


def _maintain(
    writer: ShardWriter,
    table: Table,
    stage: str,
    fingerprint: str,
    pin: timedelta,
    report: MaintenanceReport,
) -> None:
    report.tables += 1
    versions = table.list_versions()
    report.indexes_rebuilt += ensure_id_indexes(writer, stage, fingerprint)
    lookups = {column: partial(index_ids, column=column) for column in ID_COLUMNS[stage]}
    for column, build in {"text": index_words, "vector": index_vectors, **lookups}.items():
        if _segments(table, column) > _MOST_SEGMENTS:
            writer.maintain(stage, build, fingerprint=fingerprint)
            report.indexes_rebuilt += 1
    older_than = _removable_age(table, versions, pin)
    cutoff = datetime.now(UTC) - older_than
    removable = sum(made_at(version) < cutoff for version in versions[:-1])
    if removable or small_fragments(table) > 1 or unindexed_rows(table):
        # Record the new version before removing old ones: the next writer rolls back to the recorded version.
        writer.maintain(
            stage, lambda table: table.optimize(cleanup_older_than=KEEP_ALL_VERSIONS), fingerprint=fingerprint
        )
        # Only the lease holder writes, so a file that belongs to no version was left by a dead writer.
        writer.maintain(
            stage,
            lambda table: table.optimize(cleanup_older_than=older_than, delete_unverified=True),
            fingerprint=fingerprint,
        )
    left = {version["version"] for version in table.list_versions()}
    report.versions_removed += sum(version["version"] not in left for version in versions)


def _removable_age(table: Table, versions: list[dict[str, Any]], pin: timedelta) -> timedelta:
    """Return the age above which versions can be removed: no reader uses them, and none of them is tagged.

    Lance refuses the whole cleanup if a version above that age is tagged.
    """
    tagged = kept_versions(table)
    oldest = min((made_at(version) for version in versions if version["version"] in tagged), default=None)
    return max(pin, datetime.now(UTC) - oldest + _MARGIN) if oldest is not None else pin


def _segments(table: Table, column: str) -> int:
    return max((index.num_segments or 0 for index in table.list_indices() if index.columns == [column]), default=0)
