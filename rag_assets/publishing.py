"""Checks of a shard's new table, and what puts a version before readers by one write of the shard's catalog object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_assets.errors import ChecksFailed, LeaseLost, VersionNotKept
from rag_assets.indexing import UNINDEXED_ROWS, ContentDigest, table_fingerprint, unindexed_rows
from rag_assets.lake import CHUNKS, QUARANTINE, RAW_DOCUMENTS, Lake, scan, values
from rag_assets.lookups import id_ranges
from rag_assets.writing import ShardWriter
from rag_serving.catalog import HISTORY_LENGTH, CatalogEntry, Hold, Publication, catalog_key, read_catalog_entry
from rag_serving.embedding import EmbedderIdentity
from rag_serving.errors import WriteConflict
from rag_serving.objects import ABSENT
from rag_serving.shards import Shard
from rag_serving.tables import SHARDS, TABLE_FORMAT, sql_in

if TYPE_CHECKING:
    from lancedb.table import Table

_SAMPLED_VECTORS = 1000
_TAG = "published-"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found; no problems means that it passed."""

    problems: tuple[str, ...]
    documents: int = 0
    chunks: int = 0


def check_rows(lake: Lake, shard: Shard, doc_ids: Sequence[str] | None = None) -> Verdict:
    """Whether the table holds exactly the documents read and the chunks cut, each once.

    With `doc_ids`, ids are compared for those documents alone, and for the rest the numbers of rows.
    """
    raw, cut, table = lake.open(RAW_DOCUMENTS, shard), lake.open(CHUNKS, shard), lake.open(SHARDS, shard)
    counted: Counter[str] = Counter()
    if doc_ids is None:
        ranges = id_ranges("doc_id", max(_count(raw), _count(cut), _count(table)))
    else:
        ranges = [sql_in("doc_id", doc_ids)] if doc_ids else []
    for where in ranges:
        documents = _ids(raw, "doc_id", where)
        chunks = _ids(cut, "chunk_id", where)
        rows = _ids(table, "chunk_id", where)
        counted["documents more than once"] += documents.total() - len(documents)
        counted["chunks cut more than once"] += chunks.total() - len(chunks)
        counted["chunk ids more than once"] += rows.total() - len(rows)
        counted["chunks missing from the table"] += len(chunks.keys() - rows.keys())
        counted["rows in the table that are no chunk"] += len(rows.keys() - chunks.keys())
        counted["documents on one side only"] += len(documents.keys() ^ _ids(table, "doc_id", where).keys())
    counted["rows more or less than there are chunks"] = abs(_count(cut) - _count(table))
    problems = tuple(f"{count} {what}" for what, count in counted.items() if count)
    return Verdict(problems, _count(raw), _count(table))


def check_vectors(lake: Lake, shard: Shard, identity: EmbedderIdentity) -> Verdict:
    """Whether the vectors are of the configured embedder and of unit length (a sample), and the indexes cover them."""
    table = lake.open(SHARDS, shard)
    if table is None:
        return Verdict(("the shard has no table",))
    problems: list[str] = []
    found = table_fingerprint(table)
    if found != identity.fingerprint:
        problems.append(f"vectors of embedder {found or 'unknown'}, not of {identity.fingerprint}")
    sampled: list[Any] = table.search().select(["vector"]).limit(_SAMPLED_VECTORS).to_arrow()["vector"].to_pylist()
    sample = np.asarray(sampled, dtype=np.float32).reshape(len(sampled), -1 if sampled else identity.dimensions)
    lengths = np.linalg.norm(sample, axis=1)
    wrong = int((np.abs(lengths - 1) > 0.02).sum()) if identity.normalized else 0
    if wrong:
        problems.append(f"{wrong} of {len(sample)} sampled vectors are not of unit length")
    outside = unindexed_rows(table)
    if outside > UNINDEXED_ROWS:
        problems.append(f"{outside} rows outside an index, {UNINDEXED_ROWS} at most")
    return Verdict(tuple(problems), chunks=table.count_rows())


@dataclass(frozen=True, slots=True)
class Published:
    """The publication that readers now see, and whether this call changed it; `held` says what keeps it from that."""

    publication: Publication
    changed: bool
    content_changed: bool
    held: Hold | None = None


def publish(
    writer: ShardWriter, identity: EmbedderIdentity, *, run_id: str, keep: int, pin_seconds: float
) -> Published:
    """Put the head of the shard's table before readers, unless they have exactly that already, or a hold forbids it.

    Raises `ChecksFailed` when the head is not consistent and `LeaseLost` when a writer of a later epoch has published;
    readers keep the old version in both cases.
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
        writer.note(touched=())
        return Published(current, changed=False, content_changed=False, held=entry.hold if entry is not None else None)
    rows, vectors = check_rows(lake, shard, writer.touched), check_vectors(lake, shard, identity)
    if rows.problems or vectors.problems:
        raise ChecksFailed(f"shard {shard} is not published: {'; '.join(rows.problems + vectors.problems)}")
    if writer.touched is None:
        writer.note(content_digest=content_digest(table, identity.fingerprint))
    if entry is not None and entry.hold is not None:
        held = entry.hold.model_copy(update={"built_source_digest": source_digest})
        if held != entry.hold:
            _put(writer, entry.model_copy(update={"hold": held}), found)
        return Published(entry.current, changed=False, content_changed=False, held=held)
    quarantined = writer.table(QUARANTINE)
    publication = Publication(
        version=table.version,
        content_digest=writer.progress.content_digest,
        source_digest=source_digest,
        fingerprint=identity.fingerprint,
        documents=rows.documents,
        chunks=rows.chunks,
        quarantined=0 if quarantined is None else quarantined.count_rows(),
        published_at=datetime.now(UTC),
        run_id=run_id,
        published_by=f"run {run_id}",
        table_format=TABLE_FORMAT,
    )
    new = _succeeding(writer, entry, publication)
    # The tag comes first: a version that readers are sent to must already be safe from cleanup.
    _tag(table, publication.version)
    _put(writer, new, found)
    drop_old_tags(table, new, keep=keep, pin_seconds=pin_seconds)
    writer.note(touched=())
    changed = current is None or current.content_digest != publication.content_digest
    return Published(publication, changed=True, content_changed=changed)


def rollback(writer: ShardWriter, *, by: str, to: int | None = None) -> CatalogEntry:
    """Send readers to an older published version, and hold the shard there until it is released.

    `to` is a version of the history; without it, the last one published before the current. Raises `VersionNotKept`.
    """
    found = read_catalog_entry(writer.lake.objects, writer.shard)
    table = writer.table(SHARDS)
    if found is None or table is None:
        raise VersionNotKept(f"shard {writer.shard} was never published; there is nothing to roll back to")
    entry = found[0]
    kept = kept_versions(table)
    candidates = [old for old in entry.history if old.version in kept and old.version != entry.current.version]
    chosen = next((old for old in candidates if to is None or old.version == to), None)
    if chosen is None:
        versions = ", ".join(str(version) for version in dict.fromkeys(old.version for old in candidates))
        wanted = "an older version" if to is None else f"version {to}"
        raise VersionNotKept(
            f"shard {writer.shard} (now at version {entry.current.version}) keeps "
            + (f"versions {versions} to go back to, not {wanted}" if versions else "no older version to go back to")
        )
    now = datetime.now(UTC)
    again = chosen.model_copy(update={"published_at": now, "published_by": by})
    hold = Hold(by=by, since=now, built_source_digest=writer.progress.source_digest)
    rolled = _succeeding(writer, entry, again).model_copy(update={"hold": hold})
    _put(writer, rolled, found)
    return rolled


def release(writer: ShardWriter) -> CatalogEntry | None:
    """Let runs publish again; None where nothing was held. The next run publishes what was built meanwhile."""
    found = read_catalog_entry(writer.lake.objects, writer.shard)
    if found is None or found[0].hold is None:
        return None
    released = found[0].model_copy(update={"hold": None, "epoch": writer.epoch})
    _put(writer, released, found)
    return released


def fence(lake: Lake, shard: Shard, epoch: int) -> None:
    """Write the epoch into the catalog object, so that a publish prepared under an older one no longer goes through."""
    found = read_catalog_entry(lake.objects, shard)
    if found is not None and found[0].epoch < epoch:
        try:
            lake.objects.put(
                catalog_key(shard), found[0].model_copy(update={"epoch": epoch}).to_json(), expect=found[1]
            )
        except WriteConflict as error:
            raise LeaseLost(f"shard {shard} was published by another writer meanwhile; run it again") from error


def content_digest(table: Table, fingerprint: str) -> str:
    """The digest of all that can be retrieved from the table."""
    digest = ContentDigest(fingerprint)
    for batch in scan(table, ["chunk_id"]):
        digest.change((), values(batch, "chunk_id"))
    return str(digest)


def kept_versions(table: Table) -> dict[int, str]:
    """Versions of the table that a tag keeps, with the tag."""
    return {tag["version"]: name for name, tag in table.tags.list().items() if name.startswith(_TAG)}


def drop_old_tags(table: Table, entry: CatalogEntry, *, keep: int, pin_seconds: float) -> None:
    """Untag versions beyond the last `keep`, but none that a reader may still be on.

    A reader may stay on a version for `pin_seconds` after the catalog has named another.
    """
    publications = (entry.current, *entry.history)
    last = list(dict.fromkeys(publication.version for publication in publications))[:keep]
    since = datetime.now(UTC) - timedelta(seconds=pin_seconds)
    # A version was readers' until its successor came.
    pinned = {older.version for newer, older in pairwise(publications) if newer.published_at > since}
    if len(publications) > HISTORY_LENGTH and publications[-1].published_at > since:
        return  # what came before the history may still be read as well
    for version, name in kept_versions(table).items():
        if version not in pinned and version not in last:
            table.tags.delete(name)


def _succeeding(writer: ShardWriter, entry: CatalogEntry | None, publication: Publication) -> CatalogEntry:
    return CatalogEntry(
        format=1,
        region=writer.shard.region,
        department=writer.shard.department,
        table=writer.shard.table_name,
        epoch=writer.epoch,
        current=publication,
        history=() if entry is None else (entry.current, *entry.history)[:HISTORY_LENGTH],
        hold=None,
    )


def _put(writer: ShardWriter, entry: CatalogEntry, found: tuple[CatalogEntry, str] | None) -> None:
    """Write the catalog object in place of the one found; raises `LeaseLost` when another writer was quicker."""
    if found is not None and found[0].epoch > writer.epoch:
        raise LeaseLost(f"shard {writer.shard} was published by a later writer; run it again")
    writer.check()
    try:
        writer.lake.objects.put(
            catalog_key(writer.shard), entry.to_json(), expect=ABSENT if found is None else found[1]
        )
    except WriteConflict as error:
        raise LeaseLost(f"shard {writer.shard} was published by another writer meanwhile; run it again") from error


def _ids(table: Table | None, column: str, where: str | None) -> Counter[str]:
    counted: Counter[str] = Counter()
    for batch in scan(table, [column], where=where):
        counted.update(values(batch, column))
    return counted


def _count(table: Table | None) -> int:
    return 0 if table is None else table.count_rows()


def _tag(table: Table, version: int) -> None:
    name = f"{_TAG}{version}"
    if name not in table.tags.list():
        table.tags.create(name, version)
