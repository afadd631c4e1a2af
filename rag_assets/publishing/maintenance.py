"""Upkeep of a shard's tables: compact small files, rebuild worn indexes, and clean up what nobody can read any more.

Runs under the shard's lease like any writer, so that it never meets a run. A reader may go on with a version for a
stated time after its successor was published; what it may be on is tagged, and what is tagged stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from rag_assets.errors import ShardLocked
from rag_assets.evaluation.verdict import Quality
from rag_assets.publishing.publish import publish
from rag_assets.publishing.retention import drop_old_tags, kept_versions
from rag_assets.storage.id_indexes import ID_COLUMNS, ensure_id_indexes, index_ids
from rag_assets.storage.lake import KEEP_VERSIONS, Log, made_at, small_fragments
from rag_assets.storage.schemas import EMBEDDINGS
from rag_assets.storage.search_indexes import index_text, index_vectors, unindexed_rows
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.errors import RagError
from rag_serving.lake.catalog_entry import read_catalog_entry
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS

if TYPE_CHECKING:
    from lancedb.table import Table

_MOST_SEGMENTS = 8
"""Segments of an index from which it is built anew: each costs every search something."""
_MARGIN = timedelta(minutes=10)


@dataclass(slots=True)
class MaintenanceReport:
    """What the upkeep of one shard, or of many, did."""

    shards: int = 0
    tables: int = 0
    indexes_rebuilt: int = 0
    versions_removed: int = 0
    skipped: list[str] = field(default_factory=list[str])
    """Shards left alone because a run was on them."""
    failed: dict[str, str] = field(default_factory=dict[str, str])


def maintain_shards(
    shards: Iterable[Shard],
    writer: Callable[[Shard], AbstractContextManager[ShardWriter]],
    identity: EmbedderIdentity,
    *,
    run_id: str,
    keep: int,
    pin_seconds: float,
    log: Log,
    quality: Quality | None = None,
) -> MaintenanceReport:
    """Keep up the tables of the shards, one after the other; one that fails or is busy does not stop the others."""
    report = MaintenanceReport()
    for shard in shards:
        try:
            with writer(shard) as shard_writer:
                maintain_shard(
                    shard_writer, identity, report, run_id=run_id, keep=keep, pin_seconds=pin_seconds, quality=quality
                )
        except ShardLocked:
            report.skipped.append(shard.key)
            log(f"{shard}: a run is on it; left for the next time")
        except RagError as error:
            report.failed[shard.key] = f"{type(error).__name__}: {error}"
            log(f"{shard}: {report.failed[shard.key]}")
        else:
            report.shards += 1
    return report


def maintain_shard(
    writer: ShardWriter,
    identity: EmbedderIdentity,
    report: MaintenanceReport,
    *,
    run_id: str,
    keep: int,
    pin_seconds: float,
    quality: Quality | None = None,
) -> None:
    """Keep up the tables of one shard, and publish its table again if it was as published before.

    Upkeep changes no row, so that `quality` is a matter of the indexes alone, and neither asks nor embeds anything.
    """
    found = read_catalog_entry(writer.lake.objects, writer.shard)
    head = writer.table(SHARDS)
    as_published = (
        found is not None
        and head is not None
        and found[0].hold is None
        and (found[0].current.version, found[0].current.source_digest) == (head.version, writer.progress.source_digest)
    )
    if found is not None and head is not None:
        drop_old_tags(head, found[0], keep=keep, pin_seconds=pin_seconds)
    for folder in sorted(writer.progress.versions):
        stage, _, fingerprint = folder.partition("/")
        if stage == EMBEDDINGS and fingerprint != identity.fingerprint:
            writer.drop(stage, fingerprint)  # of a model that is no longer configured
            continue
        table = writer.table(stage, fingerprint)
        if table is not None:
            _maintain(writer, table, stage, fingerprint, timedelta(seconds=pin_seconds), report)
    if as_published and head is not None:
        upkept = None if quality is None else replace(quality, embedder=None, source=None)
        publish(writer, identity, run_id=run_id, keep=keep, pin_seconds=pin_seconds, quality=upkept)


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
    for column, build in {"text": index_text, "vector": index_vectors, **lookups}.items():
        if _segments(table, column) > _MOST_SEGMENTS:
            writer.maintain(stage, build, fingerprint=fingerprint)
            report.indexes_rebuilt += 1
    older_than = _removable_age(table, versions, pin)
    cutoff = datetime.now(UTC) - older_than
    removable = sum(made_at(version) < cutoff for version in versions[:-1])
    if removable or small_fragments(table) > 1 or unindexed_rows(table):
        # The new version is recorded before old ones are removed: the next writer rolls back to what is recorded.
        writer.maintain(stage, lambda table: table.optimize(cleanup_older_than=KEEP_VERSIONS), fingerprint=fingerprint)
        # Nobody else writes while the lease is held, so a file that belongs to no version belongs to a dead writer.
        writer.maintain(
            stage,
            lambda table: table.optimize(cleanup_older_than=older_than, delete_unverified=True),
            fingerprint=fingerprint,
        )
    left = {version["version"] for version in table.list_versions()}
    report.versions_removed += sum(version["version"] not in left for version in versions)


def _removable_age(table: Table, versions: list[dict[str, Any]], pin: timedelta) -> timedelta:
    """Age beyond which a version can be removed: no reader is on it, and no tag keeps it or anything older.

    Lance refuses to clean up at all when a version of that age bears a tag.
    """
    tagged = kept_versions(table)
    oldest = min((made_at(version) for version in versions if version["version"] in tagged), default=None)
    return max(pin, datetime.now(UTC) - oldest + _MARGIN) if oldest is not None else pin


def _segments(table: Table, column: str) -> int:
    return max((index.num_segments or 0 for index in table.list_indices() if index.columns == [column]), default=0)
