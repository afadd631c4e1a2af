"""The step from the source's listing to `raw_documents`: fetch and extract what is new or changed, delete what is gone.

What cannot be read goes to the quarantine table with its reason. An older good version of such a document stays.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa

from rag_assets.arrivals import listing_digest
from rag_assets.errors import MassDeleteRefused
from rag_assets.extraction import (
    EXTRACTOR_VERSION,
    ExtractedDocument,
    ExtractionError,
    QuarantineReason,
    extract,
)
from rag_assets.lake import (
    QUARANTINE,
    QUARANTINE_SCHEMA,
    RAW_DOCUMENTS,
    RAW_SCHEMA,
    Lake,
    columns,
    commit_replacement,
    delete_rows,
    document_id,
    scan,
)
from rag_assets.lease import Lease
from rag_assets.sources import FetchedObject, ObjectGone, ObjectUnreadable, Source, SourceObject, list_shard, shard_of
from rag_serving.shards import Shard
from rag_serving.tables import sql_in

_BATCH_DOCUMENTS = 200
_BATCH_BYTES = 32 * 2**20

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class IngestionLimits:
    """What one run may do unasked."""

    max_document_bytes: int = 256 * 2**20
    max_delete_share: float = 0.5
    fetch_concurrency: int = 8
    allow_mass_delete: bool = False


@dataclass(slots=True)
class IngestionReport:
    """What a run of the step did. `documents` and `quarantined` count what the tables hold afterwards."""

    listed: int = 0
    added: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    documents: int = 0
    quarantined: int = 0
    newly_quarantined: int = 0
    stale: int = 0
    bytes_fetched: int = 0
    seconds: float = 0.0
    quarantine_reasons: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class _Held:
    key: str
    etag: str
    size: int
    extractor: str


@dataclass(frozen=True, slots=True)
class _Refused(_Held):
    reason: str
    first_seen: datetime
    attempts: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the listing asks for, against what the tables hold."""

    fetch: tuple[SourceObject, ...]
    delete: tuple[str, ...]
    """Ids of documents that left the listing."""
    unchanged: int


def plan(listing: Sequence[SourceObject], held: dict[str, _Held], refused: dict[str, _Refused], extractor: str) -> Plan:
    """Compare a shard's listing with its tables; keys are document ids. Pure.

    A quarantined document is tried again when its etag or the extractor changed, and always when only its fetch
    failed.
    """
    fetch: list[SourceObject] = []
    unchanged = 0
    listed: set[str] = set()
    for entry in listing:
        doc_id = document_id(entry.key)
        listed.add(doc_id)
        last = refused.get(doc_id) or held.get(doc_id)
        retry = isinstance(last, _Refused) and last.reason == QuarantineReason.FETCH_FAILED
        if last is not None and last.etag == entry.etag and last.extractor == extractor and not retry:
            unchanged += 1
        else:
            fetch.append(entry)
    gone = sorted((held.keys() | refused.keys()) - listed)
    return Plan(tuple(fetch), tuple(gone), unchanged)


def sync_documents(
    lake: Lake,
    source: Source,
    shard: Shard,
    lease: Lease,
    limits: IngestionLimits,
    log: Log,
    *,
    keys: Sequence[str] = (),
) -> IngestionReport:
    """Bring `raw_documents` and `quarantine` of the shard to what the source lists now.

    With `keys`, only those objects are looked at, each by itself; keys outside the shard are ignored.
    Raises `SourceUnavailable` before anything is written when the listing fails, and `MassDeleteRefused` when it would
    delete all of the shard or more than `limits.max_delete_share` of it.
    """
    started = time.monotonic()
    if keys:
        named = sorted({key for key in keys if shard_of(key) == shard})
        listing = [entry for entry in map(source.head, named) if entry is not None]
        where = sql_in("doc_id", map(document_id, named))
    else:
        listing, where = list_shard(source, shard), None
    held, refused = _held(lake, shard, where), _refused(lake, shard, where)
    total = _count(lake, RAW_DOCUMENTS, shard) if keys else len(held)
    todo = plan(listing, held, refused, EXTRACTOR_VERSION)
    _guard_deletes(shard, total, todo, held, limits)
    report = IngestionReport(listed=len(listing), unchanged=todo.unchanged)
    if todo.delete:
        report.deleted = sum(doc_id in held for doc_id in todo.delete)
        _delete(lake, shard, lease, todo.delete, held, refused)
    done = 0
    with ThreadPoolExecutor(limits.fetch_concurrency, thread_name_prefix="fetch") as pool:
        for batch in _batches(todo.fetch):
            _ingest_batch(lake, source, shard, lease, pool, batch, held, refused, limits, report)
            done += len(batch)
            rate = done / max(time.monotonic() - started, 1e-9)
            log(f"{shard}: {done} of {len(todo.fetch)} documents read ({rate:.0f}/s)")
    report.documents = _count(lake, RAW_DOCUMENTS, shard)
    report.quarantined = _count(lake, QUARANTINE, shard)
    report.stale = sum(doc_id in held for doc_id in refused)
    for entry in refused.values():
        report.quarantine_reasons[entry.reason] = report.quarantine_reasons.get(entry.reason, 0) + 1
    report.seconds = time.monotonic() - started
    return report


def held_digest(lake: Lake, shard: Shard) -> str:
    """Digest of the listing that the tables hold: equal to the source's when nothing differs."""
    entries = {value.key: value for value in _held(lake, shard).values()}
    entries.update((value.key, value) for value in _refused(lake, shard).values())
    ordered = sorted(entries.values(), key=lambda entry: entry.key.encode())
    never = datetime.fromtimestamp(0, UTC)
    return listing_digest(SourceObject(entry.key, entry.etag, entry.size, never) for entry in ordered)


def quarantined_documents(lake: Lake, shard: Shard, limit: int) -> list[dict[str, Any]]:
    """The quarantine's rows (key, reason, detail, attempts, first and last seen), newest first."""
    names = ["key", "reason", "detail", "attempts", "first_seen", "last_seen"]
    rows = [row for batch in scan(lake.open(QUARANTINE, shard), names) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: (row["last_seen"], row["key"]), reverse=True)[:limit]


def _held(lake: Lake, shard: Shard, where: str | None = None) -> dict[str, _Held]:
    names = ["doc_id", "key", "etag", "size", "extractor"]
    return {
        doc_id: _Held(key, etag, size, extractor)
        for batch in scan(lake.open(RAW_DOCUMENTS, shard), names, where=where)
        for doc_id, key, etag, size, extractor in columns(batch, *names)
    }


def _refused(lake: Lake, shard: Shard, where: str | None = None) -> dict[str, _Refused]:
    names = ["doc_id", "key", "etag", "size", "extractor", "reason", "first_seen", "attempts"]
    return {
        row["doc_id"]: _Refused(**{name: row[name] for name in names[1:]})
        for batch in scan(lake.open(QUARANTINE, shard), names, where=where)
        for row in batch.to_pylist()
    }


def _count(lake: Lake, stage: str, shard: Shard) -> int:
    table = lake.open(stage, shard)
    return 0 if table is None else table.count_rows()


def _guard_deletes(shard: Shard, total: int, todo: Plan, held: dict[str, _Held], limits: IngestionLimits) -> None:
    deleted = sum(doc_id in held for doc_id in todo.delete)
    if limits.allow_mass_delete or not deleted:
        return
    everything = deleted == total and not todo.fetch
    # Below a handful of documents a share says nothing: one of two is half.
    if everything or (deleted > 5 and deleted > limits.max_delete_share * total):
        raise MassDeleteRefused(
            f"documents of shard {shard} are gone from the source; indexing that would delete {deleted} of {total}. If "
            "this is meant, run it again with the run tag rag/allow_mass_delete=true (rag-assets backfill "
            "--allow-mass-delete); RAG_MAX_DELETE_SHARE sets the share that passes unasked"
        )


def _batches(fetch: Sequence[SourceObject]) -> Iterator[list[SourceObject]]:
    batch: list[SourceObject] = []
    total = 0
    for entry in fetch:
        if batch and (len(batch) == _BATCH_DOCUMENTS or total + entry.size > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(entry)
        total += entry.size
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Read:
    entry: SourceObject
    document: ExtractedDocument


@dataclass(frozen=True, slots=True)
class _Unread:
    entry: SourceObject
    reason: QuarantineReason
    detail: str


def _ingest_batch(
    lake: Lake,
    source: Source,
    shard: Shard,
    lease: Lease,
    pool: ThreadPoolExecutor,
    batch: list[SourceObject],
    held: dict[str, _Held],
    refused: dict[str, _Refused],
    limits: IngestionLimits,
    report: IngestionReport,
) -> None:
    good: list[_Read] = []
    bad: list[_Unread] = []
    fetched = pool.map(partial(_fetch, source, limits.max_document_bytes), batch)
    for entry, result in zip(batch, fetched, strict=True):
        if result is None:  # deleted since it was listed; the next listing no longer has it
            continue
        if isinstance(result, _Unread):
            bad.append(result)
            continue
        report.bytes_fetched += len(result.data)
        seen = SourceObject(entry.key, result.etag, len(result.data), result.modified_at)
        try:
            good.append(_Read(seen, extract(result.data, entry.key)))
        except ExtractionError as error:
            bad.append(_Unread(seen, error.reason, error.detail))
    now = datetime.now(UTC)
    if good:
        _store_documents(lake, source, shard, lease, good, held, report, now)
    if bad:
        _store_refusals(lake, shard, lease, bad, refused, report, now)
    recovered = [document_id(item.entry.key) for item in good if document_id(item.entry.key) in refused]
    if recovered:
        delete_rows(lake.ensure(QUARANTINE, shard, QUARANTINE_SCHEMA), lease, "doc_id", recovered)
        for doc_id in recovered:
            del refused[doc_id]


def _fetch(source: Source, limit: int, entry: SourceObject) -> FetchedObject | _Unread | None:
    if entry.size > limit:
        detail = f"{entry.size} bytes; RAG_MAX_DOCUMENT_BYTES is {limit}"
        return _Unread(entry, QuarantineReason.TOO_LARGE, detail)
    try:
        return source.fetch(entry.key)
    except ObjectGone:
        return None
    except ObjectUnreadable as error:
        return _Unread(entry, QuarantineReason.FETCH_FAILED, str(error))


def _store_documents(
    lake: Lake,
    source: Source,
    shard: Shard,
    lease: Lease,
    good: list[_Read],
    held: dict[str, _Held],
    report: IngestionReport,
    now: datetime,
) -> None:
    rows = [
        {
            "doc_id": document_id(item.entry.key),
            "key": item.entry.key,
            "source": source.uri(item.entry.key),
            "etag": item.entry.etag,
            "size": item.entry.size,
            "modified_at": item.entry.modified_at,
            "type": item.document.media_type,
            "title": item.document.title,
            "text": item.document.text,
            "blocks": [
                {"kind": b.kind.value, "start": b.start, "end": b.end, "level": b.level, "page": b.page}
                for b in item.document.blocks
            ],
            "content_hash": content_hash(item.document),
            "extractor": EXTRACTOR_VERSION,
            "extracted_at": now,
        }
        for item in good
    ]
    owners = [str(row["doc_id"]) for row in rows]
    commit_replacement(
        lake.ensure(RAW_DOCUMENTS, shard, RAW_SCHEMA),
        lease,
        pa.Table.from_pylist(rows, schema=RAW_SCHEMA),
        key="doc_id",
        owner="doc_id",
        owners=owners,
        fresh=not any(doc_id in held for doc_id in owners),
    )
    for doc_id, item in zip(owners, good, strict=True):
        report.changed += doc_id in held
        report.added += doc_id not in held
        held[doc_id] = _Held(item.entry.key, item.entry.etag, item.entry.size, EXTRACTOR_VERSION)


def _store_refusals(
    lake: Lake,
    shard: Shard,
    lease: Lease,
    bad: list[_Unread],
    refused: dict[str, _Refused],
    report: IngestionReport,
    now: datetime,
) -> None:
    rows: list[dict[str, Any]] = []
    known = {document_id(item.entry.key) for item in bad} & refused.keys()
    for item in bad:
        doc_id = document_id(item.entry.key)
        before = refused.get(doc_id)
        report.newly_quarantined += before is None
        refused[doc_id] = _Refused(
            key=item.entry.key,
            etag=item.entry.etag,
            size=item.entry.size,
            extractor=EXTRACTOR_VERSION,
            reason=item.reason.value,
            first_seen=now if before is None else before.first_seen,
            attempts=1 if before is None else before.attempts + 1,
        )
        after = refused[doc_id]
        row = {name: getattr(after, name) for name in ("key", "etag", "size", "extractor", "reason", "attempts")}
        row |= {"doc_id": doc_id, "detail": item.detail, "first_seen": after.first_seen, "last_seen": now}
        rows.append(row)
    commit_replacement(
        lake.ensure(QUARANTINE, shard, QUARANTINE_SCHEMA),
        lease,
        pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA),
        key="doc_id",
        owner="doc_id",
        owners=[row["doc_id"] for row in rows],
        fresh=not known,
    )


def _delete(
    lake: Lake,
    shard: Shard,
    lease: Lease,
    doc_ids: Sequence[str],
    held: dict[str, _Held],
    refused: dict[str, _Refused],
) -> None:
    for stage, known in ((RAW_DOCUMENTS, held), (QUARANTINE, refused)):
        present = [doc_id for doc_id in doc_ids if doc_id in known]
        table = lake.open(stage, shard) if present else None
        if table is not None:
            delete_rows(table, lease, "doc_id", present)
        for doc_id in present:
            del known[doc_id]


def content_hash(document: ExtractedDocument) -> str:
    """Identity of what was read: title, text and structure, whatever format it came in."""
    digest = hashlib.sha256()
    for part in (document.title, document.text):
        digest.update(f"{len(part)}:".encode())
        digest.update(part.encode())
    for block in document.blocks:
        digest.update(f"{block.kind.value},{block.start},{block.end},{block.level},{block.page};".encode())
    return digest.hexdigest()[:32]
