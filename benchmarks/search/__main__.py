"""Measure latency and recall of search by the number of rows, in one shard and in all, and of other ways to search.

Passages are real text cut into a million pieces, with static vectors distilled from the packaged model and padded to
its dimensions (`--embedder model` embeds them with the model itself, half a minute per thousand). Questions are from
SQuAD and SciFact; a hash selects the half for `--tune` or reporting. The pipeline's functions build and publish the
shards and the company index, and the client's `Searcher` searches them. Embedding the question is not measured, because
it is the same for all contenders.

Recall@10 is the share of the ten passages that an exact search would have shown: numpy compares every row, and
duplicates are collapsed as in the client. For peers, which do not collapse duplicates, it is the share of the ten
nearest rows. Each question is asked of a random shard; contenders take turns. One shard is also measured after 200
small changes, before and after maintenance. Peers run in their own environment, `.venv-search-peers`, created on first
use, and get vectors without padding; chroma is measured only up to --chroma-rows.
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
"""Above this number of shards, the client searches the company index; its default."""
SCOPES = {
    "shard": "one shard",
    "all": "all shards",
    "fresh": "fresh shard",
    "changed": "after upserts",
    "kept": "after maintenance",
}
REQUIREMENTS = ROOT / "benchmarks" / "search-requirements.txt"
UPSERTS = 200
_RESERVE = 12_000
"""Additional passages for the upserts."""
_PEER_SECONDS = 3600
_EXTRA = 200
"""Rows of an exact ranking among which ten distinct ones are selected."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to search this many rows; `truth` is the exact result of each question, if known."""

    rows: int
    scope: str
    mode: str
    name: str
    ask: Ask
    truth: Sequence[Sequence[int]] | None


class Bench:
    """One lake with its corpus and questions, and the figures so far."""

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
            raise SystemExit(f"the texts of RAG_TEST_DATA only give {len(corpus)} of {max(options.rows)} passages")
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

        say("loading static vectors (distilling them takes a minute the first time)")
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
        """Return the questions, each with a random shard."""
        drawn = random.Random(shards)
        return Questions(self.texts, self.wide, [drawn.randrange(shards) for _ in self.texts])

    @property
    def texts_of(self) -> pa.ChunkedArray:
        return self.builder.corpus.passages["text"]

    def exact(self, questions: Questions, rows: int) -> dict[str, list[list[int]]]:
        """Return the exact results of each question, in its shard and in all rows."""
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
        """Return what the client would show of exact rankings."""
        return [collapsed(self.texts_of, ranked) for ranked in exact]

    async def prepare(self, rows: int) -> list[Contender]:
        """Build a separate lake of this size, and return the contenders of this process on it."""
        from rag_assets.storage.lake import Lake
        from rag_serving.retrieval.searcher import Searcher

        shards = -(-rows // self.builder.shard_rows)
        wide = shards > WIDE
        place = self.folder / f"lake-{rows}"
        started = time.perf_counter()
        if not place.exists():
            self.builder.build(range(shards))
            if wide:
                self.builder.company(shards, rebuild=True)
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
        """Time the contenders in turn, run by run, so that other work on the machine affects all of them alike."""
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
        """Close the searchers."""
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
                "scope": SCOPES[scope],
                "search": mode,
                "system": name,
                "in flight": at_once,
                "p50 ms": round(figures.p50, 2),
                "p95 ms": round(figures.p95, 2),
                "questions/s": round(figures.per_second, 1),
                "CPU ms": round(figures.cpu, 2),
                "recall@10": "" if reached is None else f"{reached:.4f}",
                "× rag-shards p50": "",
                "remark": remark,
            }
        )
        say(" ".join(f"{key}={value}" for key, value in self.rows[-1].items() if value != ""))

    def with_ratios(self) -> list[dict[str, object]]:
        """Return the table, with the ratio of other contenders' p50 to this project's."""
        names = ("rows", "scope", "search", "in flight")
        mine = {tuple(row[name] for name in names): row["p50 ms"] for row in self.rows if row["system"] == OURS}
        for row in self.rows:
            own: Any = mine.get(tuple(row[name] for name in names))
            took: Any = row["p50 ms"]
            if own and took and row["system"] != OURS:
                row["× rag-shards p50"] = f"{took / own:.2f}"
        return self.rows

    async def _filtered_table(self, lake: Path) -> Any:
        """Clone the lake's company index and add indexes of region and department."""
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
        """Time the peers at a prepared size, each in its own process."""
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
        blank = dict.fromkeys(("p50 ms", "p95 ms", "questions/s", "CPU ms", "recall@10", "× rag-shards p50"), "")
        return {
            "rows": rows,
            "scope": "",
            "search": "vector",
            "system": name,
            "in flight": "",
            **blank,
            "remark": reason,
        }

    async def tune(self, rows: int) -> list[dict[str, object]]:
        """Return recall and cost of searching the company index, by probes and refine factor, with and without filters.

        A filter keeps one shard or a tenth of them; the exact search is restricted in the same way.
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
            "all shards": (None, nearest(vectors[:rows], self.narrow, DEPTH).tolist(), (5, 10, 20, 30, 40, 60, 80)),
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
                    table_rows.append({"scope": scope, "probes": looked_at, "refine factor": refine, **figures})
                    say(str(table_rows[-1]))
        return table_rows

    async def upserts(self, rows: int) -> list[Contender]:
        """Return contenders on one shard as built, after many small changes, and after maintenance.

        The first `rows` rows of the corpus are already in shards.
        """
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
    """Clone a lake with hard links; table files are immutable, and objects are replaced as a whole."""
    shutil.copytree(source, target, copy_function=os.link)


def questions_of(data: Path, part: str, count: int) -> list[str]:
    """Return questions of one half of SQuAD and SciFact, alternating."""
    from benchmarks.quality.retrieval import half, read_scifact, read_squad

    squad, scifact = read_squad(data / "eval" / "squad", None), read_scifact(data / "eval" / "scifact", None)
    halves = [[q.text for q in task.questions if half(q) == part] for task in (squad, scifact)]
    for questions in halves:
        random.Random(1).shuffle(questions)
    return [text for pair in zip(*halves, strict=False) for text in pair][:count]


async def measure(bench: Bench) -> None:
    """Run the selected measurements and store them in `bench.rows`."""
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
    """Run the benchmark and print its table."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--rows", type=int, nargs="+", help="total rows, one or more sizes (default 10000 100000 1000000)"
    )
    parser.add_argument("--shard-rows", type=int, help="rows per shard (default 10000)")
    parser.add_argument(
        "--in-flight", type=int, nargs="+", default=[1, 8, 64], help="concurrent questions (default 1 8 64)"
    )
    parser.add_argument("--questions", type=int, help="number of questions (default 400)")
    parser.add_argument("--runs", type=int, help="runs per median (default 3, 1 with --quick)")
    parser.add_argument(
        "--embedder", choices=["static", "model"], default="static", help="source of the vectors (default: static)"
    )
    parser.add_argument("--tune", action="store_true", help="compare index settings, on the tuning questions")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the lakes in FOLDER and reuse them")
    parser.add_argument(
        "--chroma-rows", type=int, default=100_000, help="maximum rows for chroma (default %(default)s)"
    )
    parser.add_argument("--without-peers", action="store_true", help="measure only this project")
    parser.add_argument("--without-upserts", action="store_true", help="skip the measurements after upserts")
    options = parser.parse_args()
    options.data = os.environ.get("RAG_TEST_DATA")
    if not options.data:
        parser.error("needs the test data: set RAG_TEST_DATA to a folder that contains eval/ and bucket/")
    options.shard_rows = options.shard_rows or (2_500 if options.quick else 10_000)
    options.rows = sorted(options.rows or ([2_500, 15_000] if options.quick else [10_000, 100_000, 1_000_000]))
    options.questions = options.questions or (40 if options.quick else 400)
    options.runs = options.runs or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as scratch:
        bench = Bench(options.keep or Path(scratch), options)
        asyncio.run(measure(bench))
    vectors = "static vectors" if options.embedder == "static" else "the model's vectors"
    what = "the company index by probes and refine factor" if options.tune else "search"
    title = f"{what}, {vectors}, {len(bench.texts)} questions, median of {options.runs} runs"
    show(title, bench.rows if options.tune else bench.with_ratios(), options.json, facts=bench.facts)


if __name__ == "__main__":
    main()
