"""Measure retrieval on labelled questions, with the pipeline's indexes and the packaged model.

- SciFact: abstracts for the claims of its training split. A hash of the query's id selects the half for tuning or
  reporting.
- SQuAD: the paragraph about which a question was asked.
- Japanese: handbook pages cut by the pipeline's chunker, and questions written for this benchmark.
- XQuAD: SQuAD's questions and paragraphs in other languages, which the packaged model does not read. The hash of a
  question's id selects its half, too.

The three ways to search are those of serving. With --tune, other ways to fuse the two rankings are compared on
SciFact's tuning half.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ingest import export
from benchmarks.reporting import arguments, show

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from lancedb.table import Table

    from rag_serving.lake.embedders.base import Embedder
    from rag_serving.lake.search.plan import Target

    Vectors = npt.NDArray[np.float32]

CANDIDATES = 100
"""Passages of each ranking that are retrieved for tuning fusion."""
QUICK, QUICK_PAGES = 300, 20
_SAVE_EVERY = 512
JAPANESE = Path(__file__).with_name("japanese.jsonl")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the relevant documents with their scores."""

    id: str
    text: str
    relevant: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Task:
    """Passages by id, the document of each unless the passage is the document, and questions."""

    name: str
    passages: dict[str, str]
    questions: list[Question]
    document_of: dict[str, str] = field(default_factory=dict[str, str])

    def documents(self, ranking: Sequence[str]) -> list[str]:
        """Return the documents of a ranking, each at the rank of its first passage."""
        return list(dict.fromkeys(self.document_of.get(passage, passage) for passage in ranking))


def half(question: Question) -> str:
    """Return the half to which a question belongs, by a hash, independent of order and number."""
    return "tuning" if hashlib.sha256(question.id.encode()).digest()[0] % 2 else "reporting"


def read_scifact(folder: Path, limit: int | None) -> Task:
    """Read SciFact; a limit keeps only the first abstracts and the queries that they answer."""
    documents: dict[str, str] = {}
    for line in (folder / "corpus.jsonl").read_text("utf-8").splitlines()[:limit]:
        record = json.loads(line)
        documents[record["_id"]] = f"{record['title']} {record['text']}".strip()
    relevant: defaultdict[str, dict[str, int]] = defaultdict(dict)
    with (folder / "train.tsv").open(encoding="utf-8", newline="") as file:
        for judgement in csv.DictReader(file, delimiter="\t"):
            if judgement["corpus-id"] in documents and int(judgement["score"]) > 0:
                relevant[judgement["query-id"]][judgement["corpus-id"]] = int(judgement["score"])
    records = [json.loads(line) for line in (folder / "queries.train.jsonl").read_text("utf-8").splitlines()]
    questions = [Question(r["_id"], r["text"], relevant[r["_id"]]) for r in records if r["_id"] in relevant]
    return Task("SciFact", documents, questions)


def read_squad(folder: Path, limit: int | None) -> Task:
    """Read every paragraph and the questions that it answers; a limit keeps only the first paragraphs."""
    passages: dict[str, str] = {}
    questions: list[Question] = []
    for article in json.loads((folder / "dev-v2.0.json").read_text("utf-8"))["data"]:
        for number, paragraph in enumerate(article["paragraphs"]):
            if limit is not None and len(passages) == limit:
                break
            name = f"{article['title']}/{number}"
            passages[name] = paragraph["context"]
            questions += [
                Question(q["id"], q["question"], {name: 1}) for q in paragraph["qas"] if not q["is_impossible"]
            ]
    return Task("SQuAD", passages, questions[: None if limit is None else 2 * limit])


def read_xquad(folder: Path, language: str, limit: int | None) -> Task:
    """Read the paragraphs and questions of a language; a limit keeps only the first questions of the half."""
    paragraphs = [
        json.loads(line) for line in (folder / f"{language}.paragraphs.jsonl").read_text("utf-8").splitlines()
    ]
    asked = [json.loads(line) for line in (folder / f"{language}.questions.jsonl").read_text("utf-8").splitlines()]
    questions = [Question(q["id"], q["question"], {q["paragraph"]: 1}) for q in asked]
    questions = [question for question in questions if half(question) == "reporting"][:limit]
    return Task(f"XQuAD {language}", {p["id"]: p["text"] for p in paragraphs}, questions)


def read_japanese(bucket: Path, lake: str, limit: int | None) -> Task:
    """Read the pages of the Japanese region and cut them with the pipeline's chunker.

    A limit keeps the pages with an answer first, then the others in the order of a hash of their keys.
    """
    from rag_assets.chunking.options import ChunkerOptions
    from rag_assets.extraction.errors import ExtractionError
    from rag_assets.extraction.registry import read_object
    from rag_assets.models.registry import warm_chunker
    from rag_assets.options import PACKAGED_MODEL

    lines = [json.loads(line) for line in JAPANESE.read_text("utf-8").splitlines()]
    questions = [Question(line["question"], line["question"], {line["document"]: 1}) for line in lines]
    answers = {line["document"] for line in lines}
    chunker = warm_chunker(lake, PACKAGED_MODEL, ChunkerOptions())
    passages: dict[str, str] = {}
    document_of: dict[str, str] = {}
    keys = [path.relative_to(bucket).as_posix() for path in (bucket / "tokyo").rglob("*.md")]
    keys.sort(key=lambda key: (key not in answers, hashlib.sha256(key.encode()).digest()))
    for key in keys[:limit]:
        try:
            cut = chunker.chunk(read_object((bucket / key).read_bytes(), key).parts[0].document)
        except ExtractionError:
            continue
        for number, passage in enumerate(cut):
            passages[f"{key}#{number}"] = passage.text
            document_of[f"{key}#{number}"] = key
    return Task("Japanese", passages, questions, document_of)


class VectorCache:
    """Caches vectors of one embedder by the hash of their text, in a folder if one is given."""

    def __init__(self, embedder: Embedder, folder: Path | None) -> None:
        import numpy as np

        self._embedder = embedder
        self._file = None if folder is None else folder / f"{embedder.identity.fingerprint}.npz"
        self._vectors: dict[str, Any] = {}
        if self._file is not None and self._file.exists():
            with np.load(self._file) as kept:
                self._vectors = dict(zip(kept["hashes"].tolist(), kept["vectors"], strict=True))

    @property
    def fingerprint(self) -> str:
        return self._embedder.identity.fingerprint

    def documents(self, texts: Sequence[str]) -> Vectors:
        return self._all("document", texts, self._embedder.embed_documents)

    def questions(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        return self._all("question", texts, lambda some: np.stack([self._embedder.embed_query(text) for text in some]))

    def _all(self, kind: str, texts: Sequence[str], embed: Callable[[Sequence[str]], Vectors]) -> Vectors:
        import numpy as np

        hashes = [hashlib.sha256(f"{kind}\0{text}".encode()).hexdigest() for text in texts]
        missing = {h: text for h, text in zip(hashes, texts, strict=True) if h not in self._vectors}
        waiting = sorted(missing, key=lambda h: len(missing[h]))
        for start in range(0, len(waiting), _SAVE_EVERY):
            some = waiting[start : start + _SAVE_EVERY]
            self._vectors.update(zip(some, embed([missing[h] for h in some]), strict=True))
            self._save()
        return np.stack([self._vectors[h] for h in hashes])

    def _save(self) -> None:
        import numpy as np

        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(".partial.npz")
            np.savez(partial, hashes=np.array(list(self._vectors)), vectors=np.stack(list(self._vectors.values())))
            partial.replace(self._file)


def table_of(lake: str, task: Task, vectors: Vectors, fingerprint: str) -> tuple[Table, Target]:
    """Write the passages to a shard's table with the pipeline's indexes, and return how to search it."""
    import pyarrow as pa

    from rag_assets.extraction.language import detect_language
    from rag_assets.settings import PipelineSettings
    from rag_assets.stages.embeddings import vector_array
    from rag_assets.storage.lake import Lake
    from rag_assets.storage.search_indexes import chunks_by_language, index_vectors, index_words
    from rag_serving.lake.embedders.base import read_manifest
    from rag_serving.lake.search.plan import Target, main_languages
    from rag_serving.lake.search.words import DEFAULT_LANGUAGE, indexed_words
    from rag_serving.lake.shards import Shard
    from rag_serving.lake.tables import SHARDS, TABLE_FORMAT, shard_schema

    schema = shard_schema(vectors.shape[1], fingerprint)
    count = len(task.passages)
    texts = {
        "chunk_id": list(task.passages),
        "doc_id": [task.document_of.get(passage, passage) for passage in task.passages],
        "text": list(task.passages.values()),
        "language": [detect_language(text) for text in task.passages.values()],
    }
    texts["words"] = [
        indexed_words([text], language or DEFAULT_LANGUAGE)
        for text, language in zip(texts["text"], texts["language"], strict=True)
    ]
    filler = {"int32": 0, "bool": False, "timestamp[us, tz=UTC]": datetime(2026, 1, 1, tzinfo=UTC)}
    arrays: dict[str, Any] = {"vector": vector_array(vectors)}
    for column in schema:
        if column.name not in arrays:
            blank = None if column.nullable else filler.get(str(column.type), "")
            arrays[column.name] = pa.array(texts.get(column.name) or [blank] * count, column.type)
    shard = Shard("benchmark", f"{task.name}-{os.urandom(4).hex()}")
    stored = Lake(lake)
    table = stored.ensure(SHARDS, shard, schema)
    table.add(pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema))
    index_words(table)
    if count >= PipelineSettings.model_fields["vector_index_rows"].default:
        index_vectors(table)
    identity = read_manifest(stored.objects, fingerprint)
    target = Target(
        SHARDS,
        shard.table_name,
        table.version,
        fingerprint,
        TABLE_FORMAT,
        frozenset({shard.key}),
        languages=main_languages(chunks_by_language(table)),
        read=None if identity is None else identity.reads,
    )
    return table, target


def ranked_by_serving(
    lake: str, target: Target, questions: Sequence[Question], vectors: Vectors
) -> dict[str, list[tuple[Question, list[str]]]]:
    """Return the ten best passages for each question, by the three ways that serving searches."""
    from rag_assets.evaluation.ranking import rankings

    found = rankings(
        lake, target, [(question.text, vector) for question, vector in zip(questions, vectors, strict=True)]
    )
    names = {"vector": "vector", "text": "full text (BM25)", "hybrid": "hybrid"}
    return {
        names[mode]: [
            (question, [candidate.row["chunk_id"] for candidate in ranking[mode]])
            for question, ranking in zip(questions, found, strict=True)
        ]
        for mode in ("vector", "text", "hybrid")
    }


@dataclass(frozen=True, slots=True)
class Ranked:
    """The vector and full-text rankings for one question, with scores, best first."""

    question: Question
    vector: list[tuple[str, float]]
    text: list[tuple[str, float]]


def rank(
    table: Table, target: Target, questions: Sequence[Question], vectors: Vectors, operator: str = "OR"
) -> list[Ranked]:
    """Return both rankings of every question, for ways to fuse them."""
    from lancedb.query import MatchQuery

    from rag_serving.lake.search.words import question_words

    ranked: list[Ranked] = []
    for question, vector in zip(questions, vectors, strict=True):
        nearest: Any = table.search(vector, vector_column_name="vector", query_type="vector")
        nearest = nearest.distance_type("cosine").nprobes(20).refine_factor(4)
        by_vector = nearest.limit(CANDIDATES).select(["chunk_id", "_distance"]).to_list()
        asked = " ".join(question_words(question.text, target.languages).words)
        words: Any = MatchQuery(asked, "words", operator=operator)
        by_text = table.search(words, query_type="fts").limit(CANDIDATES).select(["chunk_id", "_score"]).to_list()
        ranked.append(
            Ranked(
                question,
                sorted(((row["chunk_id"], 1 - row["_distance"]) for row in by_vector), key=lambda x: (-x[1], x[0])),
                sorted(((row["chunk_id"], row["_score"]) for row in by_text), key=lambda x: (-x[1], x[0])),
            )
        )
    return ranked


def reranked(task: Task, found: Sequence[tuple[Question, list[str]]], name: str) -> list[tuple[Question, list[str]]]:
    """Return the passages of a ranking in the order of a cross-encoder of sentence-transformers."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(name)
    ordered: list[tuple[Question, list[str]]] = []
    for question, passages in found:
        scores: Any = model.predict([(question.text, task.passages[passage]) for passage in passages])
        best = sorted(zip(scores.tolist(), passages, strict=True), key=lambda pair: -pair[0])
        ordered.append((question, [passage for _, passage in best]))
    return ordered


def by_rank(ranked: Ranked, *, candidates: int, constant: float, text_weight: float = 0.5) -> list[str]:
    """Fuse by reciprocal rank; equal weights are plain reciprocal rank fusion."""
    scores: dict[str, float] = {}
    for ranking, weight in ((ranked.vector, 1 - text_weight), (ranked.text, text_weight)):
        for place, (passage, _) in enumerate(ranking[:candidates], start=1):
            scores[passage] = scores.get(passage, 0.0) + weight / (constant + place)
    return sorted(scores, key=lambda passage: (-scores[passage], passage))


def by_score(ranked: Ranked, *, candidates: int, text_weight: float) -> list[str]:
    """Fuse by a weighted mean of the scores, scaled to 0 to 1 among the candidates of each ranking."""
    scores: dict[str, float] = {}
    for ranking, weight in ((ranked.vector, 1 - text_weight), (ranked.text, text_weight)):
        values = [score for _, score in ranking[:candidates]]
        low, span = min(values, default=0.0), (max(values, default=0.0) - min(values, default=0.0)) or 1.0
        for passage, score in ranking[:candidates]:
            scores[passage] = scores.get(passage, 0.0) + weight * (score - low) / span
    return sorted(scores, key=lambda passage: (-scores[passage], passage))


def measures(task: Task, found: Iterable[tuple[Question, Sequence[str]]]) -> dict[str, float]:
    """Return the means over the questions, by document."""
    import statistics

    from benchmarks.embed import ndcg

    rows: list[tuple[float, ...]] = []
    for question, ranking in found:
        documents = task.documents(ranking)
        places = [place for place, name in enumerate(documents[:10], start=1) if name in question.relevant]
        first = places[0] if places else 11
        rows.append(
            (
                ndcg(documents, question.relevant),
                len(places) / len(question.relevant),
                1 / first if places else 0.0,
                *(float(first <= k) for k in (1, 5, 10)),
            )
        )
    names = ("nDCG@10", "recall@10", "MRR@10", "hit@1", "hit@5", "hit@10")
    return {name: statistics.fmean(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def report(
    task: Task, part: str, found: Mapping[str, Sequence[tuple[Question, Sequence[str]]]]
) -> list[dict[str, object]]:
    """Return one row per way to search."""
    return [
        {
            "questions": f"{task.name}, {part}",
            "count": len(ranked),
            "search": name,
            **{measure: f"{value:.4f}" for measure, value in measures(task, ranked).items()},
        }
        for name, ranked in found.items()
    ]


def fusions() -> dict[str, Callable[[Ranked], list[str]]]:
    """Return the ways to fuse the two rankings."""
    ways: dict[str, Callable[[Ranked], list[str]]] = {}
    for candidates in (10, 20, 50, CANDIDATES):
        for weight in (0.3, 0.4, 0.5, 0.6, 0.7):
            for constant in (0, 2, 5, 10, 20, 60, 100):
                ways[f"ranks: {candidates} candidates, constant {constant}, text weight {weight}"] = partial(
                    by_rank, candidates=candidates, constant=constant, text_weight=weight
                )
            ways[f"scores: {candidates} candidates, text weight {weight}"] = partial(
                by_score, candidates=candidates, text_weight=weight
            )
    return ways


def tune(task: Task, ranked: Sequence[Ranked]) -> list[dict[str, object]]:
    """Return nDCG@10 and recall@10 of every way to fuse, best first."""
    ways: dict[str, Callable[[Ranked], list[str]]] = {
        "full text alone": lambda one: [passage for passage, _ in one.text],
        "vector alone": lambda one: [passage for passage, _ in one.vector],
        **fusions(),
    }
    rows: list[dict[str, object]] = []
    for name, way in ways.items():
        found = measures(task, [(one.question, way(one)) for one in ranked])
        rows.append({"fusion": name, **{of: round(found[of], 4) for of in ("nDCG@10", "recall@10")}})
    return sorted(rows, key=lambda row: -float(str(row["nDCG@10"])))


def winners(tuned: Sequence[Mapping[str, object]]) -> dict[str, Callable[[Ranked], list[str]]]:
    """Return the best fusion by rank and the best by score."""
    names = [str(row["fusion"]) for row in tuned]
    best = [next(name for name in names if name.startswith(kind)) for kind in ("ranks", "scores")]
    return {f"hybrid, {name}": fusions()[name] for name in best}


XQUAD = ("ar", "el", "hi", "ro", "th", "tr", "vi")


def main(argv: Sequence[str]) -> None:
    """Run the benchmark and print its tables."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="cache vectors in FOLDER by the hash of their text"
    )
    parser.add_argument("--only", choices=["scifact", "squad", "japanese", "xquad"], action="append", help="repeatable")
    parser.add_argument("--pages", type=int, metavar="N", help="Japanese: use only N pages, those with an answer first")
    parser.add_argument(
        "--reranker", metavar="MODEL", help="name or folder of a cross-encoder, to rerank the ten best of hybrid search"
    )
    parser.add_argument("--tune", action="store_true", help="compare ways to fuse, on SciFact's tuning half")
    options = parser.parse_args(argv)
    data = os.environ.get("RAG_TEST_DATA")
    if not data:
        parser.error("needs the test data: set RAG_TEST_DATA to a folder that contains eval/ and bucket/")
    only = options.only or ["scifact", "squad", "japanese", "xquad"]
    limit, pages = (QUICK, QUICK_PAGES) if options.quick else (None, options.pages)
    rows: list[dict[str, object]] = []
    tuned: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as lake:
        export(lake)
        cache = VectorCache(_embedder(lake), options.cache)
        readers: dict[str, Callable[[], Task]] = {
            "scifact": lambda: read_scifact(Path(data, "eval", "scifact"), limit),
            "squad": lambda: read_squad(Path(data, "eval", "squad"), limit),
            "japanese": lambda: read_japanese(Path(data, "bucket"), lake, pages),
        }
        for language in XQUAD:
            readers[f"xquad {language}"] = partial(read_xquad, Path(data, "eval", "xquad"), language, limit)
        for name, read in readers.items():
            if name.partition(" ")[0] not in only:
                continue
            task = read()
            vectors = cache.documents(list(task.passages.values()))
            table, target = table_of(lake, task, vectors, cache.fingerprint)
            halves = {part: [q for q in task.questions if half(q) == part] for part in ("tuning", "reporting")}
            asked = halves["reporting"] if name == "scifact" else task.questions
            found = ranked_by_serving(lake, target, asked, cache.questions([question.text for question in asked]))
            if options.reranker:
                found[f"hybrid, reranked by {options.reranker}"] = reranked(task, found["hybrid"], options.reranker)
            part = "reporting half" if name == "scifact" else f"{len(task.passages)} passages"
            rows += report(task, part, found)
            if options.tune and name == "scifact":
                by_half = {
                    part: rank(table, target, some, cache.questions([question.text for question in some]))
                    for part, some in halves.items()
                }
                tuned = tune(task, by_half["tuning"])
                best = {
                    way: [(one.question, fused(one)) for one in by_half["reporting"]]
                    for way, fused in winners(tuned).items()
                }
                rows += report(task, part, best)
    first = " (FIRST PASSAGES ONLY, DO NOT QUOTE)" if limit else ""
    show(f"retrieval{first}", rows, options.json, tuned=tuned)
    if tuned:
        show(f"ways to fuse, SciFact's tuning half, best 25 of {len(tuned)}{first}", tuned[:25], None)
        alone = [row for row in tuned if "alone" in str(row["fusion"])]
        show("the rankings alone, SciFact's tuning half", alone, None)


def _embedder(lake: str) -> Embedder:
    from rag_assets.models.registry import warm_embedder
    from rag_assets.options import PACKAGED_MODEL

    return warm_embedder(lake, PACKAGED_MODEL)
