"""The step from the source's listing to `raw_documents`: fetch and extract what is new or changed, delete what is gone.

What cannot be read goes to the quarantine table with its reason. An older good version of such a document stays, and is
marked as stale.
"""

import hashlib
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from rag_assets.extraction.registry import EXTRACTOR_VERSION, ParsedObject
from rag_assets.sources.base import ObjectGone, ObjectUnreadable, Source, SourceObject, list_shard, shard_of
from rag_assets.sources.listing_digest import ListingDigest
from rag_assets.stages.document_state import ObjectState, QuarantineState, plan, read_object_states
from rag_assets.storage.id_indexes import ensure_id_indexes, id_bounds, id_ranges
from rag_assets.storage.lake import Log, row_count
from rag_assets.storage.schemas import QUARANTINE, QUARANTINE_SCHEMA, RAW_DOCUMENTS, RAW_SCHEMA, document_id
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.shards import Shard
from rag_serving.lake.sql import sql_in

_BATCH_DOCUMENTS = 200
_BATCH_BYTES = 32 * 2**20
_BATCH_DELETES = 1000


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


Parse = Callable[[bytes, str], ParsedObject]
"""Reads the documents of one object: its bytes and key. Raises ExtractionError; must be safe between threads."""


def sync_documents(
    writer: ShardWriter,
    source: Source,
    read: Parse,
    limits: IngestionLimits,
    log: Log,
    *,
    keys: Sequence[str] = (),
) -> IngestionReport:
    """Bring `raw_documents` and `quarantine` of the shard to what the source lists now.

    With `keys`, only those objects are looked at, each by itself; keys outside the shard are ignored, and the whole
    shard is listed after all when nothing sure is known of it. Raises `SourceUnavailable` before anything is written
    when the listing fails, and `MassDeleteRefused` when it would delete all of the shard or more than
    `limits.max_delete_share` of it.
    """
    started = time.monotonic()
    shard = writer.shard
    named = sorted({key for key in keys if shard_of(key) == shard})
    if keys and writer.dirty is not None and writer.progress.source_digest:
        digest = ListingDigest.parse(writer.progress.source_digest)
        listing = [entry for entry in map(source.head, named) if entry is not None]
        todo = _compare(writer, [(sql_in("object_id", map(document_id, named)), listing)])
    else:
        listing = list_shard(source, shard)
        todo = _compare(writer, _parted(writer, listing))
        digest = todo.digest
    _guard_deletes(shard, row_count(writer.table(RAW_DOCUMENTS)), todo, limits)
    report = IngestionReport(listed=len(listing), unchanged=todo.unchanged, deleted=todo.deleted)
    tables = _Tables(writer, digest, todo)
    tables.delete(todo.delete)
    done = 0
    with ThreadPoolExecutor(limits.fetch_concurrency, thread_name_prefix="fetch") as pool:
        for batch in _batches(todo.fetch):
            found = list(pool.map(partial(_fetch, source, read, limits.max_document_bytes), batch))
            tables.look_up(document_id(entry.key) for entry in batch)
            tables.store([item for item in found if item is not None], source, report)
            done += len(batch)
            rate = done / max(time.monotonic() - started, 1e-9)
            log(f"{shard}: {done} of {len(todo.fetch)} documents read ({rate:.0f}/s)")
    tables.note_digest()
    for stage in (RAW_DOCUMENTS, QUARANTINE):
        ensure_id_indexes(writer, stage)
    report.documents = row_count(writer.table(RAW_DOCUMENTS))
    report.quarantined = row_count(writer.table(QUARANTINE))
    report.stale = todo.stale
    report.quarantine_reasons = {reason: count for reason, count in sorted(todo.reasons.items()) if count}
    report.seconds = time.monotonic() - started
    return report


@dataclass(slots=True)
class _Diff:
    """What a listing asks for, against tables that are looked at a part at a time."""

    fetch: list[SourceObject] = field(default_factory=list[SourceObject])
    delete: list[str] = field(default_factory=list[str])
    """Ids of objects that left the listing."""
    known: set[str] = field(default_factory=set[str])
    """Return the ids of those of both that the tables have."""
    unchanged: int = 0
    deleted: int = 0
    """Objects to delete that were read before, and their documents."""
    deleted_documents: int = 0
    digest: ListingDigest = field(default_factory=ListingDigest)
    """Of all that was looked at."""
    stale: int = 0
    """Stale documents of the objects looked at, kept up to date by `_Tables`; so are the reasons."""
    reasons: Counter[str] = field(default_factory=Counter[str])
    stored: dict[str, ObjectState] | None = None
    """What the tables hold, where one part was all."""

    def count(self, stored: ObjectState, times: int) -> None:
        """Count an object in, or with -1 out."""
        self.stale += times * stored.stale * len(stored.documents)
        for refusal in stored.refusals.values():
            self.reasons[refusal.reason] += times


def _parted(writer: ShardWriter, listing: Sequence[SourceObject]) -> Iterable[tuple[str | None, list[SourceObject]]]:
    """The listing and the filter of the tables, by ranges of object ids, so that no part is larger than another."""
    rows = max(len(listing), *(row_count(writer.table(stage)) for stage in (RAW_DOCUMENTS, QUARANTINE)))
    bounds = id_bounds(rows)
    parts: list[list[SourceObject]] = [[] for _ in range(len(bounds) + 1)]
    for entry in listing:
        parts[bisect_right(bounds, document_id(entry.key))].append(entry)
    return list(zip(id_ranges("object_id", rows), parts, strict=True))


def _compare(writer: ShardWriter, parts: Iterable[tuple[str | None, list[SourceObject]]]) -> _Diff:
    """Compare each part of the listing with what the tables hold of it."""
    survey = _Diff()
    for number, (where, listing) in enumerate(parts):
        stored = read_object_states(writer.table(RAW_DOCUMENTS), writer.table(QUARANTINE), where)
        found = plan(listing, stored, EXTRACTOR_VERSION)
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
                survey.digest.add(known.entry)
        survey.stored = stored if number == 0 else None
    survey.fetch.sort(key=lambda entry: entry.key)
    return survey


def _guard_deletes(shard: Shard, total: int, todo: _Diff, limits: IngestionLimits) -> None:
    deleted = todo.deleted_documents
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
class _FetchResult:
    """What became of one object: a reading, or the reason why there is none."""

    entry: SourceObject
    reading: ParsedObject | None = None
    reason: QuarantineReason = QuarantineReason.MALFORMED
    detail: str = ""
    fetched: int = 0

    @property
    def object_id(self) -> str:
        return document_id(self.entry.key)


def _fetch(source: Source, read: Parse, limit: int, entry: SourceObject) -> _FetchResult | None:
    """Fetch and read one object; None if it was deleted since it was listed: the next listing no longer has it."""
    if entry.size > limit:
        detail = f"{entry.size} bytes; RAG_MAX_DOCUMENT_BYTES is {limit}"
        return _FetchResult(entry, reason=QuarantineReason.TOO_LARGE, detail=detail)
    try:
        fetched = source.fetch(entry.key)
    except ObjectGone:
        return None
    except ObjectUnreadable as error:
        return _FetchResult(entry, reason=QuarantineReason.FETCH_FAILED, detail=str(error))
    size = len(fetched.data)
    seen = SourceObject(entry.key, fetched.etag, size, fetched.modified_at)
    try:
        return _FetchResult(seen, read(fetched.data, entry.key), fetched=size)
    except ExtractionError as error:
        return _FetchResult(seen, reason=error.reason, detail=error.detail, fetched=size)


class _Tables:
    """`raw_documents` and `quarantine` of the shard, with what they hold of the objects at hand."""

    def __init__(self, writer: ShardWriter, digest: ListingDigest, survey: _Diff) -> None:
        self._writer = writer
        self._digest = digest
        self._survey = survey
        self.stored = survey.stored or {}

    def look_up(self, object_ids: Iterable[str]) -> None:
        """Have what the tables hold of these objects at hand."""
        if self._survey.stored is None:
            known = [object_id for object_id in object_ids if object_id in self._survey.known]
            documents, quarantine = self._writer.table(RAW_DOCUMENTS), self._writer.table(QUARANTINE)
            self.stored = read_object_states(documents, quarantine, sql_in("object_id", known)) if known else {}

    def note_digest(self) -> None:
        """Note the digest also where nothing was written; it may be the first of this shard."""
        if self._writer.progress.source_digest != str(self._digest):
            self._writer.update_progress(source_digest=str(self._digest))

    def delete(self, object_ids: Sequence[str]) -> None:
        """Forget objects that left the source."""
        for at in range(0, len(object_ids), _BATCH_DELETES):
            batch = object_ids[at : at + _BATCH_DELETES]
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
        """Write what became of a batch of objects.

        An object is at worst one that was never read between the commits: what is refused is marked as stale before the
        quarantine says that it was seen, and the quarantine goes before the documents.
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
        self._writer.ensure(QUARANTINE, QUARANTINE_SCHEMA)
        self._writer.replace(
            QUARANTINE,
            pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA),
            key="doc_id",
            owner="object_id",
            owners=list(after),
            fresh=not known,
            source_digest=self._become(after),
        )

    @staticmethod
    def _refusal(
        item: _FetchResult, part: str, reason: QuarantineReason, detail: str, before: ObjectState, now: datetime
    ) -> QuarantineState:
        last = before.refusals.get(part)
        return QuarantineState(
            doc_id=document_id(item.entry.key, part),
            etag=item.entry.etag,
            size=item.entry.size,
            extractor=EXTRACTOR_VERSION,
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
                entry.key, entry.etag, entry.size, EXTRACTOR_VERSION, documents, refusals=before.refusals
            )
        known = any(object_id in self.stored and self.stored[object_id].documents for object_id in after)
        self._writer.ensure(RAW_DOCUMENTS, RAW_SCHEMA)
        self._writer.replace(
            RAW_DOCUMENTS,
            pa.Table.from_pylist(rows, schema=RAW_SCHEMA),
            key="doc_id",
            owner="object_id",
            owners=list(after),
            fresh=not known,
            source_digest=self._become(after),
        )

    def _mark_stale(self, object_ids: Collection[str]) -> None:
        """Mark the older versions that stay because the newer ones cannot be read."""
        old = [i for i in object_ids if i in self.stored and self.stored[i].documents and not self.stored[i].stale]
        if old:
            self._writer.mark_dirty(doc_id for object_id in old for doc_id in self.stored[object_id].documents)
            noted = self._become({object_id: replace(self.stored[object_id], stale=True) for object_id in old})
            self._writer.update(RAW_DOCUMENTS, sql_in("object_id", old), {"stale": True}, source_digest=noted)

    def _become(self, after: Mapping[str, ObjectState | None]) -> str:
        """Take over what a commit will make of these objects, and give the digest that belongs to it."""
        for object_id, stored in after.items():
            before = self.stored.pop(object_id, None)
            if before is not None:
                self._survey.count(before, -1)
                if before.seen[0]:
                    self._digest.remove(before.entry)
            if stored is not None and (stored.documents or stored.refusals):
                self.stored[object_id] = stored
                self._survey.count(stored, 1)
                if stored.seen[0]:
                    self._digest.add(stored.entry)
        return str(self._digest)


def _refused(item: _FetchResult) -> dict[str, tuple[QuarantineReason, str]]:
    """What of an object goes to quarantine, by part."""
    if item.reading is None:
        return {"": (item.reason, item.detail)}
    return {part.name: (part.reason, part.detail) for part in item.reading.refused}


def _document_rows(item: _FetchResult, source: Source, now: datetime) -> Iterable[dict[str, Any]]:
    assert item.reading is not None  # noqa: S101  # chosen by that
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
            "extractor": EXTRACTOR_VERSION,
            "extracted_at": now,
            "stale": False,
        }


def content_hash(document: ExtractedDocument) -> str:
    """Identity of what was read: title, text and structure, whatever format it came in."""
    digest = hashlib.sha256()
    for part in (document.title, document.text):
        digest.update(f"{len(part)}:".encode())
        digest.update(part.encode())
    for block in document.blocks:
        digest.update(f"{block.kind.value},{block.start},{block.end},{block.level},{block.page};".encode())
    return digest.hexdigest()[:32]
