"""Latency and recall of search by the number of rows, of one shard and of all, beside other ways to search the same.

Passages are real text cut into a million pieces, with static vectors distilled from the packaged model and widened to
its width (`--embedder model` embeds them by the model itself, which takes half a minute for a thousand). Questions are
SQuAD's and SciFact's, of which one half, by a hash, is for `--tune` and the other is reported on. Shards are built and
published by the pipeline's functions, the company index too, and searched by the client's `Searcher`, without the
embedding of the question, which is the same for all.

Recall@10 is the share of the ten passages that an exact search would have shown: numpy looks at every row, and as the
client collapses what says the same, so is what numpy found. For peers, which collapse nothing, it is the share of the
ten nearest rows. Questions are asked of a shard drawn at random, contenders in turn. One shard is also measured after
200 small changes, before and after its upkeep. Peers are timed in an environment of their own, `.venv-search-peers`,
made on first use; chroma only up to --chroma-rows. Peers get the vectors as they are, without the zeros behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.ingest import export
from benchmarks.peers.environment import ROOT, EnvironmentUnavailable, peers_python, quiet_environment
from benchmarks.reporting import arguments, show
from benchmarks.search.contenders import DEPTH, K, Questions, collapsed, filtered, nearest_rows, ours, timed
from benchmarks.search.lake import Builder, Upserts, say, shard_of
from benchmarks.search.measures import Figures, Timing, median_of, nearest, recall
from benchmarks.search.passages import cut, embedded, read_corpus, read_texts, widened, write_corpus

if TYPE_CHECKING:
    import argparse

    import pyarrow as pa

    from benchmarks.search.contenders import Ask
    from rag_assets.chunking.static_vectors import StaticVectors
    from rag_serving.lake.search.query import Mode

PEERS = ("faiss", "chroma")
OURS = "rag-shards"
MODES: tuple[Mode, ...] = ("vector", "hybrid")
WIDE = 4
"""Shards beyond which the client asks the company index, by default."""
SCOPES = {
    "shard": "one shard",
    "all": "all shards",
    "fresh": "a fresh shard",
    "changed": "one after upserts",
    "kept": "the same after upkeep",
}
REQUIREMENTS = ROOT / "benchmarks" / "search-requirements.txt"
UPSERTS = 200
_RESERVE = 12_000
"""Passages beyond the rows, for the upserts."""
_PEER_SECONDS = 3600
_EXTRA = 200
"""Rows of an exact ranking that are looked through for ten that do not repeat each other."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to search so many rows; `truth` has what an exact search finds for each question, where that is known."""

    rows: int
    scope: str
    mode: str
    name: str
    ask: Ask
    truth: Sequence[Sequence[int]] | None


class Bench:
    """One lake, its corpus and its questions, and the figures so far."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        from rag_assets.models.export import ensure_exported
        from rag_assets.options import PACKAGED_MODEL
        from rag_assets.settings import PipelineSettings
        from rag_assets.storage.lake import Lake
        from rag_serving.lake.embedders.base import load_tokenizer

        self.folder, self.options = folder, options
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(export, str(folder / "lake")).result()
        lake = Lake(str(folder / "lake"))
        identity = ensure_exported(lake.objects, PACKAGED_MODEL).identity
        tokenizer = load_tokenizer(lake.objects, identity)
        corpus_folder = folder / f"corpus-{options.embedder}-{options.shard_rows}"
        static = self._static(lake, identity)
        if not (corpus_folder / "corpus.json").exists():
            say("cutting and embedding passages")
            texts = read_texts(Path(options.data), 3_000 if options.quick else None)
            wanted = max(options.rows) + (0 if options.without_upserts else min(_RESERVE, options.shard_rows))
            batches = cut(texts, wanted, tokenizer, static)
            if options.embedder == "model":
                batches = self._by_model(batches)
            write_corpus(corpus_folder, texts, batches)
        corpus = read_corpus(corpus_folder)
        if len(corpus) < max(options.rows):
            raise SystemExit(f"RAG_TEST_DATA's texts give {len(corpus)} passages, not {max(options.rows)}")
        index_rows = PipelineSettings.model_fields["vector_index_rows"].default
        self.builder = Builder(lake, identity, corpus, options.shard_rows, index_rows)
        part = "tuning" if options.tune else "reporting"
        texts_asked = questions_of(Path(options.data), part, options.questions)
        self._by_meaning = self._model().embed_query if options.embedder == "model" else None
        vectors = (
            embedded(texts_asked, tokenizer, static)
            if self._by_meaning is None
            else np.stack([self._by_meaning(text) for text in texts_asked])
        )
        self.narrow = vectors
        self.texts = texts_asked
        self.wide = widened(vectors, identity.dimensions)
        self.rows: list[dict[str, object]] = []
        self.facts: dict[str, Any] = {}
        self._raw: dict[int, dict[str, list[list[int]]]] = {}
        self._searchers: list[Any] = []

    def _static(self, lake: Any, identity: Any) -> StaticVectors:
        from rag_assets.models.static_vectors import load_vectors

        say("loading static vectors (distilled in a minute the first time)")
        return load_vectors(lake.objects, identity)

    def _model(self) -> Any:
        from rag_assets.models.registry import warm_embedder
        from rag_assets.options import PACKAGED_MODEL

        return warm_embedder(str(self.folder / "lake"), PACKAGED_MODEL)

    def _by_model(self, batches: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        embedder = self._model()
        for batch, _ in batches:
            for at in range(0, batch.num_rows, 1_000):
                part = batch.slice(at, 1_000)
                yield part, embedder.embed_documents(part["text"].to_pylist())
                say(f"embedded {at + part.num_rows} passages of a batch")

    def questions(self, shards: int) -> Questions:
        """The questions, each with a shard drawn for it."""
        drawn = random.Random(shards)
        return Questions(self.texts, self.wide, [drawn.randrange(shards) for _ in self.texts])

    @property
    def texts_of(self) -> pa.ChunkedArray:
        return self.builder.corpus.passages["text"]

    def exact(self, questions: Questions, rows: int) -> dict[str, list[list[int]]]:
        """What an exact search finds for each question: in its shard, and in all rows."""
        vectors, size = self.builder.corpus.vectors, self.builder.shard_rows
        found: dict[str, list[list[int]]] = {"shard": [[] for _ in questions.texts]}
        for number in sorted(set(questions.shards)):
            asked = [at for at, of in enumerate(questions.shards) if of == number]
            first = number * size
            own = nearest(vectors[first : min(first + size, rows)], self.narrow[asked], _EXTRA) + first
            for at, ranked in zip(asked, own.tolist(), strict=True):
                found["shard"][at] = ranked
        if rows > size:
            say(f"exact search over {rows} rows")
            found["all"] = nearest(vectors[:rows], self.narrow, _EXTRA).tolist()
        return found

    def shown(self, exact: Sequence[Sequence[int]]) -> list[list[int]]:
        """Of exact rankings, what the client would show."""
        return [collapsed(self.texts_of, ranked) for ranked in exact]

    async def prepare(self, rows: int) -> list[Contender]:
        """Build one size, a lake of its own, and open it for everything in this process that searches it."""
        from rag_assets.storage.lake import Lake
        from rag_serving.retrieval.searcher import Searcher

        shards = -(-rows // self.builder.shard_rows)
        wide = shards > WIDE
        place = self.folder / f"lake-{rows}"
        started = time.perf_counter()
        if not place.exists():
            self.builder.build(range(shards))
            if wide:
                self.builder.company(shards, anew=True)
            clone(self.folder / "lake", place)
        builder = replace(self.builder, lake=Lake(str(place)))
        self.facts[f"{rows} rows"] = {"build_seconds": time.perf_counter() - started, "shards": shards}
        questions = self.questions(shards)
        exact = self.exact(questions, rows)
        snapshot = builder.snapshot(shards)
        searcher = Searcher(builder.lake.uri)
        self._searchers.append(searcher)
        for entry in snapshot.entries.values():
            await searcher.warm([entry], snapshot)
        await searcher.warm(snapshot.entries.values(), snapshot)
        contenders: list[Contender] = []
        for scope, ranked in exact.items():
            shown = self.shown(ranked)
            for mode in MODES:
                of = shard_of if scope == "shard" else None
                ask = ours(searcher, snapshot, builder.identity.fingerprint, questions, mode, of)
                contenders.append(Contender(rows, scope, mode, OURS, ask, shown if mode == "vector" else None))
        self._raw[rows] = {scope: [ranked[:K] for ranked in found] for scope, found in exact.items()}
        if wide and not self.options.without_peers:
            table = await self._filtered_table(place)
            for mode in MODES:
                truth = self._raw[rows]["shard"] if mode == "vector" else None
                ask = filtered(table, questions, mode, shard_of)
                contenders.append(Contender(rows, "shard", mode, "one filtered table", ask, truth))
        return contenders

    async def measure(self, contenders: Sequence[Contender]) -> None:
        """Time them in turn, run by run, so that other work on the machine meets all of them alike."""
        numbers = list(range(len(self.texts)))
        for contender in contenders:
            await timed(contender.ask, numbers[: len(numbers) // 2], 1)
        for at_once in self.options.in_flight:
            timings: list[list[Timing]] = [[] for _ in contenders]
            found: list[dict[int, list[int]]] = [{} for _ in contenders]
            for run in range(self.options.runs):
                say(f"{at_once} in flight, run {run + 1} of {self.options.runs}")
                for at, contender in enumerate(contenders):
                    timing, found[at] = await timed(contender.ask, numbers, at_once)
                    timings[at].append(timing)
            for own, rows, one in zip(timings, found, contenders, strict=True):
                reached = None
                if one.truth is not None:
                    reached = statistics.fmean(recall(rows[at], one.truth[at]) for at in numbers)
                self.note(one.rows, one.scope, one.mode, one.name, at_once, median_of(own), reached)

    async def close(self) -> None:
        """Let go of what is open."""
        for searcher in self._searchers:
            await searcher.close()
        self._searchers.clear()

    def note(
        self,
        rows: int,
        scope: str,
        mode: str,
        name: str,
        at_once: int,
        figures: Figures,
        reached: float | None,
        remark: str = "",
    ) -> None:
        """Add a row to the table."""
        self.rows.append(
            {
                "rows": rows,
                "asked of": SCOPES[scope],
                "search": mode,
                "by": name,
                "in flight": at_once,
                "p50 ms": round(figures.p50, 2),
                "p95 ms": round(figures.p95, 2),
                "queries/s": round(figures.per_second, 1),
                "CPU ms": round(figures.cpu, 2),
                "recall@10": "" if reached is None else f"{reached:.4f}",
                "p50 of rag-shards": "",
                "remark": remark,
            }
        )
        say(" ".join(f"{key}={value}" for key, value in self.rows[-1].items() if value != ""))

    def with_ratios(self) -> list[dict[str, object]]:
        """The table, with what others take beside this project for the same."""
        names = ("rows", "asked of", "search", "in flight")
        mine = {tuple(row[name] for name in names): row["p50 ms"] for row in self.rows if row["by"] == OURS}
        for row in self.rows:
            own: Any = mine.get(tuple(row[name] for name in names))
            took: Any = row["p50 ms"]
            if own and took and row["by"] != OURS:
                row["p50 of rag-shards"] = f"{took / own:.2f}"
        return self.rows

    async def _filtered_table(self, lake: Path) -> Any:
        """The files of the lake's company index once more, with indexes of region and department."""
        import lancedb
        from lancedb.index import Bitmap

        from rag_serving.lake.company_index import COMPANY

        at = lake.with_name(f"{lake.name}-filtered")
        shutil.rmtree(at, ignore_errors=True)
        clone(lake / COMPANY, at)
        connection = await lancedb.connect_async(at)
        table = await connection.open_table(self.builder.identity.fingerprint)
        for column in ("region", "department"):
            await table.create_index(column, config=Bitmap())
        for index in await table.list_indices():
            await table.prewarm_index(index.name)
        return table

    def peers(self, rows: int) -> None:
        """Time the peers at a size that was prepared, each in a process of its own."""
        questions, raw = self.questions(-(-rows // self.builder.shard_rows)), self._raw[rows]
        work = self.folder / "peers"
        for name in PEERS:
            if name == "chroma" and rows > self.options.chroma_rows:
                self.rows.append(self._absent(rows, name, f"not measured beyond {self.options.chroma_rows} rows"))
                continue
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            np.save(work / "questions.npy", self.narrow)
            np.save(work / "shards.npy", np.array(questions.shards, np.int64))
            vectors = self.builder.corpus.vectors
            task = {
                "folder": str(work),
                "vectors": str(vectors.filename),  # type: ignore[attr-defined]
                "rows": rows,
                "dimensions": vectors.shape[1],
                "shard_rows": self.builder.shard_rows,
                "at_once": self.options.in_flight,
                "runs": self.options.runs,
            }
            say(f"{name} with {rows} rows")
            try:
                python = peers_python(ROOT / ".venv-search-peers", REQUIREMENTS)
                done = subprocess.run(
                    [str(python), "-W", "ignore", "-m", f"benchmarks.search.with_{name}", json.dumps(task)],
                    cwd=ROOT,
                    env=quiet_environment(),
                    capture_output=True,
                    text=True,
                    timeout=_PEER_SECONDS,
                    check=False,
                )
            except (EnvironmentUnavailable, subprocess.TimeoutExpired) as error:
                self.rows.append(self._absent(rows, name, str(error)[:200]))
                continue
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
                self.rows.append(self._absent(rows, name, reason))
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            self.facts[f"{name}, {rows} rows"] = result
            for row in result["figures"]:
                scope = row["scope"]
                found = np.load(work / f"found-{scope}.npy").tolist()
                reached = statistics.fmean(recall(one, truth) for one, truth in zip(found, raw[scope], strict=True))
                remark = f"{result['version']}, built in {result['build_seconds']:.0f} s"
                self.note(rows, scope, "vector", name, row["in_flight"], Figures(**row["figures"]), reached, remark)
            shutil.rmtree(work)

    def _absent(self, rows: int, name: str, reason: str) -> dict[str, object]:
        blank = dict.fromkeys(("p50 ms", "p95 ms", "queries/s", "CPU ms", "recall@10", "p50 of rag-shards"), "")
        return {
            "rows": rows,
            "asked of": "",
            "search": "vector",
            "by": name,
            "in flight": "",
            **blank,
            "remark": reason,
        }

    async def tune(self, rows: int) -> list[dict[str, object]]:
        """Recall and cost of searches of the company index by partitions and rows refined, whole and under filters.

        A filter keeps one shard, or a tenth of them, and an exact search is made of what it keeps.
        """
        import lancedb

        from rag_serving.lake.company_index import COMPANY
        from rag_serving.lake.sql import sql_in

        fingerprint, size = self.builder.identity.fingerprint, self.builder.shard_rows
        connection = await lancedb.connect_async(self.folder / f"lake-{rows}" / COMPANY)
        table = await connection.open_table(fingerprint)
        await asyncio.gather(*[table.prewarm_index(index.name) for index in await table.list_indices()])
        shards = -(-rows // size)
        questions = self.questions(shards)
        vectors = self.builder.corpus.vectors
        tenth = range(0, shards, 10)
        kept = np.concatenate([np.arange(number * size, (number + 1) * size) for number in tenth])
        keys = [shard_of(number).key for number in tenth]
        scopes: dict[str, tuple[Any, list[list[int]], tuple[int, ...]]] = {
            "all": (None, nearest(vectors[:rows], self.narrow, DEPTH).tolist(), (5, 10, 20, 30, 40, 60, 80)),
            "a tenth of the shards": (
                lambda _: sql_in("shard", keys),
                kept[nearest(vectors[kept], self.narrow, DEPTH)].tolist(),
                (20, 60, 200),
            ),
            "one shard": (
                lambda number: sql_in("shard", [shard_of(questions.shards[number]).key]),
                [ranked[:DEPTH] for ranked in self.exact(questions, rows)["shard"]],
                (20, 60, 400),
            ),
        }
        table_rows: list[dict[str, object]] = []
        numbers = range(len(self.texts))
        for scope, (where, exact, probes) in scopes.items():
            for looked_at in probes:
                for refine in (1, 2, 4) if looked_at in (20, 60) else (4,):
                    ask = nearest_rows(table, questions, looked_at, refine, where)
                    await timed(ask, numbers[: len(numbers) // 4], 1)
                    timing, found = await timed(ask, numbers, 1)
                    shares = {
                        f"recall@{k}": f"{statistics.fmean(recall(found[at][:k], exact[at][:k]) for at in numbers):.4f}"
                        for k in (K, DEPTH)
                    }
                    figures = {"p50 ms": round(timing.p50, 2), "CPU ms": round(timing.cpu, 2), **shares}
                    table_rows.append({"of": scope, "probes": looked_at, "refine": refine, **figures})
                    say(str(table_rows[-1]))
        return table_rows

    async def upserts(self, rows: int) -> list[Contender]:
        """One shard as it was built, after many small changes, and after its upkeep; `rows` are in shards already."""
        from rag_assets.storage.lake import Lake
        from rag_serving.retrieval.searcher import Searcher

        number, questions = 0, self.questions(1)
        place = self.folder / "lake-upserts"
        shutil.rmtree(place, ignore_errors=True)
        clone(self.folder / f"lake-{self.options.rows[0]}", place)
        builder = replace(self.builder, lake=Lake(str(place)))
        held = np.array(builder.rows_of(number), np.int64)
        upserts = Upserts(builder, number, range(rows, len(builder.corpus)))
        contenders: list[Contender] = []

        async def state(scope: str) -> None:
            snapshot = builder.snapshot(1)
            own = nearest(builder.corpus.vectors[held], self.narrow, _EXTRA)
            shown = self.shown(held[own].tolist())
            searcher = Searcher(builder.lake.uri)
            self._searchers.append(searcher)
            await searcher.warm(snapshot.entries.values(), snapshot)
            for mode in MODES:
                ask = ours(searcher, snapshot, builder.identity.fingerprint, questions, mode, shard_of)
                truth = shown if mode == "vector" else None
                contenders.append(Contender(len(held), scope, mode, OURS, ask, truth))

        await state("fresh")
        count = 20 if self.options.quick else UPSERTS
        held = upserts.apply(count, lambda done: say(f"{done} upserts") if done % 50 == 0 else None)
        await state("changed")
        upserts.upkeep()
        await state("kept")
        self.facts["upserts"] = count
        return contenders


def clone(source: Path, target: Path) -> None:
    """The same lake again, without a copy: files of tables are never written twice, and objects are replaced whole."""
    shutil.copytree(source, target, copy_function=os.link)


def questions_of(data: Path, part: str, count: int) -> list[str]:
    """Questions of SQuAD and SciFact in turn, of one half of each."""
    from benchmarks.quality.retrieval import half, read_scifact, read_squad

    squad, scifact = read_squad(data / "eval" / "squad", None), read_scifact(data / "eval" / "scifact", None)
    halves = [[q.text for q in task.questions if half(q) == part] for task in (squad, scifact)]
    for questions in halves:
        random.Random(1).shuffle(questions)
    return [text for pair in zip(*halves, strict=False) for text in pair][:count]


async def measure(bench: Bench) -> None:
    """Everything that is asked for, into `bench.rows`."""
    options = bench.options
    if options.tune:
        await bench.prepare(options.rows[-1])
        bench.rows = await bench.tune(options.rows[-1])
        await bench.close()
        return
    contenders = [one for rows in options.rows for one in await bench.prepare(rows)]
    await bench.measure(contenders)
    await bench.close()
    if not options.without_upserts and len(bench.builder.corpus) > options.rows[-1]:
        await bench.measure(await bench.upserts(options.rows[-1]))
        await bench.close()
    if not options.without_peers:
        for rows in options.rows:
            bench.peers(rows)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, nargs="+", help="sizes (default 10000 100000 1000000)")
    parser.add_argument("--shard-rows", type=int, help="rows of a shard (default 10000)")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 64], help="questions at once")
    parser.add_argument("--questions", type=int, help="questions asked (default 400)")
    parser.add_argument("--runs", type=int, help="runs to take the median of (default 3, 1 with --quick)")
    parser.add_argument("--embedder", choices=["static", "model"], default="static", help="what makes the vectors")
    parser.add_argument("--tune", action="store_true", help="other settings, on the questions kept for that")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and leave or reuse what was built")
    parser.add_argument("--chroma-rows", type=int, default=100_000, help="rows up to which chroma is measured")
    parser.add_argument("--without-peers", action="store_true", help="only this project")
    parser.add_argument("--without-upserts", action="store_true", help="no state after small changes")
    options = parser.parse_args()
    options.data = os.environ.get("RAG_TEST_DATA")
    if not options.data:
        parser.error("reads eval/ and bucket/ in the folder that RAG_TEST_DATA names; it is not set")
    options.shard_rows = options.shard_rows or (2_500 if options.quick else 10_000)
    options.rows = sorted(options.rows or ([2_500, 15_000] if options.quick else [10_000, 100_000, 1_000_000]))
    options.questions = options.questions or (40 if options.quick else 400)
    options.runs = options.runs or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as scratch:
        bench = Bench(options.keep or Path(scratch), options)
        asyncio.run(measure(bench))
    vectors = "static vectors" if options.embedder == "static" else "the model's vectors"
    what = "the company index by partitions and rows refined" if options.tune else "search"
    title = f"{what}, {vectors}, {len(bench.texts)} questions, median of {options.runs}"
    show(title, bench.rows if options.tune else bench.with_ratios(), options.json, facts=bench.facts)


if __name__ == "__main__":
    main()
