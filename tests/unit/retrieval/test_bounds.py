"""Bounds of serving: concurrency limiters, the circuit breaker, and batched question embedding."""

from __future__ import annotations

import asyncio
import logging
import re
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
        self._probed = asyncio.Event()

    async def probed_again(self, times: int) -> None:
        """Wait for further probes."""
        for _ in range(times):
            self._probed.clear()
            await self._probed.wait()

    async def probe(self) -> None:
        self.probes += 1
        self._probed.set()
        if not self.back:
            raise ConnectionError("not yet")


def test_a_breaker_opens_after_failures_in_a_row_and_closes_after_a_successful_probe_without_any_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def go() -> None:
        server = Server()
        breaker = CircuitBreaker("the server", server.probe, pause=0.001, failures=2)
        breaker.failed("Slow")
        breaker.succeeded()
        breaker.failed("Slow")
        assert not breaker.is_open
        breaker.failed("Dead")
        assert breaker.is_open
        await server.probed_again(3)
        breaker.failed("Dead")  # a request that was already under way
        assert breaker.is_open
        server.back = True
        await server.probed_again(1)
        await asyncio.sleep(0)
        assert not breaker.is_open
        probes = server.probes
        await asyncio.sleep(0.01)
        assert server.probes == probes
        await breaker.close()

    asyncio.run(go())
    opened, closed = [(record.levelname, record.message) for record in caplog.records]
    reason = "the server failed 2 times in a row, last with Dead; bypassing it until a probe succeeds"
    assert opened == ("WARNING", f"circuit breaker opened: {reason}")
    assert closed[0] == "INFO"
    assert re.fullmatch(r"circuit breaker closed: the server responds again after \d+\.\d seconds", closed[1])


def test_a_closed_connection_is_not_probed_any_more() -> None:
    async def go() -> None:
        server = Server()
        breaker = CircuitBreaker("the server", server.probe, pause=0.001, failures=1)
        breaker.failed("Dead")
        await breaker.close()
        await asyncio.sleep(0.01)
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
