"""Connections that cost something before their request is known, and processes that block, die or stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx2 as httpx
import pytest

from rag_serving.clients.remote import RemoteRagClient
from rag_serving.http.api_keys import create_key
from rag_serving.http.logs import request_id
from rag_serving.http.watching import LoopWatch
from tests.fake_llm import StandIn
from tests.serving_process import Service, service_environment, serving

QUESTION = "How many weeks of parental leave are on full pay?"
MOST = 12


@pytest.fixture(scope="module")
def key(keys_file: Path) -> str:
    return create_key(keys_file, "any", requests_per_minute=100_000)[1]


@pytest.fixture(scope="module")
def service(
    sample_lake: str, stand_in: StandIn, keys_file: Path, key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    assert key
    environment = service_environment(
        sample_lake,
        stand_in,
        keys_file,
        RAG_HTTP_CONNECTIONS=str(MOST),
        RAG_HTTP_HEAD_BYTES="4096",
        RAG_HTTP_HEAD_SECONDS="2",
        RAG_HTTP_HEARTBEAT_SECONDS="0.2",
        RAG_HTTP_PROTECT_METRICS="true",
    )
    with serving(tmp_path_factory.mktemp("service"), environment) as running:
        yield running


def connected(service: Service) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])))
    raw.settimeout(30)
    return raw


def until_closed(raw: socket.socket) -> bytes:
    """Return everything that the service sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := raw.recv(65_536):
            received += part
    return received


def is_healthy(raw: socket.socket, *rest_of_head: bytes) -> bool:
    """Send a request, or the rest of its head, and return whether the service answers that it is alive."""
    raw.sendall(b"".join(rest_of_head) or b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    received = b""
    while not received.endswith(b'{"status":"ok"}'):
        part = raw.recv(65_536)
        assert part, received
        received += part
    return received.startswith(b"HTTP/1.1 200 ")


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def log_lines(service: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.log.read_text().splitlines()]


def metric(service: Service, key: str, name: str) -> float:
    with service.as_client(key) as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


# Heads.


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: aaaaaaaaaa\r\n" % n for n in range(400)) + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 8_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 8_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["many headers", "a long header", "a long path"],
)
def test_a_head_over_the_limit_gets_431_and_its_connection_is_closed(service: Service, head: bytes) -> None:
    with connected(service) as raw:
        raw.sendall(head)
        reply = until_closed(raw)
    assert reply.startswith(b"HTTP/1.1 431 ")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["type"] == "TooLarge"


def test_a_head_without_end_is_cut_off(service: Service) -> None:
    sent = 0
    with connected(service) as raw, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        raw.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ")
        while sent < 50_000_000:
            raw.sendall(b"a" * 100_000)
            sent += 100_000
    assert sent < 50_000_000


def test_many_small_requests_in_one_burst_are_all_answered(service: Service, key: str) -> None:
    one = f"GET /v1/shards HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode()
    count = 0
    with connected(service) as raw:
        sending = threading.Thread(target=raw.sendall, args=(one * 500,))  # 60 kB, far more than one head may have
        sending.start()
        received = b""
        while count < 500:
            part = raw.recv(1_000_000)
            assert part, received[-500:]
            received += part
            count = received.count(b"HTTP/1.1 200 ")
        sending.join()
    assert b"HTTP/1.1 431" not in received


def test_a_head_that_is_sent_slowly_gets_408(service: Service) -> None:
    with connected(service) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ")
        raw.settimeout(0.1)
        reply = b""
        for _ in range(200):
            try:
                raw.sendall(b"a")
                reply = raw.recv(1_000)
                break
            except TimeoutError:
                continue
    assert reply.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "an empty line"])
def test_a_connection_without_a_request_is_closed(service: Service, sent: bytes) -> None:
    with connected(service) as raw:
        raw.sendall(sent)
        assert b" 408 " in until_closed(raw)


def test_an_empty_line_after_a_reply_does_not_keep_a_connection_open(service: Service) -> None:
    with connected(service) as raw:
        assert is_healthy(raw)
        raw.sendall(b"\r\n")
        assert b" 408 " in until_closed(raw)


def test_requests_on_a_kept_connection_have_a_time_of_their_own(service: Service) -> None:
    with connected(service) as raw:
        for _ in range(3):
            raw.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
            time.sleep(0.8)  # together longer than one head may take
            assert is_healthy(raw, b"\r\n")


def test_an_offer_to_upgrade_is_ignored(service: Service) -> None:
    with connected(service) as raw:
        upgrade = (
            b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAA\r\n"
        )
        assert is_healthy(raw, b"GET /healthz HTTP/1.1\r\nhost: x\r\n", upgrade, b"\r\n")


# Numbers of connections.


def test_when_connections_run_out_the_longest_idle_one_is_closed(service: Service, key: str) -> None:
    idle: list[socket.socket] = []
    try:
        for _ in range(MOST):
            idle.append(connected(service))
            assert is_healthy(idle[-1])
        with service.as_client(key) as client:
            assert client.get("/v1/shards").status_code == 200
        assert until_closed(idle[0]) == b""
        assert is_healthy(idle[-1])
        assert metric(service, key, 'rag_connections_closed_total{reason="idle_when_full"}') >= 1
    finally:
        for raw in idle:
            raw.close()


def test_a_connection_is_refused_with_503_while_all_are_busy(service: Service, key: str, stand_in: StandIn) -> None:
    stand_in.pause = 20.0
    head = f"POST /v1/ask HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    busy: list[socket.socket] = []
    try:
        for number in range(MOST):
            body = json.dumps({"question": f"{QUESTION} Busy {number}?", "stream": True})
            raw = connected(service)
            raw.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            busy.append(raw)
            assert raw.recv(12) == b"HTTP/1.1 200"
        with connected(service) as late:
            reply = until_closed(late)
    finally:
        stand_in.pause = 0.0
        for raw in busy:
            raw.close()
    assert reply.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in reply
    wait_for(lambda: metric(service, key, "rag_connections ") <= 2)
    assert metric(service, key, 'rag_connections_closed_total{reason="no_free_connection"}') >= 1
    refusals = [line for line in log_lines(service) if line["message"].startswith("refusing connections")]
    assert len(refusals) == 1
    assert any(line["message"] == "accepting connections again" for line in log_lines(service))


def test_a_process_that_may_open_few_files_still_answers_when_connections_run_out(
    sample_lake: str, keys_file: Path, key: str, tmp_path: Path
) -> None:
    environment = {"RAG_LAKE_URI": sample_lake, "RAG_HTTP_KEYS": str(keys_file)}

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))

    with serving(tmp_path, environment, preexec_fn=few_files) as service, service.as_client(key) as client:
        idle = [connected(service) for _ in range(290)]
        try:
            assert client.get("/v1/shards").status_code == 200
            assert client.post("/v1/search", json={"question": QUESTION}).status_code == 200
        finally:
            for raw in idle:
                raw.close()


# Streams, logs and metrics.


def test_a_silent_stream_sends_comments_that_clients_skip(service: Service, key: str, stand_in: StandIn) -> None:
    stand_in.pause = 1.0
    body = {"question": f"{QUESTION} In silence?", "stream": True}

    async def answered() -> str:
        async with RemoteRagClient(service.url, key) as client:
            return (await client.ask(f"{QUESTION} Still silent?")).kind

    try:
        with service.as_client(key) as client:
            streamed = client.post("/v1/ask", json=body).text
        assert asyncio.run(answered()) == "generated"
    finally:
        stand_in.pause = 0.0
    assert ": still working\n\n" in streamed
    assert streamed.rstrip().rpartition("\n\n")[2].startswith("event: done\n")


def test_every_line_of_the_log_is_json_and_names_the_request(service: Service, key: str) -> None:
    with service.as_client(key) as client:
        client.post("/v1/ask", json={"question": QUESTION}, headers={"x-request-id": "logged-1"})
        client.get("/v1/none", headers={"x-request-id": "logged-2"})
    (line,) = (line for line in log_lines(service) if line.get("request_id") == "logged-1")
    assert (line["client"], line["key"], line["route"]) == ("127.0.0.1", key.split("_")[1], "/v1/ask")
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in log_lines(service))


def test_metrics_and_documentation_can_be_behind_a_key(service: Service, key: str) -> None:
    for path in ("/metrics", "/docs", "/openapi.json"):
        assert httpx.get(service.url + path, trust_env=False).status_code == 401
        with service.as_client(key) as client:
            assert client.get(path).status_code == 200
    refused = httpx.get(f"{service.url}/docs", trust_env=False)
    assert refused.headers["www-authenticate"].startswith("Basic ")  # a browser asks for the key
    assert httpx.get(f"{service.url}/docs", auth=("anybody", key), trust_env=False).status_code == 200
    assert httpx.get(f"{service.url}/v1/shards", trust_env=False).headers["www-authenticate"] == "Bearer"


def test_no_garbage_gets_a_500_or_stops_the_service(service: Service, key: str) -> None:
    random = Random(1)
    routes = [f"/v1/{name}" for name in ("ask", "search", "search/documents", "feedback", "chat/completions", "shards")]
    pieces = [b"\0", b"\r\n", *(bytes([one]) for one in b"\n :%\xff?#{[\t"), b"%00", b"%ff", b"..", b"//"]

    def mutated(text: bytes) -> bytes:
        for _ in range(random.choice((0, 0, 0, 0, 1, 2))):
            at = random.randrange(len(text) + 1)
            text = text[:at] + random.choice(pieces) * random.choice((1, 1, 50)) + text[at + random.randrange(3) :]
        return text

    def garbage(depth: int = 0) -> Any:
        kind = random.randrange(9 if depth < 4 else 7)
        if kind >= 7:
            names = ("question", "history", "answer", "k", "regions", "messages", "model", "content", "role")
            if kind == 7:
                return [garbage(depth + 1)] * 3
            return {random.choice(names): garbage(depth + 1) for _ in range(3)}
        return random.choice((None, True, 0, -1, 2**70, 1e308, "", "a" * 5_000, "\ud800", "who?", "\0", "oslo"))

    statuses: Counter[bytes] = Counter()
    for _ in range(600):
        body = mutated(json.dumps(garbage()).encode())
        line = mutated(
            f"{random.choice(('POST', 'POST', 'POST', 'GET', 'PUT'))} {random.choice(routes)} HTTP/1.1".encode()
        )
        head = line + b"\r\n" + mutated(f"host: x\r\nauthorization: Bearer {key}\r\n".encode())
        length = random.choice((*[len(body)] * 9, len(body) + 1, 0, -1))
        kind = random.choice(("application/json", "application/json", "text/plain", "application/x+json"))
        head += f"content-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n".encode()
        with connected(service) as raw, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            raw.sendall(head + body)
            raw.shutdown(socket.SHUT_WR)
            statuses[until_closed(raw)[9:12]] += 1
    assert statuses[b"422"] > 50
    assert not [status for status in statuses if status.startswith(b"5")]
    assert service.process.poll() is None
    assert not [line for line in log_lines(service) if "exception" in line]


def test_metrics_tell_latency_by_cache_state_and_the_state_of_the_process(service: Service, key: str) -> None:
    with service.as_client(key) as client:
        for _ in range(2):
            client.post("/v1/ask", json={"question": "What is the travel per-diem in Oslo?"})
    for name in (
        'rag_answer_seconds_count{cache="miss"}',
        'rag_answer_seconds_count{cache="exact"}',
        'rag_first_text_seconds_count{cache="miss"}',
        'rag_model_seconds_count{model="openai/stand-in",outcome="answered"}',
        "rag_process_memory_bytes",
        "rag_process_open_files",
        "rag_connections ",
        "rag_snapshot_age_seconds",
        "rag_shards ",
    ):
        assert metric(service, key, name) > 0, name


# Processes.


def test_what_blocks_the_event_loop_is_logged_with_its_request(caplog: pytest.LogCaptureFixture) -> None:
    def blocks_the_loop() -> None:
        deadline = time.monotonic() + 30
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.05)

    async def handle() -> None:
        blocks_the_loop()

    async def main() -> None:
        watch = LoopWatch()
        request_id.set("culprit-1")
        await asyncio.create_task(handle())
        watch.close()
        assert watch.blocked == 1

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    (record,) = caplog.records
    assert "by request culprit-1" in record.getMessage()
    assert "blocks_the_loop" in record.getMessage()


def test_requests_of_a_killed_worker_are_logged_and_its_gauges_vanish(
    sample_lake: str, stand_in: StandIn, keys_file: Path, key: str, tmp_path: Path
) -> None:
    environment = service_environment(sample_lake, stand_in, keys_file)
    stand_in.pause = 30.0
    body = {"question": f"{QUESTION} Killed?", "stream": True}
    try:
        with serving(tmp_path, environment, "--workers", "2") as service:
            assert metric(service, key, "rag_process_memory_bytes") > 0
            workers = _workers_of(service.process)
            threads = [
                threading.Thread(target=_ask, args=(service, key, body, f"doomed-{number}"), daemon=True)
                for number in range(6)
            ]
            for thread in threads:
                thread.start()
            wait_for(lambda: metric(service, key, "rag_requests_in_flight") >= 7)
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: sum("is being replaced" in line["message"] for line in log_lines(service)) == 2)
            messages = " ".join(
                line["message"] for line in log_lines(service) if "is being replaced" in line["message"]
            )
            assert all(f"doomed-{number} POST /v1/ask" in messages for number in range(6))
            wait_for(lambda: _is_ready(service))
            with service.as_client(key) as client:
                text = client.get("/metrics").text
            assert not [pid for pid in workers if f'pid="{pid}"' in text]
    finally:
        stand_in.pause = 0.0


def test_after_sigterm_readiness_fails_before_connections_are_refused(
    sample_lake: str, keys_file: Path, key: str, tmp_path: Path
) -> None:
    environment = {"RAG_LAKE_URI": sample_lake, "RAG_HTTP_KEYS": str(keys_file), "RAG_HTTP_NOTICE_SECONDS": "3"}
    with serving(tmp_path, environment) as service, service.as_client(key) as client:
        assert client.get("/readyz").status_code == 200
        service.process.terminate()
        wait_for(lambda: not _is_ready(service))
        assert client.get("/readyz").json() == {"ready": False, "problem": "Stopping"}
        with service.as_client(key) as another:
            assert another.post("/v1/search", json={"question": QUESTION}).status_code == 200
        assert service.process.wait(30) in (0, -signal.SIGTERM)


def _workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _is_ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _ask(service: Service, key: str, body: dict[str, Any], name: str) -> None:
    with contextlib.suppress(httpx.TransportError), service.as_client(key) as client:
        client.post("/v1/ask", json=body, headers={"x-request-id": name})
