"""Checks of a shard's new table, and the publish that puts it before readers by one write of its catalog object."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_assets.errors import ChecksFailed, LeaseLost
from rag_assets.indexing import UNINDEXED_ROWS, table_fingerprint, unindexed_rows
from rag_assets.ingestion import held_digest
from rag_assets.lake import CHUNKS, QUARANTINE, RAW_DOCUMENTS, Lake, read, scan, values
from rag_assets.lease import Lease
from rag_serving.catalog import HISTORY_LENGTH, CatalogEntry, Publication, catalog_key, read_catalog_entry
from rag_serving.embedding import EmbedderIdentity
from rag_serving.errors import WriteConflict
from rag_serving.objects import ABSENT
from rag_serving.shards import Shard
from rag_serving.tables import SHARDS

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


def check_rows(lake: Lake, shard: Shard) -> Verdict:
    """Whether the table holds exactly the documents read and the chunks cut, each once."""
    documents = _ids(lake.open(RAW_DOCUMENTS, shard), "doc_id")
    chunks = _ids(lake.open(CHUNKS, shard), "chunk_id")
    table = lake.open(SHARDS, shard)
    rows = _ids(table, "chunk_id")
    problems: list[str] = []
    for count, what in (
        (sum(n - 1 for n in rows.values()), "chunk ids more than once"),
        (len(chunks.keys() - rows.keys()), "chunks missing from the table"),
        (len(rows.keys() - chunks.keys()), "rows in the table that are no chunk"),
        (len(documents.keys() ^ _ids(table, "doc_id").keys()), "documents on one side only"),
    ):
        if count:
            problems.append(f"{count} {what}")
    return Verdict(tuple(problems), len(documents), len(rows))


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
    """The publication that readers now see, and whether this call changed it."""

    publication: Publication
    changed: bool
    content_changed: bool


def publish(lake: Lake, shard: Shard, lease: Lease, identity: EmbedderIdentity, *, run_id: str, keep: int) -> Published:
    """Put the head of the shard's table before readers, unless they have exactly that already.

    Raises `ChecksFailed` when the head is not consistent and `LeaseLost` when a writer of a later epoch has published;
    readers keep the old version in both cases.
    """
    table = lake.open(SHARDS, shard)
    if table is None:
        raise ChecksFailed(f"shard {shard} has no table to publish; materialize shards first")
    found = read_catalog_entry(lake.objects, shard)
    current = found[0].current if found is not None else None
    source_digest = held_digest(lake, shard)
    if current is not None and (current.version, current.source_digest) == (table.version, source_digest):
        return Published(current, changed=False, content_changed=False)
    rows, vectors = check_rows(lake, shard), check_vectors(lake, shard, identity)
    if rows.problems or vectors.problems:
        raise ChecksFailed(f"shard {shard} is not published: {'; '.join(rows.problems + vectors.problems)}")
    if found is not None and found[0].epoch > lease.epoch:
        raise LeaseLost(f"shard {shard} was published by a later writer; run it again")
    version = table.version
    publication = Publication(
        version=version,
        content_digest=content_digest(table, identity.fingerprint),
        source_digest=source_digest,
        fingerprint=identity.fingerprint,
        documents=rows.documents,
        chunks=rows.chunks,
        quarantined=sum(batch.num_rows for batch in scan(lake.open(QUARANTINE, shard), ["doc_id"])),
        published_at=datetime.now(UTC),
        run_id=run_id,
    )
    history = () if found is None else (found[0].current, *found[0].history)[:HISTORY_LENGTH]
    entry = CatalogEntry(
        format=1,
        region=shard.region,
        department=shard.department,
        table=shard.table_name,
        epoch=lease.epoch,
        current=publication,
        history=history,
    )
    # The tag comes first: a version that readers are sent to must already be safe from cleanup.
    _tag(table, version)
    lease.check()
    try:
        lake.objects.put(catalog_key(shard), entry.to_json(), expect=ABSENT if found is None else found[1])
    except WriteConflict as error:
        raise LeaseLost(f"shard {shard} was published by another writer meanwhile; run it again") from error
    _drop_old_tags(table, {version, *(old.version for old in history[: keep - 1])})
    changed = current is None or current.content_digest != publication.content_digest
    return Published(publication, changed=True, content_changed=changed)


def content_digest(table: Table, fingerprint: str) -> str:
    """Identity of what can be retrieved: the set of chunks and the embedder. Compaction does not change it."""
    digest = hashlib.sha256(fingerprint.encode())
    for chunk_id in sorted(values(read(table, ["chunk_id"]), "chunk_id")):
        digest.update(chunk_id.encode())
    return digest.hexdigest()[:32]


def _ids(table: Table | None, column: str) -> Counter[str]:
    counted: Counter[str] = Counter()
    for batch in scan(table, [column]):
        counted.update(values(batch, column))
    return counted


def _tag(table: Table, version: int) -> None:
    name = f"{_TAG}{version}"
    if name not in table.tags.list():
        table.tags.create(name, version)


def _drop_old_tags(table: Table, kept: set[int]) -> None:
    for name, tag in table.tags.list().items():
        if name.startswith(_TAG) and tag["version"] not in kept:
            table.tags.delete(name)
