"""The step from the source to `raw_documents`: extract new and changed objects, and delete those no longer listed.

An unreadable object goes to the quarantine table with the reason. Its last readable version stays, marked as stale.
"""

import hashlib
import shlex
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from rag_assets.errors import MassDeleteRefused
from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import ParsedObject, extractor_version
from rag_assets.sources.base import (
    ObjectGone,
    ObjectUnreadable,
    Source,
    SourceObject,
    document_shard,
    list_folder,
    shard_of,
)
from rag_assets.sources.left_out import LeftOut
from rag_assets.sources.listing_digest import listing_line
from rag_assets.stages.document_state import ObjectState, QuarantineState, plan, read_object_states
from rag_assets.storage.batches import batches
from rag_assets.storage.id_indexes import ensure_id_indexes, id_bounds, id_ranges
from rag_assets.storage.lake import Log, row_count
from rag_assets.storage.schemas import QUARANTINE, QUARANTINE_SCHEMA, RAW_DOCUMENTS, RAW_SCHEMA, document_id
from rag_assets.storage.set_digest import DigestSum
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.shards import Shard
from rag_serving.lake.sql import sql_in

_BATCH_DOCUMENTS = 200
_BATCH_BYTES = 32 * 2**20
_BATCH_DELETES = 1000


@dataclass(frozen=True, slots=True)
class IngestionLimits:
    """Limits of one run."""

    max_document_bytes: int = 256 * 2**20
    max_delete_share: float = 0.5
    fetch_concurrency: int = 8
    allow_mass_delete: bool = False


@dataclass(slots=True)
class IngestionReport:
    """What a run of the step did; `documents` and `quarantined` count the rows afterwards."""

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
    left_out: dict[str, int] = field(default_factory=dict[str, int])
    """What the shard's folder has besides documents, by reason; empty for runs of named objects."""
    left_out_examples: str = ""


Parse = Callable[[bytes, str], ParsedObject]
"""Parses the bytes and key of one object into its documents. Raises ExtractionError; must be thread-safe."""


def sync_documents(
    writer: ShardWriter,
    source: Source,
    read: Parse,
    limits: IngestionLimits,
    log: Log,
    *,
    keys: Sequence[str] = (),
) -> IngestionReport:
    """Update the shard's `raw_documents` and `quarantine` to match the source.

    With `keys`, only those objects are compared, unless the state of the tables is uncertain; then, and without `keys`,
    the whole shard is listed. Keys outside the shard are ignored. Raises `SourceUnavailable` if the listing fails, and
    `MassDeleteRefused` if the run would delete the whole shard or more than `limits.max_delete_share` of it; nothing is
    written in either case.
    """
    started = time.monotonic()
    shard = writer.shard
    named = sorted({key for key in keys if shard_of(key) == shard})
    left_out: LeftOut | None = None
    if keys and writer.dirty is not None and writer.progress.source_digest:
        digest = DigestSum.parse(writer.progress.source_digest)
        listing = [entry for entry in map(source.head, named) if entry is not None]
        todo = _compare(writer, source, [(sql_in("object_id", map(document_id, named)), listing)])
    else:
        folder = list(list_folder(source, shard))
        left_out = LeftOut.of(folder)
        listing = [entry for entry in folder if document_shard(entry) == shard]
        todo = _compare(writer, source, _parted(writer, listing))
        digest = todo.digest
    _guard_deletes(shard, row_count(writer.table(RAW_DOCUMENTS)), todo, limits)
    report = IngestionReport(listed=len(listing), unchanged=todo.unchanged, deleted=todo.deleted)
    tables = _Tables(writer, digest, todo)
    tables.delete(todo.delete)
    done = 0
    with ThreadPoolExecutor(limits.fetch_concurrency, thread_name_prefix="fetch") as pool:
        for batch in batches(todo.fetch, _BATCH_DOCUMENTS, weigh=lambda entry: entry.size, most_weight=_BATCH_BYTES):
            found = list(pool.map(partial(_fetch, source, read, limits.max_document_bytes), batch))
            tables.look_up(document_id(entry.key) for entry in batch)
            tables.store([item for item in found if item is not None], source, report)
            done += len(batch)
            rate = done / max(time.monotonic() - started, 1e-9)
            log(f"{shard}: {done} of {len(todo.fetch)} documents read ({rate:.0f}/s)")
    tables.note_digest(source.uri(""))
    for stage in (RAW_DOCUMENTS, QUARANTINE):
        ensure_id_indexes(writer, stage)
    report.documents = row_count(writer.table(RAW_DOCUMENTS))
    report.quarantined = row_count(writer.table(QUARANTINE))
    report.stale = todo.stale
    if left_out is not None:
        report.left_out, report.left_out_examples = dict(left_out.by_reason()), str(left_out)
    report.quarantine_reasons = {reason: count for reason, count in sorted(todo.reasons.items()) if count}
    report.seconds = time.monotonic() - started
    return report


@dataclass(slots=True)
class _Diff:
    """The difference between a listing and the tables, collected range by range."""

    fetch: list[SourceObject] = field(default_factory=list[SourceObject])
    delete: list[str] = field(default_factory=list[str])
    """Ids of objects that are no longer listed."""
    known: set[str] = field(default_factory=set[str])
    """Ids in `fetch` and `delete` that have rows in the tables."""
    unchanged: int = 0
    deleted: int = 0
    """Objects to delete that have documents."""
    deleted_documents: int = 0
    digest: DigestSum = field(default_factory=DigestSum)
    """Digest of the stored objects that were compared."""
    stale: int = 0
    """Stale documents of the compared objects. `_Tables` keeps this and `reasons` up to date."""
    reasons: Counter[str] = field(default_factory=Counter[str])
    stored: dict[str, ObjectState] | None = None
    """The stored objects, if a single range covers all."""

    def count(self, stored: ObjectState, times: int) -> None:
        """Add an object to the counts (`times` 1) or remove it (-1)."""
        self.stale += times * stored.stale * len(stored.documents)
        for refusal in stored.refusals.values():
            self.reasons[refusal.reason] += times


def _parted(writer: ShardWriter, listing: Sequence[SourceObject]) -> Iterable[tuple[str | None, list[SourceObject]]]:
    """Split the listing by ranges of object ids; return each part with the filter that selects its rows."""
    rows = max(len(listing), *(row_count(writer.table(stage)) for stage in (RAW_DOCUMENTS, QUARANTINE)))
    bounds = id_bounds(rows)
    parts: list[list[SourceObject]] = [[] for _ in range(len(bounds) + 1)]
    for entry in listing:
        parts[bisect_right(bounds, document_id(entry.key))].append(entry)
    return list(zip(id_ranges("object_id", rows), parts, strict=True))


def _compare(writer: ShardWriter, source: Source, parts: Iterable[tuple[str | None, list[SourceObject]]]) -> _Diff:
    """Compare each part of the listing with its rows in the tables."""
    survey = _Diff()
    for number, (where, listing) in enumerate(parts):
        stored = read_object_states(writer.table(RAW_DOCUMENTS), writer.table(QUARANTINE), where)
        found = plan(listing, stored, extractor_version(), source.uri)
        survey.fetch += found.fetch
        survey.delete += found.delete
        survey.known.update(found.delete)
        survey.known.update(i for entry in found.fetch if (i := document_id(entry.key)) in stored)
        survey.unchanged += found.unchanged
        survey.deleted += sum(bool(stored[object_id].documents) for object_id in found.delete)
        survey.deleted_documents += sum(len(stored[object_id].documents) for object_id in found.delete)
        for known in stored.values():
            survey.count(known, 1)
            if known.seen[0]:
                survey.digest.add(listing_line(known.entry))
        survey.stored = stored if number == 0 else None
    survey.fetch.sort(key=lambda entry: entry.key)
    return survey


def _guard_deletes(shard: Shard, total: int, todo: _Diff, limits: IngestionLimits) -> None:
    deleted = todo.deleted_documents
    if limits.allow_mass_delete or not deleted:
        return
    everything = deleted == total and not todo.fetch
    # The share of very few documents is meaningless: one of two is half.
    if everything or (deleted > 5 and deleted > limits.max_delete_share * total):
        retire = f"If the department was removed or renamed, run rag-assets retire {shlex.quote(shard.key)}. "
        raise MassDeleteRefused(
            f"the run would delete {deleted} of {total} documents of shard {shard}, which are gone from the source. "
            f"{retire if everything else ''}If this is intended, run rag-assets backfill --allow-mass-delete "
            f"--region {shlex.quote(shard.region)} --department {shlex.quote(shard.department)}, or set the run tag "
            "rag/allow_mass_delete=true; RAG_MAX_DELETE_SHARE sets the share that needs no permission"
        )


@dataclass(frozen=True, slots=True)
class _FetchResult:
    """The parsed documents of one object, or the reason why it is unreadable."""

    entry: SourceObject
    reading: ParsedObject | None = None
    reason: QuarantineReason = QuarantineReason.MALFORMED
    detail: str = ""
    fetched: int = 0

    @property
    def object_id(self) -> str:
        return document_id(self.entry.key)


def _fetch(source: Source, read: Parse, limit: int, entry: SourceObject) -> _FetchResult | None:
    """Fetch and parse one object; None if it was deleted after it was listed, which the next listing shows."""
    if entry.size > limit:
        detail = f"{entry.size} bytes; RAG_MAX_DOCUMENT_BYTES is {limit}"
        return _FetchResult(entry, reason=QuarantineReason.TOO_LARGE, detail=detail)
    try:
        fetched = source.fetch(entry.key)
    except ObjectGone:
        return None
    except ObjectUnreadable as error:
        return _FetchResult(entry, reason=QuarantineReason.FETCH_FAILED, detail=str(error))
    size = len(fetched.data) if fetched.stored_bytes is None else fetched.stored_bytes
    seen = SourceObject(entry.key, fetched.etag, size, fetched.modified_at)
    try:
        return _FetchResult(seen, read(fetched.data, entry.key), fetched=size)
    except ExtractionError as error:
        return _FetchResult(seen, reason=error.reason, detail=error.detail, fetched=size)


class _Tables:
    """The shard's `raw_documents` and `quarantine`, with the stored state of the objects of the current batch."""

    def __init__(self, writer: ShardWriter, digest: DigestSum, survey: _Diff) -> None:
        self._writer = writer
        self._digest = digest
        self._survey = survey
        self.stored = survey.stored or {}

    def look_up(self, object_ids: Iterable[str]) -> None:
        """Load the stored state of these objects."""
        if self._survey.stored is None:
            known = [object_id for object_id in object_ids if object_id in self._survey.known]
            documents, quarantine = self._writer.table(RAW_DOCUMENTS), self._writer.table(QUARANTINE)
            self.stored = read_object_states(documents, quarantine, sql_in("object_id", known)) if known else {}

    def note_digest(self, source_root: str) -> None:
        """Save what was compared even if nothing was written."""
        self._writer.update_progress(source_digest=str(self._digest), source_root=source_root)

    def delete(self, object_ids: Sequence[str]) -> None:
        """Delete objects that are no longer listed."""
        for batch in batches(object_ids, _BATCH_DELETES):
            self.look_up(batch)
            self._delete(batch)

    def _delete(self, object_ids: Sequence[str]) -> None:
        in_quarantine = [object_id for object_id in object_ids if self.stored[object_id].refusals]
        in_documents = [object_id for object_id in object_ids if self.stored[object_id].documents]
        self._writer.mark_dirty(doc_id for object_id in object_ids for doc_id in self.stored[object_id].documents)
        if in_quarantine:
            noted = self._become({i: replace(self.stored[i], refusals={}) for i in in_quarantine})
            self._writer.delete(QUARANTINE, "object_id", in_quarantine, source_digest=noted)
        if in_documents:
            noted = self._become(dict.fromkeys(in_documents))
            self._writer.delete(RAW_DOCUMENTS, "object_id", in_documents, source_digest=noted)
        for object_id in object_ids:
            self.stored.pop(object_id, None)

    def store(self, found: Sequence[_FetchResult], source: Source, report: IngestionReport) -> None:
        """Write the results of a batch.

        A crash between the commits must leave each object to be read again, never as seen: unreadable objects are
        marked as stale before they are quarantined, and the quarantine is written before the documents.
        """
        now = datetime.now(UTC)
        report.bytes_fetched += sum(item.fetched for item in found)
        self._mark_stale([item.object_id for item in found if item.reading is None])
        self._store_refusals(found, report, now)
        self._store_documents([item for item in found if item.reading is not None], source, report, now)

    def _store_refusals(self, found: Sequence[_FetchResult], report: IngestionReport, now: datetime) -> None:
        after: dict[str, ObjectState | None] = {}
        rows: list[dict[str, Any]] = []
        for item in found:
            before = self.stored.get(item.object_id, ObjectState(item.entry.key))
            refusals = {part: self._refusal(item, part, *why, before, now) for part, why in _refused(item).items()}
            report.newly_quarantined += len(refusals.keys() - before.refusals.keys())
            if refusals or before.refusals:
                after[item.object_id] = replace(before, refusals=refusals)
            for part, refusal in refusals.items():
                facts = {name: getattr(refusal, name) for name in QuarantineState.__dataclass_fields__}
                rows.append({**facts, "object_id": item.object_id, "key": item.entry.key, "part": part})
        if not after:
            return
        known = any(object_id in self.stored and self.stored[object_id].refusals for object_id in after)
        self._replace(QUARANTINE, QUARANTINE_SCHEMA, rows, after, fresh=not known)

    @staticmethod
    def _refusal(
        item: _FetchResult, part: str, reason: QuarantineReason, detail: str, before: ObjectState, now: datetime
    ) -> QuarantineState:
        last = before.refusals.get(part)
        return QuarantineState(
            doc_id=document_id(item.entry.key, part),
            etag=item.entry.etag,
            size=item.entry.size,
            extractor=extractor_version(),
            reason=reason.value,
            detail=detail,
            first_seen=now if last is None else last.first_seen,
            last_seen=now,
            attempts=1 if last is None else last.attempts + 1,
            retry=False,
        )

    def _store_documents(
        self, good: Sequence[_FetchResult], source: Source, report: IngestionReport, now: datetime
    ) -> None:
        if not good:
            return
        after: dict[str, ObjectState | None] = {}
        rows: list[dict[str, Any]] = []
        for item in good:
            made = list(_document_rows(item, source, now))
            rows += made
            before = self.stored.get(item.object_id, ObjectState(item.entry.key))
            report.changed += bool(before.documents)
            report.added += not before.documents
            documents = frozenset(str(row["doc_id"]) for row in made)
            self._writer.mark_dirty(documents | before.documents)
            entry = item.entry
            after[item.object_id] = ObjectState(
                entry.key,
                entry.etag,
                entry.size,
                extractor_version(),
                source.uri(entry.key),
                documents,
                refusals=before.refusals,
            )
        known = any(object_id in self.stored and self.stored[object_id].documents for object_id in after)
        self._replace(RAW_DOCUMENTS, RAW_SCHEMA, rows, after, fresh=not known)

    def _replace(
        self,
        stage: str,
        schema: pa.Schema,
        rows: list[dict[str, Any]],
        after: Mapping[str, ObjectState | None],
        *,
        fresh: bool,
    ) -> None:
        self._writer.ensure(stage, schema)
        self._writer.replace(
            stage,
            pa.Table.from_pylist(rows, schema=schema),
            key="doc_id",
            owner="object_id",
            owners=list(after),
            fresh=fresh,
            source_digest=self._become(after),
        )

    def _mark_stale(self, object_ids: Collection[str]) -> None:
        """Mark the stored versions of objects whose newer versions are unreadable."""
        old = [i for i in object_ids if i in self.stored and self.stored[i].documents and not self.stored[i].stale]
        if old:
            self._writer.mark_dirty(doc_id for object_id in old for doc_id in self.stored[object_id].documents)
            noted = self._become({object_id: replace(self.stored[object_id], stale=True) for object_id in old})
            self._writer.update(RAW_DOCUMENTS, sql_in("object_id", old), {"stale": True}, source_digest=noted)

    def _become(self, after: Mapping[str, ObjectState | None]) -> str:
        """Update the stored state to what the next commit writes, and return the digest to record with it."""
        for object_id, stored in after.items():
            before = self.stored.pop(object_id, None)
            if before is not None:
                self._survey.count(before, -1)
                if before.seen[0]:
                    self._digest.remove(listing_line(before.entry))
            if stored is not None and (stored.documents or stored.refusals):
                self.stored[object_id] = stored
                self._survey.count(stored, 1)
                if stored.seen[0]:
                    self._digest.add(listing_line(stored.entry))
        return str(self._digest)


def _refused(item: _FetchResult) -> dict[str, tuple[QuarantineReason, str]]:
    """Return the reasons to quarantine an object, by part."""
    if item.reading is None:
        return {"": (item.reason, item.detail)}
    return {part.name: (part.reason, part.detail) for part in item.reading.refused}


def _document_rows(item: _FetchResult, source: Source, now: datetime) -> Iterable[dict[str, Any]]:
    assert item.reading is not None  # noqa: S101  # the caller checked it
    entry = item.entry
    for part in item.reading.parts:
        document = part.document
        yield {
            "doc_id": document_id(entry.key, part.name),
            "object_id": item.object_id,
            "key": entry.key,
            "part": part.name,
            "source": source.uri(entry.key) + (f"#{quote(part.name)}" if part.name else ""),
            "etag": entry.etag,
            "size": entry.size,
            "modified_at": entry.modified_at,
            "type": document.media_type,
            "title": document.title,
            "text": document.text,
            "blocks": [
                {"kind": b.kind.value, "start": b.start, "end": b.end, "level": b.level, "page": b.page}
                for b in document.blocks
            ],
            "content_hash": content_hash(document),
            "extractor": extractor_version(),
            "extracted_at": now,
            "stale": False,
        }


def content_hash(document: ExtractedDocument) -> str:
    """Return the hash of title, text and structure, which is the same for every format."""
    digest = hashlib.sha256()
    for part in (document.title, document.text):
        digest.update(f"{len(part)}:".encode())
        digest.update(part.encode())
    for block in document.blocks:
        digest.update(f"{block.kind.value},{block.start},{block.end},{block.level},{block.page};".encode())
    return digest.hexdigest()[:32]
