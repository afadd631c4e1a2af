"""Publish a shard: run the checks, then make the new version current with a single write of the catalog object."""

from dataclasses import dataclass
from datetime import UTC, datetime

from rag_assets.errors import ChecksFailed
from rag_assets.evaluation.evaluate import assess
from rag_assets.evaluation.records import Evaluation
from rag_assets.evaluation.verdict import Quality
from rag_assets.publishing.catalog_writes import next_entry, put_entry
from rag_assets.publishing.checks import check_coverage, check_rows, check_vectors
from rag_assets.publishing.retention import Retention, drop_old_tags, tag_version
from rag_assets.storage.content_digest import content_digest
from rag_assets.storage.lake import row_count
from rag_assets.storage.schemas import QUARANTINE
from rag_assets.storage.search_indexes import chunks_by_language
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.catalog_entry import Hold, Publication, read_catalog_entry
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.lake.tables import SHARDS, TABLE_FORMAT


@dataclass(frozen=True, slots=True)
class Published:
    """The current publication, and whether this call changed it; `held` is the hold that prevented a change."""

    publication: Publication
    changed: bool
    content_changed: bool
    held: Hold | None = None
    evaluation: Evaluation | None = None


def publish(
    writer: ShardWriter,
    identity: EmbedderIdentity,
    retention: Retention,
    *,
    run_id: str,
    quality: Quality | None = None,
) -> Published:
    """Publish the table's head unless it is already published or the shard is on hold.

    Runs every check, for callers that skip the asset checks; measurements of this version are not repeated. With
    `quality` None, nothing is embedded or searched. Raises `ChecksFailed` if the head is inconsistent or worse than
    the published version, and `LeaseLost` if a later writer has published; the old version then stays current.
    """
    lake, shard = writer.lake, writer.shard
    table = writer.table(SHARDS)
    if table is None:
        raise ChecksFailed(f"shard {shard} has no table to publish; materialize shards first")
    found = read_catalog_entry(lake.objects, shard)
    entry = found[0] if found is not None else None
    source_digest = writer.progress.source_digest
    current = entry.current if entry is not None else None
    if current is not None and (current.version, current.source_digest) == (table.version, source_digest):
        writer.update_progress(dirty=())
        return Published(current, changed=False, content_changed=False, held=entry.hold if entry is not None else None)
    dirty = writer.dirty
    load = None if quality is None else quality.embedder
    rows, vectors = check_rows(lake, shard, dirty), check_vectors(lake, shard, identity, load, dirty)
    problems = rows.problems + check_coverage(lake, shard, dirty).problems + vectors.problems
    evaluation: Evaluation | None = None
    if not problems and quality is not None:
        assessed = assess(lake, shard, identity, quality, run_id=run_id)
        problems, evaluation = assessed.problems, assessed.evaluation
    if problems:
        raise ChecksFailed(f"shard {shard} is not published: {'; '.join(problems)}")
    if writer.dirty is None:
        writer.update_progress(content_digest=content_digest(table, identity.fingerprint))
    if entry is not None and entry.hold is not None:
        held = entry.hold.model_copy(update={"built_source_digest": source_digest})
        if held != entry.hold:
            put_entry(writer, entry.model_copy(update={"hold": held}), found)
        return Published(entry.current, changed=False, content_changed=False, held=held, evaluation=evaluation)
    quarantined = writer.table(QUARANTINE)
    publication = Publication(
        version=table.version,
        content_digest=writer.progress.content_digest,
        source_digest=source_digest,
        fingerprint=identity.fingerprint,
        documents=rows.documents,
        chunks=rows.chunks,
        quarantined=row_count(quarantined),
        published_at=datetime.now(UTC),
        run_id=run_id,
        published_by=f"run {run_id}",
        source_root=writer.progress.source_root,
        languages=chunks_by_language(table),
        embedder_reads=identity.reads,
        table_format=TABLE_FORMAT,
    )
    new = next_entry(writer, entry, publication)
    # Tag first: cleanup must not remove a version that readers can open.
    tag_version(table, publication.version)
    put_entry(writer, new, found)
    drop_old_tags(table, new, retention)
    writer.update_progress(dirty=())
    changed = current is None or current.content_digest != publication.content_digest
    return Published(publication, changed=True, content_changed=changed, evaluation=evaluation)
