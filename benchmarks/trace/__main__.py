"""Ask 20,000 questions over changing handbook pages: LLM calls saved, wrong hits, stale answers.

Base questions are made from sentences of the pages and drawn by Zipf's law: a few are asked all the time, many once.
They are repeated, restyled, paraphrased by rules, and mixed with near misses that no page answers. Real runs of the
pipeline publish in between; each changes one in a hundred documents. The language model is a stand-in that makes no
errors, so the right answer to every question is known at any time: its answer without a cache. The caches share
searches and vectors, which are the same for all of them. `benchmarks.trace.worlds` defines wrong and stale.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import lakes
from benchmarks.reporting import arguments, show
from benchmarks.trace.documents import Documents, copied
from benchmarks.trace.evidence import Kept, probe
from benchmarks.trace.memo import RememberingEmbedder, RememberingSearcher
from benchmarks.trace.model import Quoting, language_model, plain
from benchmarks.trace.questions import Questions, made_from
from benchmarks.trace.traffic import SHARES, Asking, drawn, repeat_share
from benchmarks.trace.worlds import GUARDS, RULES, Passages, Right, Scope, World, scope_of

if TYPE_CHECKING:
    from rag_serving.cache.guards.judge import Judge
    from rag_serving.clients.lake import AsyncRagClient

SHARDS = (
    "london/kubernetes",
    "portland/common-practices-tools",
    "portland/company-policies",
    "san-francisco/benefits-pay-perks",
    "san-francisco/people-talent",
    "san-francisco/product",
    "san-francisco/security",
    "toronto/company",
    "washington/general-information-and-resources",
    "washington/tools",
    "washington/travel-and-leave",
)
"""About 500 English pages."""
QUICK_SHARDS = ("portland/employee-benefits", "toronto/company")
PLACES = ("London", "Tokyo", "Washington", "Toronto", "Portland")
SECONDS_APART = 2.0
"""Seconds between two questions on the caches' clock; 20,000 take a day of eleven hours."""
_CATALOG_SECONDS = 0.2
_AT_ONCE = 8


@dataclass
class Bench:
    """The lake, its pipeline, and the worlds."""

    options: Any
    pipeline: ProcessPoolExecutor
    source: Path
    lake: Path
    questions: Questions
    documents: Documents
    passages: Passages
    searcher: RememberingSearcher = field(init=False)
    reference: AsyncRagClient = field(init=False)
    worlds: list[World] = field(default_factory=list[World])
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    _now: float = field(default_factory=time.time)
    _part: int = 0
    _seen: dict[str, int] = field(default_factory=dict[str, int])
    """The publish after which each passage most recently appeared, by chunk id."""
    _right: dict[str, Right] = field(default_factory=dict[str, Right])

    def _note(self) -> None:
        there = {chunk for passages in self.passages.values() for chunk, _ in passages}
        self._seen = {chunk: self._seen.get(chunk, self._part) for chunk in there}

    def prepare(self) -> None:
        """Create the clients and the traces."""
        self._note()
        from rag_serving.cache.memory_store import MemoryStore
        from rag_serving.clients.lake import AsyncRagClient
        from rag_serving.lake.embedders.loading import load_embedder
        from rag_serving.lake.object_store import open_object_store
        from rag_serving.retrieval.searcher import Searcher
        from rag_serving.settings import ServingSettings

        self.searcher = RememberingSearcher(Searcher(str(self.lake)))
        objects = open_object_store(str(self.lake))
        embedders: dict[str, RememberingEmbedder] = {}

        def load(_objects: object, fingerprint: str, **options: Any) -> RememberingEmbedder:
            if fingerprint not in embedders:
                embedders[fingerprint] = RememberingEmbedder(load_embedder(objects, fingerprint, **options))
            return embedders[fingerprint]

        def client(store: MemoryStore, judge: Judge | None = None, **settings: Any) -> AsyncRagClient:
            values = {"lake_uri": str(self.lake), "catalog_refresh": _CATALOG_SECONDS, **settings}
            return AsyncRagClient(
                ServingSettings.model_validate(values),
                objects=objects,
                cache_store=store,
                model=language_model(Quoting(self.questions, self.documents)),
                judge=judge,
                searcher=self.searcher,
                load=load,
                clock=self._time,
            )

        self.reference = client(MemoryStore(1, self._time), cache_mode="off")
        for exponent in self.options.exponents:
            trace = drawn(self.questions, self.options.questions, exponent, self.options.seed)
            for name, (judge, sure) in RULES.items():
                if name == GUARDS or exponent in self.options.thresholds_at:
                    store = MemoryStore(10**6, self._time)
                    one = client(store, judge(), cache_similarity=sure)
                    self.worlds.append(World(name, exponent, trace, one, store, self.questions, self.truth))
            self.facts[f"repeats, exponent {exponent}"] = repeat_share(trace)
            self.facts[f"wordings, exponent {exponent}"] = Counter(asking.wording for asking in trace)

    async def run(self) -> None:
        """Ask all questions, with publishes in between."""
        count, publishes = self.options.questions, self.options.publishes
        bounds = [round(count * part / (publishes + 1)) for part in range(publishes + 2)]
        for part, (start, end) in enumerate(itertools.pairwise(bounds)):
            if part:
                await self._publish()
                for world in self.worlds:
                    world.published()
            began, searches = time.perf_counter(), self.searcher.searches
            await self._look_ahead([asking for world in self.worlds for asking in world.trace[start:end]])
            looked = time.perf_counter()
            for world in self.worlds:
                await self._ask(world, start, end)
            self._now += (end - start) * SECONDS_APART
            spent = time.perf_counter()
            say(
                f"part {part + 1} of {publishes + 1}: {self.searcher.searches - searches} searches in "
                f"{looked - began:.0f} s, questions in {spent - looked:.0f} s"
            )

    async def probed(self) -> Kept:
        """Publish once more, then ask the question of every entry in the caches with guards."""
        await self._publish()
        there = frozenset(chunk for passages in self.passages.values() for chunk, _ in passages)
        return await probe([world for world in self.worlds if world.name == GUARDS], there, self._seen, self.reference)

    async def truth(self, question: str, scope: Scope) -> Right:
        """Return the model's current answer without a cache."""
        if question not in self._right:
            answer = await self.reference.ask(question, **scope)
            while answer.shared:  # made for another form of the question, which may retrieve other passages
                answer = await self.reference.ask(question, **scope)
            self._right[question] = Right(plain(answer.text), answer.model is not None)
        return self._right[question]

    async def close(self) -> None:
        """Close the clients."""
        self.facts |= {"searches": self.searcher.searches, "unsteady searches": self.searcher.unsteady}
        for client in (self.reference, *(world.client for world in self.worlds)):
            await client.close()

    async def _publish(self) -> list[str]:
        count, keys = self.documents.change()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(
            self.pipeline, lakes.index, str(self.source), str(self.lake), keys, self.options.chunker
        )
        self.passages = {
            **self.passages,
            **await loop.run_in_executor(self.pipeline, lakes.published, str(self.lake), keys),
        }
        self._part += 1
        self._note()
        await asyncio.sleep(2 * _CATALOG_SECONDS)
        self._right.clear()
        self.facts.setdefault("publishes", []).append({"documents": count, "shards": keys})
        return keys

    async def _look_ahead(self, askings: Sequence[Asking]) -> None:
        """Determine the right answers to these questions, several at a time."""
        unseen = iter({asking.text: asking for asking in askings}.values())

        async def look() -> None:
            for asking in unseen:
                await self.truth(asking.text, scope_of(asking.base))

        await asyncio.gather(*(look() for _ in range(_AT_ONCE)))

    async def _ask(self, world: World, start: int, end: int) -> None:
        now = self._now
        for asking in world.trace[start:end]:
            await world.ask(asking, self.passages)
            self._now += SECONDS_APART
        self._now = now  # all worlds share the same hours

    def _time(self) -> float:
        return self._now


def say(what: str) -> None:
    """Print progress to standard error."""
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--questions", type=int, help="questions per trace (default 20000)")
    parser.add_argument("--exponents", type=float, nargs="+", help="Zipf exponents (default 0.8 1.0 1.2)")
    parser.add_argument("--publishes", type=int, help="publishes during a trace (default 5)")
    parser.add_argument("--bases", type=int, default=2_000, help="maximum base questions (default %(default)s)")
    parser.add_argument(
        "--thresholds-at",
        type=float,
        nargs="*",
        default=[1.0],
        metavar="EXPONENT",
        help="exponents at which plain thresholds are measured as well (default 1.0)",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of all random choices (default %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the initial lake in FOLDER and reuse it")
    options = parser.parse_args()
    data = os.environ.get("RAG_TEST_DATA")
    if not data:
        parser.error("needs the test data: set RAG_TEST_DATA to a folder that contains bucket/")
    options.questions = options.questions or (400 if options.quick else 20_000)
    options.exponents = options.exponents or ([1.0] if options.quick else [0.8, 1.0, 1.2])
    options.publishes = options.publishes or (2 if options.quick else 5)
    options.chunker = lakes.STRUCTURE if options.quick else "semantic"
    shards = QUICK_SHARDS if options.quick else SHARDS
    with (
        tempfile.TemporaryDirectory(prefix="rag-bench-") as scratch,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pipeline,
    ):
        source, lake = Path(scratch, "source"), Path(scratch, "lake")
        began = time.perf_counter()
        copied(Path(data), source, shards)
        pipeline.submit(lakes.built, str(source), str(lake), shards, options.chunker, options.keep).result()
        say(f"built the lake in {time.perf_counter() - began:.0f} s")
        rows = pipeline.submit(lakes.texts, str(lake), shards).result()
        questions = made_from(rows, options.bases, 2 * options.bases, PLACES, options.seed)
        documents = Documents(source, questions.bases, options.seed)
        there = pipeline.submit(lakes.published, str(lake), shards).result()
        bench = Bench(options, pipeline, source, lake, questions, documents, there)
        firsts = sum(base.near is None for base in questions.bases)
        bench.facts |= {
            "documents": len(documents.paths()),
            "passages": len(rows),
            "base questions": firsts,
            "near misses": len(questions.bases) - firsts,
            "wordings drawn": SHARES,
        }

        async def go() -> Kept:
            bench.prepare()
            await bench.run()
            kept = await bench.probed()
            await bench.close()
            return kept

        kept = asyncio.run(go())
    counts = [{"exponent": world.exponent, "cache": world.name, **world.counts} for world in bench.worlds]
    examples = {f"{world.name}, {world.exponent}": world.examples for world in bench.worlds}
    title = (
        f"{options.questions} questions, {firsts} base questions, {options.publishes} publishes of 1 % of the documents"
    )
    more = {"facts": bench.facts, "counts": counts, "kept": kept.figures(), "examples": examples}
    show(title, [world.row() for world in bench.worlds], options.json, **more)
    show("every entry, asked once more after a last publish", kept.rows(), None)
    stale = sum(world.counts["hit stale"] for world in bench.worlds)
    if stale:
        raise SystemExit(f"{stale} stale answers")


if __name__ == "__main__":
    main()
