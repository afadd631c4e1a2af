"""The service under overload, with slow callers, and with callers that forge their address."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from rag_serving.errors import SettingsError
from rag_serving.http.api_keys import create_key
from rag_serving.http.settings import HttpSettings
from tests.fake_llm import StandIn
from tests.serving_process import Service, service_environment, serving

QUESTION = "How many weeks of parental leave are on full pay?"


@pytest.fixture(scope="module")
def key(keys_file: Path) -> str:
    return create_key(keys_file, "any")[1]


@pytest.fixture(scope="module")
def hasty(keys_file: Path) -> str:
    return create_key(keys_file, "hasty", requests_per_minute=30)[1]


@pytest.fixture(scope="module")
def service(
    sample_lake: str, stand_in: StandIn, keys_file: Path, key: str, hasty: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with low limits and short timeouts."""
    assert key != hasty
    environment = service_environment(
        sample_lake,
        stand_in,
        keys_file,
        RAG_LLM_CONCURRENCY="1",
        RAG_QUEUE_LIMIT="1",
        RAG_HTTP_CONCURRENCY="4",
        RAG_HTTP_BODY_SECONDS="1",
        RAG_HTTP_SEND_SECONDS="1",
        RAG_HTTP_FAILED_KEYS_PER_MINUTE="5",
    )
    with serving(tmp_path_factory.mktemp("service"), environment) as running:
        with running.as_client(key) as client:
            assert client.post("/v1/ask", json={"question": QUESTION}).status_code == 200  # now everything is loaded
        yield running


def connected(service: Service, *, receives: int | None = None) -> socket.socket:
    raw = socket.socket()
    if receives is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    raw.settimeout(30)
    raw.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
    return raw


def head(key: str, length: int) -> bytes:
    return (
        f"POST /v1/ask HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


def ask_until_served(service: Service, key: str) -> httpx.Response:
    """Ask until the reply is not 503 and return it."""
    with service.as_client(key) as client:
        deadline = time.monotonic() + 60
        while True:
            reply = client.post("/v1/ask", json={"question": QUESTION})
            if reply.status_code != 503 or time.monotonic() > deadline:
                return reply
            time.sleep(0.1)


def test_under_overload_every_request_is_answered_or_rejected_with_retry_after(
    service: Service, key: str, hasty: str, stand_in: StandIn
) -> None:
    stand_in.pause = 0.05

    async def storm() -> list[httpx.Response]:
        headers = {"authorization": f"Bearer {hasty}"}
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(
            base_url=service.url, headers=headers, timeout=60, trust_env=False, limits=limits
        ) as client:
            at_once = (client.post("/v1/ask", json={"question": f"{QUESTION} For {n} children?"}) for n in range(120))
            replies = await asyncio.gather(*at_once)
            return [*replies, *[await client.get("/v1/shards") for _ in range(40)]]

    replies = asyncio.run(storm())
    stand_in.pause = 0.0
    statuses = Counter(reply.status_code for reply in replies)
    assert set(statuses) == {200, 429, 503}
    for reply in replies:
        if reply.status_code != 200:
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error"]["type"] in ("Overloaded", "TooManyRequests")
    assert ask_until_served(service, key).status_code == 200
    assert "Traceback" not in service.log.read_text()


def test_an_unfinished_body_does_not_hold_a_slot(service: Service, key: str) -> None:
    body = json.dumps({"question": QUESTION}).encode()
    unfinished = [connected(service) for _ in range(4)]
    try:
        for raw in unfinished[:2]:
            raw.sendall(head(key, len(body)) + body[:5])
        for raw in unfinished[2:]:
            raw.sendall(head(key, len(body)))
        for raw in unfinished:
            answer = b""
            while part := raw.recv(65_536):  # until the service closes the connection
                answer += part
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "TooSlow"
    finally:
        for raw in unfinished:
            raw.close()
    assert ask_until_served(service, key).status_code == 200


def test_a_body_sent_byte_by_byte_times_out(service: Service, key: str) -> None:
    with connected(service) as raw:
        raw.sendall(head(key, 10_000))
        raw.settimeout(0.05)
        answer = b""
        for _ in range(2_000):
            try:
                raw.sendall(b" ")
                answer = raw.recv(100)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_clients_that_stop_reading_do_not_hold_a_slot(service: Service, key: str, stand_in: StandIn) -> None:
    stand_in.words = (*("x" * 1_000_000 for _ in range(30)), " [1].")
    body = json.dumps({"question": "What is the travel per-diem in Oslo?", "stream": True}).encode()
    stalled = [connected(service, receives=4_096) for _ in range(4)]
    try:
        for raw in stalled:
            raw.sendall(head(key, len(body)) + body)
            assert raw.recv(12) == b"HTTP/1.1 200"
        assert ask_until_served(service, key).status_code == 200
    finally:
        stand_in.words = ("46 weeks", " [1].")
        for raw in stalled:
            raw.close()


def test_an_address_that_guesses_keys_cannot_forge_another_address(service: Service) -> None:
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        statuses = [
            client.get(
                "/v1/shards", headers={"authorization": "Bearer wrong", "x-forwarded-for": f"10.0.0.{n}"}
            ).status_code
            for n in range(7)
        ]
    assert statuses == [401] * 5 + [429] * 2


def test_failed_keys_are_counted_by_the_address_that_a_trusted_proxy_forwards(
    sample_lake: str, keys_file: Path, key: str, tmp_path: Path
) -> None:
    environment = {
        "RAG_LAKE_URI": sample_lake,
        "RAG_HTTP_KEYS": str(keys_file),
        "RAG_HTTP_FAILED_KEYS_PER_MINUTE": "2",
        "RAG_HTTP_TRUSTED_PROXIES": "127.0.0.1, 10.1.0.0/16",
    }
    with serving(tmp_path, environment) as service, httpx.Client(base_url=service.url, trust_env=False) as client:

        def tries(forwarded: str) -> int:
            headers = {"authorization": "Bearer wrong", "x-forwarded-for": forwarded}
            return client.get("/v1/shards", headers=headers).status_code

        # Addresses that a caller put before its proxy's are ignored, and trusted proxies in the chain are skipped.
        assert [tries(f"9.9.9.{n}, 203.0.113.7") for n in range(3)] == [401, 401, 429]
        assert tries("203.0.113.7, 10.1.2.3") == 429
        assert tries("203.0.113.8") == 401


@pytest.mark.parametrize("value", ["*", "everybody", "10.0.0.1,", "10.0.0.0/33"])
def test_trusted_proxies_must_be_addresses_or_networks(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RAG_HTTP_TRUSTED_PROXIES", value)
    with pytest.raises(SettingsError, match="RAG_HTTP_TRUSTED_PROXIES"):
        HttpSettings.from_env()
