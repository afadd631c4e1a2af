"""Checks of a shard's new table, and what puts a version before readers by one write of the shard's catalog object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rag_assets.errors import ChecksFailed, LeaseLost, VersionNotKept
from rag_assets.evaluation import Evaluation, Quality, assess, keep_record, read_record
from rag_assets.indexing import UNINDEXED_ROWS, ContentDigest, table_fingerprint, unindexed_rows
from rag_assets.lake import CHUNKS, EMBEDDINGS, QUARANTINE, RAW_DOCUMENTS, Lake, columns, read, scan, values
from rag_assets.lookups import id_ranges
from rag_assets.writing import ShardWriter
from rag_serving.catalog import HISTORY_LENGTH, CatalogEntry, Hold, Publication, catalog_key, read_catalog_entry
from rag_serving.embedding import Embedder, EmbedderIdentity
from rag_serving.errors import WriteConflict
from rag_serving.objects import ABSENT
from rag_serving.shards import Shard
from rag_serving.tables import SHARDS, TABLE_FORMAT, sql_in

if TYPE_CHECKING:
    from lancedb.table import Table

_SAMPLED_VECTORS = 1000
_COMPARED_ROWS = 32
"""Rows of a new table whose vectors are compared with those that `embeddings` has of their texts."""
_EMBEDDED_ROWS = 8
"""Those of them whose texts are embedded anew: a tenth of a second here, one call where the model is behind an API."""
_SAME_TEXT = 0.98
"""Least cosine of two vectors of one text. Batches, precisions and runtimes of one model agree to 0.999, an API's model
from day to day nearly so; two different passages come this near only if they say the same."""
_TEXTS_AT_ONCE = 64
_MOST_NAMED = 20
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


def check_coverage(lake: Lake, shard: Shard, doc_ids: Sequence[str] | None = None) -> Verdict:
    """Whether the passages of each document hold all of its text but white space, and were cut from that text.

    `rows_reconcile` cannot tell: it takes what was cut for granted. With `doc_ids`, only those documents are read.
    """
    raw, cut = lake.open(RAW_DOCUMENTS, shard), lake.open(CHUNKS, shard)
    documents = 0
    lost: list[tuple[str, int]] = []
    if doc_ids is None:
        ranges = id_ranges("doc_id", max(_count(raw), _count(cut)))
    else:
        ranges = [sql_in("doc_id", doc_ids)] if doc_ids else []
    for where in ranges:
        spans = _spans(cut, where)
        for batch in _texts(raw, where):
            for doc_id, key, text, content in columns(batch, "doc_id", "key", "text", "content_hash"):
                documents += 1
                missing = uncovered(text, sorted(spans.get((doc_id, content), ())))
                if missing:
                    lost.append((key, missing))
    if not lost:
        return Verdict((), documents, _count(cut))
    named = ", ".join(f"{key} ({missing} characters)" for key, missing in sorted(lost)[:_MOST_NAMED])
    return Verdict((f"text of {len(lost)} documents is in no passage: {named}",), documents, _count(cut))


def uncovered(text: str, spans: Iterable[tuple[int, int]]) -> int:
    """Characters of the text, white space not counted, outside the spans, which come in the order of their starts."""
    lost = end = 0
    for start, stop in spans:
        if start > end:
            lost += len("".join(text[end:start].split()))
        end = max(end, stop)
    return lost + len("".join(text[end:].split()))


def check_vectors(
    lake: Lake,
    shard: Shard,
    identity: EmbedderIdentity,
    load: Callable[[], Embedder] | None = None,
    doc_ids: Sequence[str] | None = None,
) -> Verdict:
    """Whether the vectors are of the configured embedder and of unit length (a sample), and the indexes cover them.

    Of a table that is not what is published, a few rows are compared with `chunks` and `embeddings`, and with `load`
    some of their texts embedded anew: at least half of them of the documents `doc_ids`, where any are named.
    """
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
    if not problems and not _is_sampled(lake, shard, table.version):
        problems += _sample_problems(lake, shard, table, identity, load, doc_ids or ())
        if not problems and load is not None:
            keep_record(lake, shard, lambda record: record.model_copy(update={"vectors_sampled": table.version}))
    return Verdict(tuple(problems), chunks=table.count_rows())


def _is_sampled(lake: Lake, shard: Shard, version: int) -> bool:
    """Whether that version of the table is published, or its sample was found good already."""
    found = read_catalog_entry(lake.objects, shard)
    if found is not None and found[0].current.version == version:
        return True
    return read_record(lake, shard).vectors_sampled == version


def _sample_problems(
    lake: Lake,
    shard: Shard,
    table: Table,
    identity: EmbedderIdentity,
    load: Callable[[], Embedder] | None,
    doc_ids: Sequence[str],
) -> list[str]:
    cut, embeddings = lake.open(CHUNKS, shard), lake.open(EMBEDDINGS, shard, fingerprint=identity.fingerprint)
    rows = _sampled_rows(table, doc_ids)
    if not rows or cut is None or embeddings is None:  # `check_rows` has more to say of that
        return []
    where = sql_in("doc_id", {row["doc_id"] for row in rows})
    where += f" AND {sql_in('chunk_id', [row['chunk_id'] for row in rows])}"
    names = ["chunk_id", "embed_hash", "context", "text"]
    chunks = {row["chunk_id"]: row for row in read(cut, names, where=where).to_pylist()}
    rows = [row for row in rows if row["chunk_id"] in chunks]
    hashes = {chunks[row["chunk_id"]]["embed_hash"] for row in rows}
    found = read(embeddings, ["embed_hash", "vector"], where=sql_in("embed_hash", hashes)).to_pylist()
    vectors = {row["embed_hash"]: row["vector"] for row in found}
    problems: list[str] = []
    texts = sum(row["text"] != chunks[row["chunk_id"]]["text"] for row in rows)
    if texts:
        problems.append(f"{texts} of {len(rows)} sampled rows have another text than their chunk")
    strange = sum(row["vector"] != vectors.get(chunks[row["chunk_id"]]["embed_hash"]) for row in rows)
    if strange:
        problems.append(f"{strange} of {len(rows)} sampled rows have another vector than embeddings has of their text")
    if rows and load is not None and not problems:
        # The shorter half of twice as many costs a third, and shows a mix-up as well.
        shortest = sorted(rows[: 2 * _EMBEDDED_ROWS], key=lambda row: len(row["text"]))[:_EMBEDDED_ROWS]
        embedded = [chunks[row["chunk_id"]]["context"] + row["text"] for row in shortest]
        lowest = _lowest_cosine(load(), embedded, [row["vector"] for row in shortest])
        if lowest < _SAME_TEXT:
            problems.append(f"a sampled vector is not that of its text (cosine {lowest:.3f}, {_SAME_TEXT} at least)")
    return problems


def _lowest_cosine(embedder: Embedder, texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> float:
    """Of the vectors with those of their texts, embedded anew."""
    anew = embedder.embed_documents(texts)
    have = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(anew, axis=1) * np.linalg.norm(have, axis=1)
    return float(((anew * have).sum(axis=1) / np.maximum(lengths, 1e-9)).min())


def _sampled_rows(table: Table, doc_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Some rows, the same of the same version: those of a few of the documents in turn with others from everywhere."""
    names = ["chunk_id", "doc_id", "text", "vector"]
    count = min(_COMPARED_ROWS, table.count_rows())
    offsets = [table.count_rows() * number // count for number in range(count)]
    if not offsets:
        return []
    everywhere: list[dict[str, Any]] = table.take_offsets(offsets).select(names).to_arrow().to_pylist()
    # The first are embedded, and must not all be of the oldest rows.
    everywhere.sort(key=lambda row: row["chunk_id"])
    some = sorted(doc_ids)[:: max(1, len(doc_ids) // _EMBEDDED_ROWS)][:_EMBEDDED_ROWS]
    touched: dict[str, dict[str, Any]] = {}
    for row in sorted(read(table, names, where=sql_in("doc_id", some)).to_pylist(), key=lambda row: row["chunk_id"]):
        touched.setdefault(row["doc_id"], row)
    mixed = [row for pair in zip_longest(touched.values(), everywhere) for row in pair if row is not None]
    return list({row["chunk_id"]: row for row in mixed}.values())[:_COMPARED_ROWS]


@dataclass(frozen=True, slots=True)
class Published:
    """The publication that readers now see, and whether this call changed it; `held` says what keeps it from that."""

    publication: Publication
    changed: bool
    content_changed: bool
    held: Hold | None = None
    evaluation: Evaluation | None = None
    """What was measured of it, if anything was."""


def publish(
    writer: ShardWriter,
    identity: EmbedderIdentity,
    *,
    run_id: str,
    keep: int,
    pin_seconds: float,
    quality: Quality | None = None,
) -> Published:
    """Put the head of the shard's table before readers, unless they have exactly that already, or a hold forbids it.

    All checks are made here too, for whoever publishes without them; what they found of this very head is not measured
    or embedded again. Without `quality` nothing is embedded or searched. Raises `ChecksFailed` when the head is not
    consistent, or worse than what is published, and `LeaseLost` when a writer of a later epoch has published; readers
    keep the old version in both cases.
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
    touched = writer.touched
    load = None if quality is None else quality.embedder
    rows, vectors = check_rows(lake, shard, touched), check_vectors(lake, shard, identity, load, touched)
    problems = rows.problems + check_coverage(lake, shard, touched).problems + vectors.problems
    evaluation: Evaluation | None = None
    if not problems and quality is not None:
        assessed = assess(lake, shard, identity, quality, run_id=run_id)
        problems, evaluation = assessed.problems, assessed.evaluation
    if problems:
        raise ChecksFailed(f"shard {shard} is not published: {'; '.join(problems)}")
    if writer.touched is None:
        writer.note(content_digest=content_digest(table, identity.fingerprint))
    if entry is not None and entry.hold is not None:
        held = entry.hold.model_copy(update={"built_source_digest": source_digest})
        if held != entry.hold:
            _put(writer, entry.model_copy(update={"hold": held}), found)
        return Published(entry.current, changed=False, content_changed=False, held=held, evaluation=evaluation)
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
    return Published(publication, changed=True, content_changed=changed, evaluation=evaluation)


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


def _spans(chunks: Table | None, where: str | None) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Where the chunks of documents begin and end, by document and by the text that they were cut from."""
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
    names = ["doc_id", "content_hash", "start", "end"]
    for batch in scan(chunks, names, where=where):
        for doc_id, content, start, end in columns(batch, *names):
            spans.setdefault((doc_id, content), []).append((start, end))
    return spans


def _texts(documents: Table | None, where: str | None) -> Iterator[pa.RecordBatch]:
    """Few at a time: a text may be as long as a book."""
    if documents is None:
        return
    query = documents.search().select(["doc_id", "key", "text", "content_hash"])
    yield from (query if where is None else query.where(where)).to_batches(_TEXTS_AT_ONCE)


def _count(table: Table | None) -> int:
    return 0 if table is None else table.count_rows()


def _tag(table: Table, version: int) -> None:
    name = f"{_TAG}{version}"
    if name not in table.tags.list():
        table.tags.create(name, version)
