"""Measure recall, precision, IoU and precision-omega of several chunkers.

The corpora, questions and measures are from Chroma's "Evaluating Chunking Strategies for Retrieval" (2024); see
`spans`. For each question, the five nearest chunks by cosine are retrieved from all chunks of all corpora. The exported
model embeds the chunks of every chunker.

A hash splits the questions in halves. This project's sizes and cut costs were tuned on one half; figures are of the
other half unless --tuning is given. The tables are followed by the differences between this project's chunker and each
other one, with 95 % intervals of a paired bootstrap over the questions.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.quality.peers import PEERS, Unavailable, peer_chunks
from benchmarks.quality.spans import Chunk, Question, Scores, score
from benchmarks.reporting import arguments, show

if TYPE_CHECKING:
    import numpy.typing as npt

    from rag_assets.chunking.passage import Chunker
    from rag_serving.lake.embedders.base import Embedder

RETRIEVED = 5
MEASURES = ("recall", "precision", "omega", "iou")
OURS = "semantic"
HALVES = ("tuning", "reporting")
RESAMPLES = 10_000
SEED = 20_240_703
FIXED_TOKENS = (200, 254)
TEST_DATA = "RAG_TEST_DATA"
QUICK_CORPORA = ("chatlogs", "state_of_the_union")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The texts by name, and the questions about them."""

    corpora: Mapping[str, str]
    questions: Sequence[Question]


def read_evaluation(folder: Path, corpora: Sequence[str] = ()) -> Evaluation:
    """Read the data set in the folder, or only these corpora of it."""
    csv.field_size_limit(2**30)
    questions: list[Question] = []
    with (folder / "questions_df.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if not corpora or row["corpus_id"] in corpora:
                references = tuple((each["start_index"], each["end_index"]) for each in json.loads(row["references"]))
                questions.append(Question(row["question"], row["corpus_id"], references))
    names = sorted({question.corpus for question in questions})
    texts = {name: (folder / "corpora" / f"{name}.md").read_text("utf-8") for name in names}
    return Evaluation(texts, questions)


def half(question: Question) -> str:
    """Return the half to which a question belongs, independent of other questions."""
    return HALVES[hashlib.sha256(f"{question.corpus}\0{question.text}".encode()).digest()[0] % 2]


def our_chunks(chunker: Chunker, corpora: Mapping[str, str]) -> list[Chunk]:
    """Read the corpora as Markdown files, like the pipeline, and cut them with this chunker."""
    from rag_assets.extraction.registry import read_object

    chunks: list[Chunk] = []
    for name, text in corpora.items():
        document = read_object(text.encode(), f"{name}.md").parts[0].document
        offset = text.index(document.text)
        chunks += [
            Chunk(name, offset + passage.start, offset + passage.end, passage.embedded_text)
            for passage in chunker.chunk(document)
        ]
    return chunks


class Vectors:
    """Embeds texts, each only once."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    def of(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return a matrix with one row per text."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= dict(zip(new, self._embedder.embed_documents(new), strict=True)) if new else {}
        return np.stack([self._known[text] for text in texts])

    def of_questions(self, questions: Sequence[Question]) -> npt.NDArray[np.float32]:
        """Return a matrix with one row per question."""
        return np.stack([self._embedder.embed_query(question.text) for question in questions])


def scores_of(chunks: Sequence[Chunk], questions: Sequence[Question], asked: Any, vectors: Vectors) -> list[Scores]:
    """Score each question; `asked` are their vectors."""
    near = asked @ vectors.of([chunk.embedded for chunk in chunks]).T
    best = np.argsort(-near, axis=1, kind="stable")[:, :RETRIEVED]
    by_corpus: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_corpus.setdefault(chunk.corpus, []).append(chunk)
    return [
        score(question, [chunks[number] for number in row], by_corpus[question.corpus])
        for question, row in zip(questions, best, strict=True)
    ]


def fixed_chunks(corpora: Mapping[str, str], tokenizer: Any, size: int) -> list[Chunk]:
    """Cut the corpora into pieces of `size` tokens."""
    chunks: list[Chunk] = []
    for name, text in corpora.items():
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        for first in range(0, len(offsets), size):
            start, end = offsets[first][0], offsets[min(first + size, len(offsets)) - 1][1]
            chunks.append(Chunk(name, start, end, text[start:end]))
    return chunks


@dataclass(frozen=True, slots=True)
class Contender:
    """A chunker with its name in the table; `cut` returns the chunks and a version."""

    name: str
    cut: Callable[[], tuple[list[Chunk], str]]


@dataclass(frozen=True, slots=True)
class Result:
    """The chunks and scores of a contender, or the reason why it failed."""

    chunks: Sequence[Chunk] = ()
    scores: Sequence[Scores] = ()
    version: str = ""
    seconds: float = 0.0
    reason: str = ""


def contenders(evaluation: Evaluation, lake: str, vectors: Vectors, *, peers: bool) -> list[Contender]:
    """Return ours with each context, our structure chunker, fixed sizes, and the peers."""
    from rag_assets.chunking.options import ChunkerOptions
    from rag_assets.models.registry import warm_chunker, warm_identity
    from rag_assets.options import CHUNK_TOKENS, PACKAGED_MODEL
    from rag_serving.lake.embedders.base import load_tokenizer
    from rag_serving.lake.object_store import open_object_store

    corpora = evaluation.corpora
    tokenizer = load_tokenizer(open_object_store(lake), warm_identity(lake, PACKAGED_MODEL))

    def ours(options: ChunkerOptions) -> Callable[[], tuple[list[Chunk], str]]:
        chunker = warm_chunker(lake, PACKAGED_MODEL, options)
        return lambda: (our_chunks(chunker, corpora), chunker.version)

    def fixed(size: int) -> Callable[[], tuple[list[Chunk], str]]:
        return lambda: (fixed_chunks(corpora, tokenizer, size), "")

    rows = [
        Contender(OURS, ours(ChunkerOptions())),
        *(
            Contender(f"{OURS}, {context}", ours(ChunkerOptions(context=context)))
            for context in ("none", "headings", "neighbours")
            if context != ChunkerOptions().context
        ),
        Contender("structure", ours(ChunkerOptions("structure", 256, "none"))),
        Contender(f"structure {CHUNK_TOKENS}", ours(ChunkerOptions("structure", CHUNK_TOKENS, "none"))),
        *(Contender(f"fixed {size}", fixed(size)) for size in FIXED_TOKENS),
    ]
    if peers:
        rows += [Contender(name, lambda name=name: peer_chunks(name, corpora, vectors.of)) for name in PEERS]
    return rows


def run(contender: Contender, evaluation: Evaluation, asked: Any, vectors: Vectors) -> Result:
    """Cut, embed, retrieve and score."""
    started = time.perf_counter()
    try:
        chunks, version = contender.cut()
    except Unavailable as error:
        return Result(reason=str(error))
    seconds = time.perf_counter() - started
    return Result(chunks, scores_of(chunks, evaluation.questions, asked, vectors), version, seconds)


def means(scores: Sequence[Scores]) -> dict[str, float]:
    """Return the means over the questions, in percent."""
    return {name: 100 * float(np.mean([getattr(each, name) for each in scores])) for name in MEASURES}


def intervals(one: Sequence[Scores], other: Sequence[Scores]) -> dict[str, tuple[float, float, float]]:
    """Return, by measure, how much higher `one` is in percent, with the 95 % interval of a paired bootstrap."""
    draws = np.random.default_rng(SEED).integers(0, len(one), (RESAMPLES, len(one)))
    found: dict[str, tuple[float, float, float]] = {}
    for name in MEASURES:
        differences = 100 * np.array([getattr(a, name) - getattr(b, name) for a, b in zip(one, other, strict=True)])
        low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
        found[name] = (float(differences.mean()), float(low), float(high))
    return found


def table(
    results: Mapping[str, Result], questions: Sequence[Question], halves: Sequence[str], window: int, tokenizer: Any
) -> list[dict[str, object]]:
    """Return one row per contender, for the questions of these halves."""
    rows: list[dict[str, object]] = []
    for name, result in results.items():
        scores = [each for each, question in zip(result.scores, questions, strict=False) if half(question) in halves]
        row: dict[str, object] = {"chunker": name, "chunks": len(result.chunks) or ""}
        lengths = [len(each) for each in tokenizer.encode_batch_fast([chunk.embedded for chunk in result.chunks])]
        row["tokens"] = round(float(np.mean(lengths))) if lengths else ""
        row["characters"] = round(float(np.mean([c.end - c.start for c in result.chunks]))) if result.chunks else ""
        measured = means(scores) if scores else dict.fromkeys(MEASURES, "")
        row |= {each: f"{value:.1f}" if isinstance(value, float) else "" for each, value in measured.items()}
        cut = sum(length > window for length in lengths)
        row["remark"] = result.reason or (f"{cut} chunks exceed the window" if cut else "")
        rows.append(row)
    return rows


def main(values: Sequence[str]) -> None:
    """Run the benchmark and print its tables."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, help="folder of the data set (default: eval/chunking in RAG_TEST_DATA)")
    parser.add_argument("--no-peers", action="store_true", help="measure only this project's chunkers")
    parser.add_argument("--tuning", action="store_true", help="show the tuning half instead of the reporting half")
    options = parser.parse_args(values)
    folder = options.data or (Path(os.environ[TEST_DATA], "eval", "chunking") if TEST_DATA in os.environ else None)
    if folder is None or not folder.is_dir():
        raise SystemExit(
            "needs the data set: give --data FOLDER, or set RAG_TEST_DATA to a folder that contains eval/chunking"
        )
    warnings.simplefilter("ignore")
    evaluation = read_evaluation(folder, QUICK_CORPORA if options.quick else ())
    with tempfile.TemporaryDirectory() as lake:
        results, window, tokenizer = measure(evaluation, lake, peers=not (options.no_peers or options.quick))
    shown = (HALVES[0],) if options.tuning else (HALVES[1],)
    rows = table(results, evaluation.questions, shown, window, tokenizer)
    everything = table(results, evaluation.questions, HALVES, window, tokenizer)
    count = sum(half(question) in shown for question in evaluation.questions)
    title = (
        f"{count} questions of the {shown[0]} half, {len(evaluation.corpora)} corpora, {RETRIEVED} chunks per question"
    )
    compared = comparisons(results, evaluation.questions, shown)
    show(title, rows, options.json, all_questions=everything, differences=compared)
    show(f"all {len(evaluation.questions)} questions", everything, None)
    for name, differences in compared.items():
        said = ", ".join(f"{each} {d:+.1f} ({low:+.1f} to {high:+.1f})" for each, (d, low, high) in differences.items())
        print(f"{OURS} minus {name}: {said}")


def measure(evaluation: Evaluation, lake: str, *, peers: bool) -> tuple[dict[str, Result], int, Any]:
    """Return the results of all contenders, the model's window and its tokenizer."""
    from rag_assets.models.registry import warm_embedder, warm_identity
    from rag_assets.options import PACKAGED_MODEL
    from rag_serving.lake.embedders.base import load_tokenizer
    from rag_serving.lake.object_store import open_object_store

    identity = warm_identity(lake, PACKAGED_MODEL)
    vectors = Vectors(warm_embedder(lake, PACKAGED_MODEL, "openvino"))
    asked = vectors.of_questions(evaluation.questions)
    results: dict[str, Result] = {}
    for contender in contenders(evaluation, lake, vectors, peers=peers):
        print(f"measuring {contender.name}", file=sys.stderr)
        results[contender.name] = run(contender, evaluation, asked, vectors)
    return results, identity.window, load_tokenizer(open_object_store(lake), identity)


def comparisons(
    results: Mapping[str, Result], questions: Sequence[Question], halves: Sequence[str]
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Compare ours with each of the others, on the questions of these halves."""
    wanted = [number for number, question in enumerate(questions) if half(question) in halves]
    ours = [results[OURS].scores[number] for number in wanted]
    return {
        name: intervals(ours, [result.scores[number] for number in wanted])
        for name, result in results.items()
        if name != OURS and result.scores
    }
