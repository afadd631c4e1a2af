"""Rate limits of keys: shared by all processes through a real Redis, and divided among workers without it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import redis
import trustme

from rag_serving.cache.redis_connection import connect
from rag_serving.http.api_keys import create_key
from rag_serving.http.rate_limits import RateLimits
from tests.servers import Certificate, redis_server
from tests.serving_process import Service, serving


@contextlib.asynccontextmanager
async def rates_at(url: str, *, patience: float = 5.0, pause: float = 5.0) -> AsyncGenerator[RateLimits]:
    """Open the rate limits of one process of a deployment."""
    rates = RateLimits(connect(url, purpose="test", timeout=patience, pause=pause), prefix="test")
    try:
        yield rates
    finally:
        await rates.close()


@pytest.fixture(params=["plain", "cluster", "cluster behind TLS"])
def shared_url(request: pytest.FixtureRequest, server_binaries: Path, tmp_path: Path) -> Iterator[str]:
    if request.param == "plain":
        yield request.getfixturevalue("redis_clean")
        return
    tls = None
    if "TLS" in request.param:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        tls = Certificate(tmp_path / "certificate.pem", tmp_path / "key.pem")
        issued.cert_chain_pems[0].write_to_path(tls.certificate)
        issued.private_key_pem.write_to_path(tls.key)
        authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    with redis_server(server_binaries, cluster=True, tls=tls) as own:
        scheme, _, rest = own.url.partition("://")
        yield f"{scheme}+cluster://{rest}" + (f"?ssl_ca_certs={tmp_path / 'authority.pem'}" if tls else "")


def test_processes_share_their_counts_under_the_prefix_of_the_deployment(shared_url: str) -> None:
    async def taken() -> list[bool]:
        async with rates_at(shared_url) as one, rates_at(shared_url) as two:
            waits = [await rates.take(3, "key", "a") for rates in (one, two, one, two, one)]
            other = await two.take(3, "key", "b")
            assert one.shared
            assert two.shared
            assert all(1 <= wait <= 60 for wait in waits if wait is not None)
            if "cluster" not in shared_url:
                with redis.Redis.from_url(shared_url) as direct:
                    names = list(direct.scan_iter("*"))
                assert names
                assert all(name.startswith(b"test:rates:") for name in names)
            return [wait is None for wait in (*waits, other)]

    assert asyncio.run(taken()) == [True, True, True, False, False, True]


def test_a_hanging_redis_is_bypassed_and_used_again_after_it_recovers(server_binaries: Path) -> None:
    async def counts() -> None:
        with redis_server(server_binaries) as own:
            async with rates_at(own.url, patience=0.2, pause=0.05) as rates:
                assert await rates.take(2, "key", "a") is None
                assert rates.shared
                own.process.send_signal(signal.SIGSTOP)
                try:
                    waits = [await rates.take(2, "key", "a") for _ in range(5)]
                    assert not rates.shared
                finally:
                    own.process.send_signal(signal.SIGCONT)
                assert [wait is None for wait in waits] == [
                    True,
                    True,
                    False,
                    False,
                    False,
                ]  # the limit applies locally, too
                deadline = time.monotonic() + 60
                while not rates.shared:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
                    await rates.take(1_000, "key", "other")

    asyncio.run(counts())


def test_a_dead_redis_is_not_contacted_by_every_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # accepts connections and never answers
        listening.setblocking(False)
        url = f"redis://127.0.0.1:{listening.getsockname()[1]}/0"

        def connections() -> int:
            for number in range(1_000):
                try:
                    listening.accept()[0].close()
                except BlockingIOError:
                    return number
            return 1_000

        async def takes() -> tuple[int, int]:
            async with rates_at(url, patience=0.1, pause=3_600.0) as rates:
                assert await rates.take(100, "key", "a") is None
                for _ in range(4):
                    await rates.take(100, "key", "a")
                assert rates.breaker_open
                first = connections()
                for _ in range(50):
                    await rates.take(100, "key", "a")
                return first, connections()

        first, further = asyncio.run(takes())
        assert first >= 1
        assert further == 0


def test_a_redis_that_rejects_commands_is_replaced_by_local_limits_with_one_log_line(
    server_binaries: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def taken(url: str) -> list[bool]:
        async with rates_at(url) as rates:
            waits = [await rates.take(2, "key", "a") for _ in range(4)]
            assert not rates.shared
            assert not rates.breaker_open
            return [wait is None for wait in waits]

    with redis_server(server_binaries) as own, redis.Redis.from_url(own.url) as direct:
        direct.config_set("maxmemory", 1)
        assert asyncio.run(taken(own.url)) == [True, True, False, False]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "Redis rejected a command (OutOfMemoryError); enforcing rate limits per process"
    ]


def test_without_redis_each_worker_allows_its_share_of_the_limit() -> None:
    async def taken() -> int:
        workers = [RateLimits(workers=4) for _ in range(4)]
        return sum([await one.take(10, "key", "a") is None for one in workers for _ in range(20)])

    assert asyncio.run(taken()) == 12  # three each


def statuses(service: Service, key: str, requests: int) -> Counter[int]:
    """Count the statuses of simultaneous requests, each on its own connection so that all workers get some."""

    async def gathered() -> list[int]:
        async def one() -> int:
            headers = {"authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(base_url=service.url, headers=headers, trust_env=False, timeout=60) as client:
                return (await client.get("/v1/shards")).status_code

        return await asyncio.gather(*(one() for _ in range(requests)))

    return Counter(asyncio.run(gathered()))


def test_several_workers_together_enforce_the_limit_of_a_key(
    sample_lake: str, redis_clean: str, tmp_path: Path
) -> None:
    key = create_key(tmp_path / "keys.json", "any", requests_per_minute=10)[1]
    environment = {
        "RAG_LAKE_URI": sample_lake,
        "RAG_REDIS_URL": redis_clean,
        "RAG_CACHE_TIMEOUT": "5",
        "RAG_HTTP_KEYS": str(tmp_path / "keys.json"),
    }
    with serving(tmp_path, environment, "--workers", "2") as service:
        assert statuses(service, key, 40) == {200: 10, 429: 30}
        metrics = httpx.get(f"{service.url}/metrics", trust_env=False).text
        assert "rag_rates_shared 1.0" in metrics
        counted = re.findall(r'rag_requests_total\{.*route="/v1/shards".* (\S+)', metrics)
        assert sum(map(float, counted)) == 40  # over both workers
    del environment["RAG_REDIS_URL"]
    with serving(tmp_path, environment, "--workers", "2") as service:
        assert 5 <= statuses(service, key, 40)[200] <= 10
        assert "rag_rates_shared 0.0" in httpx.get(f"{service.url}/metrics", trust_env=False).text
