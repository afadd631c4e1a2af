"""How well a shard's table is searched: metrics on golden questions and of the vector index, and what they forbid.

The table's head and the published version answer the same questions, by vectors and by vectors and words together, as
serving searches. What was measured is kept in the lake, the last `KEPT` of every shard.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rag_assets.golden import Golden, GoldenQuestion, read_golden
from rag_assets.index_recall import CUTOFF, MeasuredIndex, index_recall, nearest
from rag_assets.indexing import table_fingerprint
from rag_assets.lake import RAW_DOCUMENTS, Lake, document_id, read
from rag_assets.sources import Source
from rag_serving.catalog import Publication, read_catalog_entry
from rag_serving.embedding import Embedder, EmbedderIdentity, load_embedder
from rag_serving.errors import RagError, WriteConflict
from rag_serving.objects import ABSENT
from rag_serving.shards import Shard
from rag_serving.tables import SHARDS, sql_in

if TYPE_CHECKING:
    from lancedb.table import Table

    from rag_assets.index_recall import Vector

EVALUATIONS = "evaluations"
KEPT = 50
FEWEST_QUESTIONS = 5
"""Fewer only warn: one of four is a quarter of the score, so that a single answer that moves down a place, which may
be chance, would keep a shard from its readers."""
_FUSION = 60
_LOOKED_FOR_AT_ONCE = 8
_PUTS = 10


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over questions, each from 0 to 1, of rankings of ten passages."""

    hit_at_1: float
    hit_at_5: float
    hit_at_10: float
    """Share of questions with an expected passage among the first ten."""
    mrr_at_10: float
    """Reciprocal of the first such passage's place."""
    ndcg_at_10: float
    """Of documents: each counts once, at the place of its first such passage."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One version of a table, searched in both ways."""

    vector: Scores
    hybrid: Scores


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured of one version of a shard's table."""

    at: datetime
    run_id: str
    version: int
    fingerprint: str
    compared_with: int | None = None
    """The version that was published at the time; None where there was none, or the same."""
    questions: int = 0
    """Golden questions asked."""
    gone: int = 0
    """Those left out because their documents are no longer in the source."""
    invalid: int = 0
    head: Retrieval | None = None
    published: Retrieval | None = None
    index: str = ""
    """Which vector index it was; empty where there is none, and every vector is compared."""
    index_recall: float | None = None
    """Share of the true ten nearest that a search by the index finds."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What a shard's evaluation needs beyond its tables, and what it must come to."""

    embedder: Callable[[], Embedder] | None = None
    """Loads the configured embedder; without it nothing is embedded."""
    source: Callable[[], Source] | None = None
    """Where golden questions lie; without it none are asked."""
    max_drop: float = 0.05
    """By how much the head's hit@10 and nDCG@10 may be below the published version's."""
    min_recall: float = 0.9
    """The least recall of the vector index; 0 lets any pass."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a look at a shard's retrieval came to. Problems keep the head from readers, warnings do not."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    """None where nothing was to be measured; `reason` says why."""
    reason: str = ""
    golden: Golden = field(default_factory=Golden)
    gone: tuple[str, ...] = ()
    """Documents that golden questions name and the source no longer has."""
    lost: tuple[str, ...] = ()
    """Questions that the published version answers within the first ten passages, and the head does not."""
    history: tuple[Evaluation, ...] = ()
    """Newest first, this one included."""


class Record(BaseModel):
    """The object of a shard in the lake (``evaluations/<table>.json``)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = 1
    vectors_sampled: int = 0
    """Version of the table of which a sample of vectors was last found to be that of its texts."""
    evaluations: tuple[Evaluation, ...] = ()
    """Newest first."""


def assess(
    lake: Lake, shard: Shard, identity: EmbedderIdentity, quality: Quality, *, run_id: str, again: bool = False
) -> Assessment:
    """Measure the head of the shard's table beside the published version, and judge it.

    Nothing is read or embedded where the head is what is published, or was measured and found good already, unless
    `again`. Raises `SourceUnavailable` when the golden questions cannot be read.
    """
    table = lake.open(SHARDS, shard)
    if table is None:
        return Assessment(reason="the shard has no table")
    found = read_catalog_entry(lake.objects, shard)
    current = found[0].current if found is not None else None
    if current is not None and current.version == table.version and not again:
        return Assessment(reason="the table is what is published")
    if table_fingerprint(table) != identity.fingerprint:
        return Assessment(reason="its vectors are of another embedder")
    older = None if current is None or current.version == table.version else current
    record = read_record(lake, shard)
    last = record.evaluations[0] if record.evaluations else None
    if last is not None and not again and _is_of(last, table, older):
        problems, warnings = judge(last, quality)
        # One that was refused is measured again: the questions may have been put right.
        if not problems:
            return Assessment((), warnings, last, history=record.evaluations)
    return _measured(lake, shard, table, older, identity, quality, record, run_id)


def judge(evaluation: Evaluation, quality: Quality) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Problems and warnings. Pure."""
    drops: list[str] = []
    if evaluation.head is not None and evaluation.published is not None:
        head, before = evaluation.head.hybrid, evaluation.published.hybrid
        for name, now, then in (
            ("hit@10", head.hit_at_10, before.hit_at_10),
            ("nDCG@10", head.ndcg_at_10, before.ndcg_at_10),
        ):
            if then - now > quality.max_drop + 1e-9:
                drops.append(
                    f"{name} of {evaluation.questions} golden questions fell from {then:.3f} to {now:.3f} "
                    f"(RAG_QUALITY_MAX_DROP is {quality.max_drop:g})"
                )
    recall: list[str] = []
    if evaluation.index_recall is not None and evaluation.index_recall < quality.min_recall - 1e-9:
        recall.append(
            f"the vector index finds {evaluation.index_recall:.3f} of the nearest passages "
            f"(RAG_QUALITY_MIN_RECALL is {quality.min_recall:g})"
        )
    warnings = [f"{evaluation.invalid} lines of golden questions are not read"] if evaluation.invalid else []
    if evaluation.questions < FEWEST_QUESTIONS:
        return tuple(recall), tuple(warnings + [f"{drop}; too few questions to block" for drop in drops])
    return tuple(drops + recall), tuple(warnings)


def _is_of(evaluation: Evaluation, table: Table, older: Publication | None) -> bool:
    """Whether it was measured of the table as it is now, beside what is published now."""
    compared_with = None if older is None else older.version
    return (evaluation.version, evaluation.compared_with, evaluation.fingerprint) == (
        table.version,
        compared_with,
        table_fingerprint(table),
    )


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
    golden, asked, gone = Golden(), tuple[Asked, ...](), tuple[str, ...]()
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
    vectors: list[Vector] = []
    warnings: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    if asked and quality.embedder is not None:
        vectors = _embedded(quality.embedder(), asked)
        head = [places(table, question, vector) for question, vector in zip(asked, vectors, strict=True)]
        evaluation = replace(evaluation, head=_retrieval(asked, head))
        before = _places_before(lake, shard, older, identity, asked, vectors)
        if isinstance(before, str):
            warnings = (before,)
        elif before is not None:
            evaluation = replace(evaluation, published=_retrieval(asked, before))
            lost = tuple(
                question.question
                for question, now, then in zip(asked, head, before, strict=True)
                if then.hybrid and not now.hybrid
            )
    earlier = [MeasuredIndex(each.index, each.index_recall) for each in record.evaluations]
    measured = index_recall(table, vectors, earlier)
    evaluation = replace(evaluation, index_recall=measured.recall, index=measured.index)
    problems, judged = judge(evaluation, quality)
    # Kept also where there was little to measure: who publishes then need not look again.
    kept = keep_record(lake, shard, lambda old: replace_evaluations(old, evaluation))
    return Assessment(problems, warnings + judged, evaluation, "", golden, gone, lost, kept.evaluations)


@dataclass(frozen=True, slots=True)
class Asked:
    """A golden question as the tables know it."""

    question: str
    documents: tuple[frozenset[str], ...]
    """Ids that each expected document goes by in the table: its own, and those of what is attached to it."""
    quote: str = ""


def expectations(
    documents: Table | None, questions: Sequence[GoldenQuestion], source: Source
) -> tuple[tuple[Asked, ...], tuple[str, ...]]:
    """The questions to ask, and the keys of documents that are gone from shard and source.

    One that the source has and the shard has not is expected all the same: it is missing, not gone.
    """
    keys = {key for question in questions for key in question.documents}
    ids = _ids_by_key(documents, keys)
    missing = sorted(key for key in keys if key not in ids)
    with ThreadPoolExecutor(_LOOKED_FOR_AT_ONCE, thread_name_prefix="golden") as pool:
        there = list(pool.map(partial(_is_in_source, source), missing)) if missing else []
    gone = {key for key, found in zip(missing, there, strict=True) if not found}
    asked: list[Asked] = []
    for question in questions:
        expected = [
            ids.get(key, frozenset([document_id(*_parted(key))])) for key in question.documents if key not in gone
        ]
        if expected:
            asked.append(Asked(question.question, tuple(dict.fromkeys(expected)), question.quote))
    return tuple(asked), tuple(sorted(gone))


def _parted(key: str) -> tuple[str, str]:
    """Key of the source object, and the name of something attached to it."""
    name, _, part = key.partition("#")
    return name, part


def _is_in_source(source: Source, key: str) -> bool:
    return source.head(key) is not None or ("#" in key and source.head(_parted(key)[0]) is not None)


def _ids_by_key(documents: Table | None, keys: set[str]) -> dict[str, frozenset[str]]:
    """The ids of those of the documents that the shard has read. A part is named alone; a whole has all its parts."""
    if documents is None or not keys:
        return {}
    wanted = sorted({document_id(key) for key in keys} | {document_id(_parted(key)[0]) for key in keys})
    rows = read(documents, ["doc_id", "key", "part"], where=sql_in("object_id", wanted)).to_pylist()
    ids: dict[str, set[str]] = {}
    for row in rows:
        for key in {row["key"], f"{row['key']}#{row['part']}" if row["part"] else row["key"]}:
            ids.setdefault(key, set()).add(row["doc_id"])
    return {key: frozenset(ids[key]) for key in keys & ids.keys()}


@dataclass(frozen=True, slots=True)
class Passage:
    """A row that a search found."""

    chunk_id: str
    doc_id: str
    text: str


def passages(table: Table, question: str, vector: Vector, k: int) -> Mapping[str, list[Passage]]:
    """The `k` best passages by ``vector``, by ``text`` and by ``hybrid`` of both, searched as serving does."""
    from lancedb.query import MatchQuery

    if not table.count_rows():
        return {"vector": [], "text": [], "hybrid": []}
    columns = ["chunk_id", "doc_id", "text"]
    by_distance = nearest(table, vector).limit(k).select([*columns, "_distance"])
    words: Any = MatchQuery(question, "text")  # pyright: ignore[reportCallIssue]  # the rest has defaults
    matching: Any = table.search(words, query_type="fts").limit(k).select([*columns, "_score"])
    by_vector: list[dict[str, Any]] = by_distance.to_list()
    by_vector.sort(key=lambda row: (row["_distance"], row["chunk_id"]))
    by_text: list[dict[str, Any]] = matching.to_list()
    by_text.sort(key=lambda row: (-row["_score"], row["chunk_id"]))
    rows = {row["chunk_id"]: row for row in (*by_vector, *by_text)}
    ids = fused([[row["chunk_id"] for row in by_vector], [row["chunk_id"] for row in by_text]])[:k]
    return {
        "vector": [_passage(row) for row in by_vector],
        "text": [_passage(row) for row in by_text],
        "hybrid": [_passage(rows[chunk_id]) for chunk_id in ids],
    }


def fused(rankings: Sequence[Sequence[str]], constant: float = _FUSION) -> list[str]:
    """Ids by the sum of ``1 / (constant + place)`` over the rankings, best first."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for place, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (constant + place)
    return sorted(scores, key=lambda item: (-scores[item], item))


def _passage(row: Mapping[str, Any]) -> Passage:
    return Passage(row["chunk_id"], row["doc_id"], row["text"])


@dataclass(frozen=True, slots=True)
class Places:
    """Where, from 1, the first passage of each expected document stands among the first ten; those found alone."""

    vector: tuple[int, ...]
    hybrid: tuple[int, ...]


def places(table: Table, asked: Asked, vector: Vector) -> Places:
    """Search the table for one question."""
    found = passages(table, asked.question, vector, CUTOFF)
    return Places(places_in(found["vector"], asked), places_in(found["hybrid"], asked))


def places_in(ranking: Sequence[Passage], asked: Asked) -> tuple[int, ...]:
    """Where the expected documents stand in a ranking of passages."""
    quote = " ".join(asked.quote.split())
    at: dict[frozenset[str], int] = {}
    for place, passage in enumerate(ranking[:CUTOFF], start=1):
        if quote and quote not in " ".join(passage.text.split()):
            continue
        for ids in asked.documents:
            if passage.doc_id in ids:
                at.setdefault(ids, place)
    return tuple(sorted(at.values()))


def scores(found: Sequence[tuple[tuple[int, ...], int]]) -> Scores:
    """The means over questions, of each the places found and how many documents were expected. Pure."""
    count = max(len(found), 1)

    def hits(k: int) -> float:
        return sum(bool(at) and at[0] <= k for at, _ in found) / count

    def gain(at: Sequence[int]) -> float:
        return sum(1 / math.log2(place + 1) for place in at)

    return Scores(
        hit_at_1=hits(1),
        hit_at_5=hits(5),
        hit_at_10=hits(CUTOFF),
        mrr_at_10=sum(1 / at[0] for at, _ in found if at) / count,
        ndcg_at_10=sum(gain(at) / gain(range(1, min(expected, CUTOFF) + 1)) for at, expected in found) / count,
    )


def _retrieval(asked: Sequence[Asked], found: Sequence[Places]) -> Retrieval:
    expected = [len(question.documents) for question in asked]
    return Retrieval(
        vector=scores([(at.vector, count) for at, count in zip(found, expected, strict=True)]),
        hybrid=scores([(at.hybrid, count) for at, count in zip(found, expected, strict=True)]),
    )


def _embedded(embedder: Embedder, asked: Sequence[Asked]) -> list[Vector]:
    return [embedder.embed_query(question.question) for question in asked]


def _places_before(
    lake: Lake,
    shard: Shard,
    older: Publication | None,
    identity: EmbedderIdentity,
    asked: Sequence[Asked],
    vectors: Sequence[Vector],
) -> list[Places] | str | None:
    """What the published version finds; None where there is none, or why it cannot be asked."""
    if older is None:
        return None
    table = lake.open(SHARDS, shard)
    try:
        if table is None:
            return None
        table.checkout(older.version)
        if older.fingerprint != identity.fingerprint:  # each version by the model that readers search it with
            vectors = _embedded(load_embedder(lake.objects, older.fingerprint), asked)
        return [places(table, question, vector) for question, vector in zip(asked, vectors, strict=True)]
    except (OSError, RuntimeError, ValueError, RagError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        return f"version {older.version}, which is published, cannot be searched to compare with: {reason}"


def read_record(lake: Lake, shard: Shard) -> Record:
    """What is kept of the shard's evaluations; one that cannot be read begins anew."""
    found = lake.objects.get(_key(shard))
    return Record() if found is None else _parsed(found.data)


def replace_evaluations(record: Record, newest: Evaluation) -> Record:
    """The record with one evaluation more, and without those that are too old."""
    return record.model_copy(update={"evaluations": (newest, *record.evaluations)[:KEPT]})


def keep_record(lake: Lake, shard: Shard, change: Callable[[Record], Record]) -> Record:
    """Change the shard's record; whoever writes it at the same time loses nothing. Raises `WriteConflict`."""
    for attempt in range(1, _PUTS + 1):
        found = lake.objects.get(_key(shard))
        record = change(Record() if found is None else _parsed(found.data))
        try:
            lake.objects.put(
                _key(shard), record.model_dump_json(indent=1).encode(), expect=ABSENT if found is None else found.etag
            )
        except WriteConflict:
            if attempt == _PUTS:
                raise
            time.sleep(random.uniform(0, min(0.01 * 2**attempt, 1.0)))  # noqa: S311 - others were quicker
        else:
            return record
    raise AssertionError("the last try returns or raises")


def _key(shard: Shard) -> str:
    return f"{EVALUATIONS}/{shard.table_name}.json"


def _parsed(data: bytes) -> Record:
    try:
        return Record.model_validate_json(data)
    except ValidationError:
        return Record()
