"""What the tables store of each source object, and which objects a run must fetch or delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rag_assets.extraction.errors import QuarantineReason
from rag_assets.sources.base import SourceObject
from rag_assets.storage.lake import Lake, scan
from rag_assets.storage.schemas import QUARANTINE, QUARANTINE_SCHEMA, RAW_DOCUMENTS, document_id
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.shards import Shard
from rag_serving.lake.sql import sql_in

if TYPE_CHECKING:
    from lancedb.table import Table

_NEVER = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class ObjectState:
    """What the tables hold of one source object."""

    key: str
    etag: str = ""
    size: int = 0
    extractor: str = ""
    documents: frozenset[str] = frozenset()
    """Ids of its documents in `raw_documents`; none where the object was never read."""
    stale: bool = False
    refusals: Mapping[str, QuarantineState] = field(default_factory=dict[str, "QuarantineState"])
    """Its rows in `quarantine`, by part."""

    @property
    def seen(self) -> tuple[str, int, str]:
        """Etag, size and extractor of the last attempt to read it; the etag is empty before there was one."""
        refusal = self.refusals.get("")
        if refusal is not None:
            return refusal.etag, refusal.size, refusal.extractor
        return self.etag, self.size, self.extractor

    @property
    def entry(self) -> SourceObject:
        """The line of the listing that it was made from."""
        etag, size, _ = self.seen
        return SourceObject(self.key, etag, size, _NEVER)

    @property
    def retried(self) -> bool:
        """Whether it is tried again though nothing changed.

        Its fetch alone failed, somebody asked for it, or a writer died between marking it stale and refusing it.
        """
        if self.documents and self.stale != ("" in self.refusals):
            return True
        return any(r.retry or r.reason == QuarantineReason.FETCH_FAILED for r in self.refusals.values())


@dataclass(frozen=True, slots=True)
class QuarantineState:
    """One row of `quarantine`."""

    doc_id: str
    etag: str
    size: int
    extractor: str
    reason: str
    detail: str
    first_seen: datetime
    last_seen: datetime
    attempts: int
    retry: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What the listing asks for, against what the tables hold."""

    fetch: tuple[SourceObject, ...]
    delete: tuple[str, ...]
    """Ids of objects that left the listing."""
    unchanged: int


def plan(listing: Sequence[SourceObject], stored: Mapping[str, ObjectState], extractor: str) -> Plan:
    """Compare a shard's listing with its tables; keys of `stored` are object ids. Pure.

    A quarantined document is tried again when its etag or the extractor changed, when somebody asked for it, and always
    when only its fetch failed.
    """
    fetch: list[SourceObject] = []
    unchanged = 0
    listed: set[str] = set()
    for entry in listing:
        object_id = document_id(entry.key)
        listed.add(object_id)
        known = stored.get(object_id)
        if known is None or known.retried or (entry.etag, extractor) != (known.seen[0], known.seen[2]):
            fetch.append(entry)
        else:
            unchanged += 1
    return Plan(tuple(fetch), tuple(sorted(stored.keys() - listed)), unchanged)


def stored_objects(lake: Lake, shard: Shard, where: str | None = None) -> dict[str, ObjectState]:
    """What the tables hold of the shard's objects, by object id."""
    return read_object_states(lake.open(RAW_DOCUMENTS, shard), lake.open(QUARANTINE, shard), where)


def read_object_states(documents: Table | None, quarantine: Table | None, where: str | None) -> dict[str, ObjectState]:
    stored: dict[str, ObjectState] = {}
    names = ["doc_id", "object_id", "key", "etag", "size", "extractor", "stale"]
    for batch in scan(documents, names, where=where):
        for row in batch.to_pylist():
            before = stored.get(row["object_id"])
            ids = {row["doc_id"]} | (before.documents if before is not None else set[str]())
            facts = {name: row[name] for name in ("key", "etag", "size", "extractor", "stale")}
            stored[row["object_id"]] = ObjectState(**facts, documents=frozenset(ids))
    for row in _quarantine_rows(quarantine, where):
        before = stored.get(row["object_id"], ObjectState(row["key"]))
        refusal = QuarantineState(**{name: row[name] for name in QuarantineState.__dataclass_fields__})
        stored[row["object_id"]] = replace(before, refusals={**before.refusals, row["part"]: refusal})
    return stored


def quarantined_documents(lake: Lake, shard: Shard, where: str | None = None) -> list[dict[str, Any]]:
    """The rows of the shard's quarantine, newest first."""
    return _quarantine_rows(lake.open(QUARANTINE, shard), where)


def _quarantine_rows(table: Table | None, where: str | None) -> list[dict[str, Any]]:
    rows = [row for batch in scan(table, QUARANTINE_SCHEMA.names, where=where) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: (row["last_seen"], row["key"], row["part"]), reverse=True)


def retry_documents(writer: ShardWriter, object_ids: Sequence[str]) -> None:
    """Have the next run of the shard read these quarantined objects again, though they did not change."""
    if object_ids:
        writer.update(QUARANTINE, sql_in("object_id", object_ids), {"retry": True})
