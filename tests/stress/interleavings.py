"""Publishes, rollbacks, questions, expiry and cache losses in random order: is an answer ever stale or out of scope?

A small company of four shards changes at random: documents are added, changed and deleted; shards are rolled back, held
and released. Two tenants ask in several scopes and wordings, some at the same time as a publish; the clock jumps, the
cache is flushed or evicts. The catalog, the client, the guards and the cache are real; documents, vectors and the
language model are simulated, so that thousands of steps take a minute. The model signs each answer with the number of
its recorded prompt, and the prompt is compared with the published state of the shards.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.reporting import arguments, show
from rag_serving.answering.generation import LanguageModel
from rag_serving.cache.memory_store import MemoryStore
from rag_serving.cache.store import CacheStore
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.lake.catalog import Snapshot
from rag_serving.lake.catalog_entry import CatalogEntry, Publication, catalog_key
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.lake.search.query import Query
from rag_serving.lake.shards import Shard
from rag_serving.results import Answer, Document, Hit
from rag_serving.settings import ServingSettings

if TYPE_CHECKING:
    import numpy.typing as npt

SHARDS = tuple(Shard(region, department) for region in ("oslo", "lisbon") for department in ("people", "finance"))
THINGS = ("anchor", "badge", "canteen", "dock", "engine", "ferry")
WORDINGS = (
    "What is the code of the {}?",
    "what's the code of the {}",
    "What is the code of the {}, please?",
    "Tell me the code of the {}.",
    "What is not the code of the {}?",
)
SCOPES: tuple[dict[str, list[str]], ...] = (
    {},
    {"regions": ["oslo"]},
    {"regions": ["oslo"], "departments": ["people"]},
    {"departments": ["finance"]},
)
TENANTS = ("acme", "globex")
MOST_ENTRIES = 40
IDENTITY = EmbedderIdentity(
    format=1,
    model="words",
    weights_sha256="0" * 64,
    dimensions=64,
    window=64,
    pooling="none",
    normalized=True,
    inputs=("input_ids",),
    files={},
    self_test=(1.0,),
)
_ASKER: ContextVar[tuple[str, str]] = ContextVar("_ASKER")

Documents = dict[str, int]
"""The code of each thing in a shard."""


class WordEmbedder:
    """Sum a random vector per word: paraphrases are similar, questions about other things are not."""

    identity = IDENTITY

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return unit vectors of shape ``(len(texts), 64)``."""
        return np.stack([self.embed_query(text) for text in texts])

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the same vectors as for documents."""
        return self.embed_documents(texts)

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """Return a unit vector of shape ``(64,)``."""
        total = np.full(64, 1e-3, dtype=np.float32)
        for word in re.findall(r"\w+", text.lower()):
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
            weight = 1.0 if len(word) > 3 else 0.3
            total += weight * np.random.default_rng(seed).standard_normal(64, dtype=np.float32)
        return total / np.linalg.norm(total)

    def fits(self, text: str) -> bool:
        """Return whether there is any text; there is no length limit."""
        return bool(text)


@dataclass
class ShardState:
    """What a shard's pipeline has built, and which of its versions is published."""

    head: Documents
    versions: list[Documents] = field(default_factory=list[Documents])
    current: int = 0
    held: bool = False


State = Mapping[str, Documents]
"""The published documents by shard."""


class Company:
    """The shards and their catalog objects, which serving reads."""

    def __init__(self, lake: Path, rng: random.Random) -> None:
        self._lake = lake
        self._rng = rng
        self.shards = {shard: ShardState({thing: rng.randrange(1000) for thing in THINGS[:4]}) for shard in SHARDS}
        for shard in SHARDS:
            self.publish(shard)

    def state(self) -> State:
        """Return the published documents of every shard."""
        return {shard.key: dict(one.versions[one.current]) for shard, one in self.shards.items()}

    def change(self, shard: Shard) -> None:
        """Add, change or delete documents, and publish them unless the shard is on hold."""
        head = self.shards[shard].head
        for thing in self._rng.sample(THINGS, self._rng.randint(1, 2)):
            if thing in head and len(head) > 1 and self._rng.random() < 0.3:
                del head[thing]
            else:
                head[thing] = self._rng.randrange(1000)
        if not self.shards[shard].held:
            self.publish(shard)

    def publish(self, shard: Shard) -> None:
        """Publish the head."""
        one = self.shards[shard]
        one.versions.append(dict(one.head))
        one.current = len(one.versions) - 1
        one.held = False
        self._write(shard)

    def roll_back(self, shard: Shard) -> None:
        """Publish an older version and hold the shard there."""
        one = self.shards[shard]
        one.current = self._rng.randrange(max(0, len(one.versions) - 4), len(one.versions))
        one.held = True
        self._write(shard)

    def _write(self, shard: Shard) -> None:
        one = self.shards[shard]
        documents = one.versions[one.current]
        digest = hashlib.sha256(repr(sorted(documents.items())).encode()).hexdigest()[:32]
        entry = CatalogEntry(
            format=1,
            region=shard.region,
            department=shard.department,
            table=shard.table_name,
            epoch=1,
            history=(),
            current=Publication(
                version=one.current + 1,
                content_digest=digest,
                source_digest=digest,
                fingerprint=IDENTITY.fingerprint,
                documents=len(documents),
                chunks=len(documents),
                quarantined=0,
                published_at=datetime.now(UTC),
                run_id="run",
                published_by="",
                table_format=2,
            ),
        )
        path = self._lake / catalog_key(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".new")
        written.write_bytes(entry.to_json())
        written.replace(path)

    def documents(self, entry: CatalogEntry) -> Documents:
        """Return the documents in the version of a catalog entry."""
        return self.shards[entry.shard].versions[entry.current.version - 1]


class CompanySearcher:
    """Find the passages most similar to a question, in the versions of the given catalog entries."""

    def __init__(self, company: Company) -> None:
        self._company = company
        self._embedder = WordEmbedder()

    async def search(
        self,
        query: Query,
        vectors: Mapping[str, npt.NDArray[np.float32]],
        entries: Sequence[CatalogEntry],
        snapshot: Snapshot,
    ) -> tuple[list[Hit], tuple[str, ...]]:
        """Return the best passages."""
        await asyncio.sleep(0)
        assert snapshot.entries
        (vector,) = vectors.values()
        found: list[tuple[float, Shard, str, int]] = []
        for entry in entries:
            for thing, number in sorted(self._company.documents(entry).items()):
                found.append(
                    (float(self._embedder.embed_query(passage(thing, number)) @ vector), entry.shard, thing, number)
                )
        found.sort(key=lambda one: (-one[0], one[1], one[2]))
        return [
            hit(rank, score, shard, thing, number)
            for rank, (score, shard, thing, number) in enumerate(found[: query.k], start=1)
        ], ()

    async def document(self, entry: CatalogEntry, doc_id: str, first: int, count: int) -> Document | None:
        """Return None, because no document is read."""

    async def warm(self, entries: Iterable[CatalogEntry], snapshot: Snapshot) -> None:
        """Do nothing."""

    def follow(self, snapshot: Snapshot) -> None:
        """Do nothing."""

    @property
    def dropped_rows(self) -> int:
        """Return zero."""
        return 0

    async def close(self) -> None:
        """Do nothing."""


def passage(thing: str, number: int) -> str:
    """Return the text of a document."""
    return f"The code of the {thing} is {number}."


def hit(rank: int, score: float, shard: Shard, thing: str, number: int) -> Hit:
    """Return a search hit."""
    text = passage(thing, number)
    return Hit(
        source=f"file:///{shard.key}/{thing}.md",
        title=thing,
        heading_path=(),
        page=None,
        start=0,
        end=len(text),
        shard=shard.key,
        score=score,
        chunk_id=hashlib.sha256(f"{shard.key}/{thing}/{number}".encode()).hexdigest()[:32],
        text=text,
        rank=rank,
        fused=1 / (60 + rank),
        path=f"{thing}.md",
        doc_id=f"{shard.key}/{thing}",
        type="text/markdown",
        modified_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@dataclass(frozen=True)
class Prompt:
    """The passages an answer was generated from, and its tenant and scope."""

    tenant: str
    scope: str
    passages: frozenset[tuple[str, str]]
    """Pairs of text and title."""


class SigningModel:
    """Answer with only the number of the prompt, and record the prompt."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    async def __call__(self, **arguments: Any) -> AsyncIterator[Any]:
        content = arguments["messages"][1]["content"]
        pairs = re.findall(r"^\[\d+\] (\w+)\n\| (.+)$", content, re.MULTILINE)
        tenant, scope = _ASKER.get()
        self.prompts.append(Prompt(tenant, scope, frozenset((text, title) for title, text in pairs)))
        return self._pieces(f"Prompt {len(self.prompts) - 1} [1].")

    async def _pieces(self, text: str) -> AsyncIterator[Any]:
        await asyncio.sleep(0.001)
        yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=text))])


@dataclass
class Outcome:
    """What has happened so far. `wrong` lists wrong answers."""

    steps: int = 0
    answers: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])


class World:
    """One company, one client, and the checks of every answer."""

    def __init__(
        self, lake: Path, seed: int, store: CacheStore | None, flush: Callable[[], Awaitable[object]] | None
    ) -> None:
        self._rng = random.Random(seed)
        self._company = Company(lake, self._rng)
        self._model = SigningModel()
        self._now = time.time()  # Redis uses its own clock
        self._store = store or MemoryStore(MOST_ENTRIES, self._time)
        self._flush_store = flush
        self._states: list[State] = []
        self.outcome = Outcome()
        settings = ServingSettings.model_validate(
            {"lake_uri": str(lake), "catalog_refresh": 0, "cache_ttl": 1000, "min_evidence": -1}
        )
        self.client = AsyncRagClient(
            settings,
            cache_store=self._store,
            model=LanguageModel("signing", timeout=30, retries=0, max_tokens=50, completion=self._model),
            searcher=CompanySearcher(self._company),
            load=lambda _objects, _fingerprint, **_: WordEmbedder(),
            clock=self._time,
        )

    def _time(self) -> float:
        return self._now

    async def step(self) -> None:
        """Do one random thing."""
        rng = self._rng
        self.outcome.steps += 1
        shard = rng.choice(SHARDS)
        match rng.choices(
            ["ask", "ask at once", "change", "roll back", "release", "hold", "time", "flush"],
            [200, 20, 14, 4, 3, 3, 4, 1],
        )[0]:
            case "ask":
                await self._ask(0)
            case "ask at once":
                changes = asyncio.create_task(self._change_meanwhile(shard))
                await asyncio.gather(*(self._ask(rng.random() / 500) for _ in range(5)))
                await changes
            case "change":
                self._company.change(shard)
            case "roll back":
                self._company.roll_back(shard)
            case "release":
                self._company.publish(shard)
            case "hold":
                self._company.shards[shard].held = True
            case "time":
                self._now += rng.choice([10, 300, 1001])
            case _:
                await self._flush()

    async def _flush(self) -> None:
        if self._flush_store is None:
            await self._store.close()  # closing the memory store only empties it
        else:
            await self._flush_store()

    async def _change_meanwhile(self, shard: Shard) -> None:
        await asyncio.sleep(self._rng.random() / 500)
        self._company.change(shard)
        self._states.append(self._company.state())

    async def _ask(self, after: float) -> None:
        await asyncio.sleep(after)
        rng = self._rng
        (tenant,), (scope,) = rng.choices(TENANTS, [4, 1]), rng.choices(SCOPES, [5, 2, 2, 1])
        question = rng.choice(WORDINGS).format(rng.choices(THINGS, [9, 4, 2, 1, 1, 1])[0])
        before = self._company.state()
        self._states = [before]
        states = self._states
        _ASKER.set((tenant, repr(scope)))
        answer = await self.client.ask(question, tenant=tenant, k=3, **scope)
        possible = [before, *states, self._company.state()]
        self.outcome.answers["shared" if answer.shared else answer.cache] += 1
        self._check(answer, question, tenant, scope, possible)

    def _check(
        self, answer: Answer, question: str, tenant: str, scope: Mapping[str, list[str]], states: Sequence[State]
    ) -> None:
        signed = re.search(r"Prompt (\d+)", answer.text)
        if signed is None:
            self.outcome.wrong.append(f"{question!r} was answered {answer.text!r}, {answer.degraded}")
            return
        prompt = self._model.prompts[int(signed[1])]
        request = f"{question!r} of {tenant} in {dict(scope)} ({answer.cache}, {answer.cached_question!r})"
        if (prompt.tenant, prompt.scope) != (tenant, repr(dict(scope))):
            self.outcome.wrong.append(f"{request} got an answer generated for {prompt.tenant} in {prompt.scope}")
        if not any(prompt.passages <= self._published(state, scope) for state in states):
            self.outcome.wrong.append(
                f"{request} got an answer from passages that are not published in its scope: {sorted(prompt.passages)}"
            )

    @staticmethod
    def _published(state: State, scope: Mapping[str, list[str]]) -> set[tuple[str, str]]:
        passages: set[tuple[str, str]] = set()
        for key, documents in state.items():
            shard = Shard.parse(key)
            inside = shard.region in scope.get("regions", [shard.region])
            if inside and shard.department in scope.get("departments", [shard.department]):
                passages.update((passage(thing, number), thing) for thing, number in documents.items())
        return passages


async def run(
    steps: int, seed: int, store: CacheStore | None = None, flush: Callable[[], Awaitable[object]] | None = None
) -> Outcome:
    """Run `steps` steps on a store that `flush` empties; stop at the first wrong answer."""
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as lake:
        world = World(Path(lake), seed, store, flush)
        async with world.client:
            while world.outcome.steps < steps and not world.outcome.wrong:
                await world.step()
        return world.outcome


async def run_on_redis(steps: int, seed: int, url: str) -> Outcome:
    """Run the steps on a Redis, which is flushed."""
    from redis.asyncio import Redis

    from rag_serving.cache.redis_store import open_redis

    async with Redis.from_url(url) as direct:
        store = open_redis(url, timeout=5, prefix="interleavings", most_entries=MOST_ENTRIES)
        return await run(steps, seed, store, direct.flushdb)


def main() -> None:
    """Run the steps and print the outcome."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--redis", metavar="URL", help="a Redis to use and flush, instead of the cache in memory")
    options = parser.parse_args()
    steps = 300 if options.quick else options.steps

    async def go() -> Outcome:
        if not options.redis:
            return await run(steps, options.seed)
        return await run_on_redis(steps, options.seed, options.redis)

    outcome = asyncio.run(go())
    row = {"steps": outcome.steps, **dict(sorted(outcome.answers.items())), "wrong": len(outcome.wrong)}
    show("publishes, questions and cache losses in random order", [row], options.json, wrong=outcome.wrong)
    if outcome.wrong:
        raise SystemExit(outcome.wrong[0])


if __name__ == "__main__":
    main()
