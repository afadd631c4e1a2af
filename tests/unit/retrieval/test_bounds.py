"""Bounds of serving: concurrency limiters, the circuit breaker, and batched question embedding."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from rag_serving.concurrency.circuit_breaker import CircuitBreaker
from rag_serving.concurrency.limiter import ConcurrencyLimiter
from rag_serving.errors import Overloaded
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.retrieval.query_embedder import MOST_TOGETHER, QueryEmbedder


def test_a_limiter_runs_some_queues_some_and_rejects_the_rest_as_overloaded() -> None:
    async def go() -> None:
        gate, leave = ConcurrencyLimiter("searches", running=2, waiting=3), asyncio.Event()
        running = 0
        most = 0

        async def enter() -> None:
            nonlocal running, most
            async with gate.slot():
                running += 1
                most = max(most, running)
                await leave.wait()
                running -= 1

        tasks = [asyncio.create_task(enter()) for _ in range(6)]
        await asyncio.sleep(0.01)
        assert gate.inside == 5
        leave.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [type(None)] * 5 + [Overloaded]
        assert "searches" in str(results[-1])
        assert (most, gate.inside) == (2, 0)

    asyncio.run(go())


def test_a_caller_that_stops_waiting_frees_its_place_in_the_queue() -> None:
    async def go() -> None:
        gate = ConcurrencyLimiter("calls", running=1, waiting=1)
        async with gate.slot():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), gate.slot():
                    raise AssertionError("the gate is full")
            assert gate.inside == 1
        async with gate.slot():
            assert gate.inside == 1

    asyncio.run(go())


class Server:
    """A server whose probe succeeds once `back` is set."""

    def __init__(self) -> None:
        self.back = False
        self.probes = 0

    async def probe(self) -> None:
        self.probes += 1
        if not self.back:
            raise ConnectionError("not yet")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_breaker_opens_after_failures_in_a_row_and_closes_after_a_successful_probe(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def go() -> None:
        now = 0.0
        server = Server()
        breaker = CircuitBreaker("the server", server.probe, pause=5, failures=2, clock=lambda: now)
        breaker.failed("Slow")
        breaker.succeeded()
        breaker.failed("Slow")
        assert not breaker.refuses()
        breaker.failed("Dead")
        assert breaker.refuses()
        await settle()
        assert server.probes == 0  # it has just failed, so the first probe waits for the pause
        now = 5.0
        assert breaker.refuses()  # callers do not wait for the probe
        assert breaker.refuses()
        await settle()
        assert server.probes == 1
        assert breaker.refuses()  # the probe failed
        now = 9.0
        breaker.failed("Dead")  # a request that was already under way
        assert breaker.refuses()
        await settle()
        assert server.probes == 1
        server.back, now = True, 10.0
        assert breaker.refuses()
        await settle()
        assert not breaker.refuses()
        await breaker.close()

    asyncio.run(go())
    opened = "the server failed 2 times in a row, last with Dead; bypassing it until a probe succeeds"
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", f"circuit breaker opened: {opened}"),
        ("INFO", "circuit breaker closed: the server responds again after 10.0 seconds"),
    ]


def test_whether_a_breaker_is_open_can_be_read_without_starting_a_probe() -> None:
    async def go() -> None:
        server = Server()
        breaker = CircuitBreaker("the server", server.probe, pause=0, failures=1)
        assert not breaker.is_open
        breaker.failed("Dead")
        assert breaker.is_open
        await settle()
        assert server.probes == 0

    asyncio.run(go())


class SlowEmbedder:
    """Return one-number vectors; every batch blocks until `go` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.fails = False

    @property
    def identity(self) -> EmbedderIdentity:
        raise NotImplementedError("not used in these tests")

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        raise NotImplementedError("not used in these tests")

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        return self.embed_queries([text])[0]

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.batches.append(list(texts))
        assert self.go.wait(20)
        if self.fails:
            raise ValueError("no vectors")
        return np.array([[float(text)] for text in texts], dtype=np.float32)

    def fits(self, text: str) -> bool:
        return bool(text)


def test_questions_that_arrive_during_an_embedding_are_batched_together() -> None:
    async def go() -> None:
        slow = SlowEmbedder()
        embedder = QueryEmbedder(slow)
        first = asyncio.create_task(embedder.embed("0"))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(embedder.embed(str(number))) for number in range(1, MOST_TOGETHER + 3)]
        await asyncio.sleep(0.05)
        rest[0].cancel()
        slow.go.set()
        assert (await first).tolist() == [0.0]
        results = await asyncio.gather(*rest, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert [float(np.asarray(result)[0]) for result in results[1:]] == [*range(2, MOST_TOGETHER + 3)]
        assert [len(batch) for batch in slow.batches] == [1, MOST_TOGETHER - 1, 2]

    asyncio.run(go())


def test_a_failure_reaches_every_caller_of_its_batch_and_later_callers_are_served() -> None:
    async def go() -> None:
        slow = SlowEmbedder()
        slow.fails = True
        slow.go.set()
        embedder = QueryEmbedder(slow)
        results = await asyncio.gather(*(embedder.embed("1") for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError] * 3
        slow.fails = False
        assert (await embedder.embed("2")).tolist() == [2.0]

    asyncio.run(go())
