"""Evaluate the retrieval of a shard's table: golden questions, the recall of the vector index, and the verdict.

The table's head and the published version answer the same questions by vector, text and hybrid search, like in serving.
The last `records.KEPT` evaluations of every shard are kept in the lake.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from rag_assets.evaluation.golden_questions import GoldenSet, read_golden
from rag_assets.evaluation.index_recall import MeasuredIndex, Vector, index_recall
from rag_assets.evaluation.known_items import missed_items
from rag_assets.evaluation.metrics import Places, ResolvedQuestion, expectations, summarize
from rag_assets.evaluation.ranking import places
from rag_assets.evaluation.records import Evaluation, Record, read_record, replace_evaluations, update_record
from rag_assets.evaluation.verdict import Quality, judge
from rag_assets.storage.lake import Lake, Table
from rag_assets.storage.schemas import RAW_DOCUMENTS
from rag_assets.storage.search_indexes import chunks_by_language, table_fingerprint
from rag_serving.errors import RagError, first_line
from rag_serving.lake.catalog_entry import Publication, read_catalog_entry
from rag_serving.lake.embedders.base import Embedder, EmbedderIdentity
from rag_serving.lake.embedders.hosted import hosted_name
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.lance_errors import LANCE_ERRORS
from rag_serving.lake.search.plan import Target, main_languages, publication_target
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS, TABLE_FORMAT

_LOST_SHOWN = 3
"""Lost questions in the error of a stopped publish; the check's metadata lists them all."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """The result of an evaluation. Problems prevent publishing, warnings do not."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    """None if there was nothing to measure; `reason` says why."""
    reason: str = ""
    golden: GoldenSet = field(default_factory=GoldenSet)
    gone: tuple[str, ...] = ()
    """Documents of golden questions that are no longer in the source."""
    missed: tuple[str, ...] = ()
    """Questions without an expected passage in the first ten of the head's hybrid search."""
    lost: tuple[str, ...] = ()
    """Questions that the published version answers in the first ten passages, but the head does not."""
    history: tuple[Evaluation, ...] = ()
    """Newest first, including this one."""


def assess(
    lake: Lake, shard: Shard, identity: EmbedderIdentity, quality: Quality, *, run_id: str, again: bool = False
) -> Assessment:
    """Measure the head of the shard's table and the published version, and judge the head.

    If the head is published or has passed before, nothing is measured unless `again`. Raises `SourceUnavailable` if the
    golden questions cannot be read.
    """
    table = lake.open(SHARDS, shard)
    if table is None:
        return Assessment(reason="the shard has no table")
    found = read_catalog_entry(lake.objects, shard)
    current = found[0].current if found is not None else None
    if current is not None and current.version == table.version and not again:
        return Assessment(reason="the table's head is published")
    if table_fingerprint(table) != identity.fingerprint:
        return Assessment(reason="its vectors come from another embedder")
    older = None if current is None or current.version == table.version else current
    record = read_record(lake, shard)
    last = record.evaluations[0] if record.evaluations else None
    head = (table.version, None if older is None else older.version, identity.fingerprint)
    if last is not None and not again and (last.version, last.compared_with, last.fingerprint) == head:
        problems, warnings = judge(last, quality)
        # A rejected version is measured again: the questions may have been corrected.
        if not problems:
            return Assessment((), warnings, last, history=record.evaluations)
    return _measured(lake, shard, table, older, identity, quality, record, run_id)


def _measured(
    lake: Lake,
    shard: Shard,
    table: Table,
    older: Publication | None,
    identity: EmbedderIdentity,
    quality: Quality,
    record: Record,
    run_id: str,
) -> Assessment:
    golden, asked, gone = GoldenSet(), tuple[ResolvedQuestion, ...](), tuple[str, ...]()
    if quality.source is not None and quality.embedder is not None:
        source = quality.source()
        golden = read_golden(source, shard)
        asked, gone = expectations(lake.open(RAW_DOCUMENTS, shard), golden.questions, source)
    evaluation = Evaluation(
        at=datetime.now(UTC),
        run_id=run_id,
        version=table.version,
        fingerprint=identity.fingerprint,
        compared_with=None if older is None else older.version,
        questions=len(asked),
        gone=len(golden.questions) - len(asked),
        invalid=len(golden.invalid),
    )
    languages = main_languages(chunks_by_language(table))
    target = Target(
        SHARDS,
        shard.table_name,
        table.version,
        identity.fingerprint,
        TABLE_FORMAT,
        frozenset({shard.key}),
        name=f"shard {shard}",
        languages=languages,
        read=identity.reads,
    )
    if quality.embedder is not None and table.count_rows():
        asked_items, missed_names = missed_items(lake.uri, table, target, quality.embedder())
        evaluation = replace(evaluation, known_items=asked_items, known_items_missed=missed_names)
    vectors: list[Vector] = []
    warnings: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    if asked and quality.embedder is not None:
        vectors = _embedded(quality.embedder(), asked)
        head = _places(lake, table, target, asked, vectors)
        evaluation = replace(evaluation, head=summarize(asked, head))
        missed = tuple(question.question for question, now in zip(asked, head, strict=True) if not now.hybrid)
        before = _places_before(lake, shard, older, identity, asked, vectors)
        if isinstance(before, str):
            warnings = (before,)
        elif before is not None:
            evaluation = replace(evaluation, published=summarize(asked, before))
            lost = tuple(
                question.question
                for question, now, then in zip(asked, head, before, strict=True)
                if then.hybrid and not now.hybrid
            )
    earlier = [MeasuredIndex(each.index, each.index_recall) for each in record.evaluations]
    measured = index_recall(table, vectors, earlier)
    evaluation = replace(evaluation, index_recall=measured.recall, index=measured.index)
    problems, judged = judge(evaluation, quality)
    if problems and lost:
        more = f" and {len(lost) - _LOST_SHOWN} more" if len(lost) > _LOST_SHOWN else ""
        problems += (f"no longer answered: {', '.join(map(repr, lost[:_LOST_SHOWN]))}{more}",)
    # Recorded even if little was measured, so that `publish` does not repeat it.
    kept = update_record(lake, shard, lambda old: replace_evaluations(old, evaluation))
    return Assessment(problems, warnings + judged, evaluation, "", golden, gone, missed, lost, kept.evaluations)


def _embedded(embedder: Embedder, asked: Sequence[ResolvedQuestion]) -> list[Vector]:
    return [embedder.embed_query(question.question) for question in asked]


def _places_before(
    lake: Lake,
    shard: Shard,
    older: Publication | None,
    identity: EmbedderIdentity,
    asked: Sequence[ResolvedQuestion],
    vectors: Sequence[Vector],
) -> list[Places] | str | None:
    """Return what the published version finds; None if there is none, or the reason why it cannot be searched."""
    if older is None:
        return None
    table = lake.open(SHARDS, shard)
    if table is None:
        return None
    try:
        table.checkout(older.version)
        if older.fingerprint != identity.fingerprint:  # readers search each version with its own model
            allowed = (hosted_name(identity.model),)
            vectors = _embedded(load_embedder(lake.objects, older.fingerprint, hosted=allowed), asked)
        return _places(lake, table, publication_target(shard, older), asked, vectors)
    except (*LANCE_ERRORS, RagError) as error:
        return f"cannot compare with the published version {older.version}: {first_line(error)}"


def _places(
    lake: Lake, table: Table, target: Target, asked: Sequence[ResolvedQuestion], vectors: Sequence[Vector]
) -> list[Places]:
    if not table.count_rows():  # an empty table has no index to search
        return [Places((), (), ()) for _ in asked]
    return places(lake.uri, target, asked, vectors)
