"""The stored state of each source object, and which objects a run must fetch or delete."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from rag_assets.extraction.errors import QuarantineReason
from rag_assets.sources.base import SourceObject
from rag_assets.storage.lake import Lake, Table, scan
from rag_assets.storage.schemas import QUARANTINE, QUARANTINE_SCHEMA, document_id
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.shards import Shard
from rag_serving.lake.sql import sql_in

_NEVER = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class ObjectState:
    """The rows of one source object in `raw_documents` and `quarantine`."""

    key: str
    etag: str = ""
    size: int = 0
    extractor: str = ""
    source: str = ""
    """URI that it was read from; empty if it was never read."""
    documents: frozenset[str] = frozenset()
    """Ids of its documents in `raw_documents`; empty if it was never read."""
    stale: bool = False
    refusals: "Mapping[str, QuarantineState]" = field(default_factory=dict[str, "QuarantineState"])
    """Its rows in `quarantine` by part."""

    @property
    def seen(self) -> tuple[str, int, str]:
        """Etag, size and extractor of the last attempt to read it; the etag is empty before the first attempt."""
        refusal = self.refusals.get("")
        if refusal is not None:
            return refusal.etag, refusal.size, refusal.extractor
        return self.etag, self.size, self.extractor

    @property
    def is_read(self) -> bool:
        """Whether its documents are those of its last attempt."""
        return bool(self.documents) and "" not in self.refusals

    @property
    def entry(self) -> SourceObject:
        """The listing entry that it was read from."""
        etag, size, _ = self.seen
        return SourceObject(self.key, etag, size, _NEVER)

    @property
    def retried(self) -> bool:
        """Whether it must be read again although neither it nor the extractor changed.

        Its fetch failed, a user requested a retry, or a writer died between marking it stale and quarantining it.
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
    """The difference between a listing and the tables."""

    fetch: tuple[SourceObject, ...]
    delete: tuple[str, ...]
    """Ids of objects that are no longer listed."""
    unchanged: int


def plan(
    listing: Sequence[SourceObject], stored: Mapping[str, ObjectState], extractor: str, uri: Callable[[str], str]
) -> Plan:
    """Compare a shard's listing with its tables; the keys of `stored` are object ids. Pure.

    An object is fetched if it is new, if its etag, its URI or the extractor changed, or if it is `retried`. `uri`
    returns an object's URI; answers would cite the old one after the source has moved.
    """
    fetch: list[SourceObject] = []
    unchanged = 0
    listed: set[str] = set()
    for entry in listing:
        object_id = document_id(entry.key)
        listed.add(object_id)
        known = stored.get(object_id)
        if (
            known is None
            or known.retried
            or (entry.etag, extractor) != (known.seen[0], known.seen[2])
            or (known.is_read and known.source != uri(entry.key))
        ):
            fetch.append(entry)
        else:
            unchanged += 1
    return Plan(tuple(fetch), tuple(sorted(stored.keys() - listed)), unchanged)


def read_object_states(documents: Table | None, quarantine: Table | None, where: str | None) -> dict[str, ObjectState]:
    """Return the state of the objects that match the filter, by object id."""
    stored: dict[str, ObjectState] = {}
    names = ["doc_id", "object_id", "key", "source", "etag", "size", "extractor", "stale"]
    for batch in scan(documents, names, where=where):
        for row in batch.to_pylist():
            before = stored.get(row["object_id"])
            ids = {row["doc_id"]} | (before.documents if before is not None else set[str]())
            facts = {name: row[name] for name in ("key", "etag", "size", "extractor", "stale")}
            # An attachment's URI has the attachment's name after the object's.
            source = row["source"] if before is None else min(before.source, row["source"], key=len)
            stored[row["object_id"]] = ObjectState(**facts, source=source.partition("#")[0], documents=frozenset(ids))
    for row in _quarantine_rows(quarantine, where):
        before = stored.get(row["object_id"], ObjectState(row["key"]))
        refusal = QuarantineState(**{name: row[name] for name in QuarantineState.__dataclass_fields__})
        stored[row["object_id"]] = replace(before, refusals={**before.refusals, row["part"]: refusal})
    return stored


def quarantined_documents(lake: Lake, shard: Shard) -> list[dict[str, Any]]:
    """Return the rows of the shard's quarantine, newest first."""
    return _quarantine_rows(lake.open(QUARANTINE, shard), None)


def document_name(row: Mapping[str, Any]) -> str:
    """Return what users call the document of a row: its key, and the part if it is an attachment."""
    return row["key"] + (f"#{row['part']}" if row["part"] else "")


def _quarantine_rows(table: Table | None, where: str | None) -> list[dict[str, Any]]:
    rows = [row for batch in scan(table, QUARANTINE_SCHEMA.names, where=where) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: (row["last_seen"], row["key"], row["part"]), reverse=True)


def retry_documents(writer: ShardWriter, object_ids: Sequence[str]) -> None:
    """Make the next run of the shard read these quarantined objects again even if they did not change."""
    if object_ids:
        writer.update(QUARANTINE, sql_in("object_id", object_ids), {"retry": True})
