"""The HTTP service as callers see it: a real process, and real keys."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rag_serving.api_schemas import AskRequest
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.errors import InvalidArgument, SettingsError
from rag_serving.http.api_keys import ApiKeys, create_key, read_keys, revoke_key
from rag_serving.http.app import create_app
from rag_serving.http.settings import HttpSettings
from rag_serving.settings import ServingSettings
from tests.fake_llm import StandIn
from tests.serving_process import Service, service_environment, serving

QUESTION = "How many weeks of parental leave are on full pay?"
OSLO_ANSWER = "46 weeks [1]."


@pytest.fixture(scope="module")
def everything(keys_file: Path) -> str:
    return create_key(keys_file, "everything")[1]


@pytest.fixture(scope="module")
def oslo(keys_file: Path) -> str:
    return create_key(keys_file, "Oslo alone", tenant="oslo", shards=["oslo/*"])[1]


@pytest.fixture(scope="module")
def environment(sample_lake: str, stand_in: StandIn, keys_file: Path, everything: str, oslo: str) -> dict[str, str]:
    assert everything != oslo
    stand_in.words = ("46 weeks", " [1].")
    return service_environment(sample_lake, stand_in, keys_file)


@pytest.fixture(scope="module")
def service(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), environment) as running:
        yield running


def sse(text: str) -> list[tuple[str, Any]]:
    """Return the names and data of server-sent events."""
    events: list[tuple[str, Any]] = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        events.append(
            (fields.get("event", ""), fields["data"] if fields["data"] == "[DONE]" else json.loads(fields["data"]))
        )
    return events


# Answers.


def test_a_miss_and_a_hit_stream_the_same_events_and_json_reports_the_cache_state(service: Service, oslo: str) -> None:
    question = {"question": f"{QUESTION} Tell me."}
    with service.as_client(oslo) as client:
        miss = sse(client.post("/v1/ask", json={**question, "stream": True}).text)
        hit = sse(client.post("/v1/ask", json=question, headers={"accept": "text/event-stream"}).text)
        plain = client.post("/v1/ask", json=question)
    assert [name for name, _ in miss] == ["sources", "delta", "delta", "citations", "done"]
    assert [name for name, _ in hit] == ["sources", "delta", "citations", "done"]
    assert [events[-1][1]["answer"]["cache"] for events in (miss, hit)] == ["miss", "exact"]
    assert "".join(data["text"] for name, data in miss if name == "delta") == OSLO_ANSWER
    assert (plain.headers["x-cache"], plain.json()["text"]) == ("exact", OSLO_ANSWER)


def test_search_shards_and_feedback_work_within_the_scope_of_the_key(service: Service, oslo: str) -> None:
    with service.as_client(oslo) as client:
        found = client.post("/v1/search", json={"question": QUESTION, "k": 3, "regions": ["oslo"]}).json()
        assert {hit["shard"].partition("/")[0] for hit in found["hits"]} == {"oslo"}
        assert {shard["region"] for shard in client.get("/v1/shards").json()} == {"oslo"}
        answer = client.post("/v1/ask", json={"question": "What is the travel per-diem?"}).json()
        assert client.post("/v1/feedback", json={"answer": answer, "correct": False}).json() == {"dropped": True}
        assert client.post("/v1/feedback", json={"answer": answer, "correct": False}).json() == {"dropped": False}


# Scope.


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/ask", {"question": QUESTION, "regions": ["lisbon"]}),
        ("/v1/search", {"question": QUESTION, "regions": ["lisbon"]}),
        (
            "/v1/chat/completions",
            {"model": "rag-shards", "messages": [{"role": "user", "content": QUESTION}], "regions": ["lisbon"]},
        ),
    ],
)
def test_a_shard_outside_the_keys_scope_looks_like_one_that_does_not_exist(
    service: Service, oslo: str, path: str, body: dict[str, Any]
) -> None:
    with service.as_client(oslo) as client:
        hidden = client.post(path, json=body)
        none = client.post(path, json={**body, "regions": ["lisbonx"]})
    assert (hidden.status_code, none.status_code) == (404, 404)
    assert hidden.json()["error"]["message"].replace("lisbon", "") == none.json()["error"]["message"].replace(
        "lisbonx", ""
    )


@pytest.mark.parametrize("extra", [{"tenant": "default"}, {"within": ["*/*"]}, {"shards": ["*/*"]}, {"key": "x"}])
def test_a_body_cannot_name_a_tenant_or_widen_the_scope(service: Service, oslo: str, extra: dict[str, Any]) -> None:
    with service.as_client(oslo) as client:
        refused = client.post("/v1/ask", json={"question": QUESTION, **extra})
        headers = {"x-tenant": "default", "x-scope": "*/*", "x-forwarded-user": "root"}
        answered = client.post("/v1/ask", json={"question": QUESTION}, headers=headers)
    assert refused.status_code == 422
    assert {citation["shard"].partition("/")[0] for citation in answered.json()["citations"]} == {"oslo"}


def test_a_tenant_cannot_drop_an_answer_of_another_tenant(service: Service, oslo: str, everything: str) -> None:
    with service.as_client(oslo) as mine, service.as_client(everything) as other:
        answer = mine.post("/v1/ask", json={"question": QUESTION}).json()
        assert other.post("/v1/feedback", json={"answer": answer, "correct": False}).status_code == 400
        assert mine.post("/v1/ask", json={"question": QUESTION}).json()["entry"] == answer["entry"]


# Keys.


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer rag_00000000_" + "x" * 43, "Basic x", "Bearer \u00e9".encode().decode("latin-1")]
)
def test_requests_without_a_valid_key_are_rejected(service: Service, header: str) -> None:
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        for path in ("/v1/shards", "/v1/models"):
            reply = client.get(path, headers={"authorization": header.encode("latin-1")} if header else {})
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")


def test_keys_are_stored_as_hashes_and_rejected_after_revocation(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, text = create_key(path, "one", shards=["oslo/*", "*/people"])
    assert text.split("_", 2)[2] not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert ApiKeys(path).find(text) == key
    assert ApiKeys(path).find(text[:-1] + ("x" if text[-1] != "x" else "y")) is None
    second, other = create_key(path, "two")
    revoke_key(path, key.id)
    keys = ApiKeys(path)
    assert keys.find(text) is None
    assert keys.find(other) == second
    with pytest.raises(InvalidArgument, match="keys list"):
        revoke_key(path, "none")
    for wrong in ({"shards": ["oslo"]}, {"shards": ["a/b/c"]}, {"tenant": "a\nb"}, {"requests_per_minute": 0}):
        with pytest.raises(InvalidArgument):
            create_key(path, "three", **wrong)
    assert len(read_keys(path)) == 2


def test_callers_notice_nothing_of_a_broken_key_file(
    sample_lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag_serving.http.api_keys._CHECK_SECONDS", 0)
    path = tmp_path / "k.json"
    key = create_key(path, "one")[1]
    with small(sample_lake, path) as client:
        path.write_text("{}x")
        assert client.get("/v1/shards", headers={"authorization": f"Bearer {key}"}).status_code == 200
        wrong = client.get("/v1/shards", headers={"authorization": "Bearer x"})
        assert wrong.status_code == 401
        assert str(tmp_path) not in wrong.text


@given(st.text(max_size=80))
def test_no_other_text_is_accepted_as_a_key(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "keys.json")
        create_key(path, "one")
        assert ApiKeys(path).find(text) is None


# In this process, where limits can be small.


@contextmanager
def small(lake: str, keys_file: Path | None, **values: Any) -> Generator[TestClient]:
    settings = ServingSettings.model_validate({"lake_uri": lake})
    app = create_app(
        lambda: AsyncRagClient(settings),
        HttpSettings.model_validate({"keys": None if keys_file is None else str(keys_file), **values}),
        open_to_all=keys_file is None,
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_requests_over_a_keys_rate_limit_get_429_with_retry_after(sample_lake: str, tmp_path: Path) -> None:
    key = create_key(tmp_path / "k.json", "slow", requests_per_minute=2)[1]
    other = create_key(tmp_path / "k.json", "other", requests_per_minute=2)[1]
    with small(sample_lake, tmp_path / "k.json") as client:
        replies = [client.get("/v1/shards", headers={"authorization": f"Bearer {key}"}) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert 1 <= int(replies[2].headers["retry-after"]) <= 60
        assert client.get("/v1/shards", headers={"authorization": f"Bearer {other}"}).status_code == 200


def test_an_address_that_guesses_keys_is_rate_limited_and_valid_keys_from_it_still_work(
    sample_lake: str, tmp_path: Path
) -> None:
    key = create_key(tmp_path / "k.json", "one")[1]
    with small(sample_lake, tmp_path / "k.json", failed_keys_per_minute=3) as client:
        tried = [client.get("/v1/shards", headers={"authorization": f"Bearer {n}"}).status_code for n in range(5)]
        assert tried == [401, 401, 401, 429, 429]
        assert client.get("/v1/shards", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_requests_without_a_key_do_not_count_as_guesses(sample_lake: str, tmp_path: Path) -> None:
    create_key(tmp_path / "k.json", "one")
    with small(sample_lake, tmp_path / "k.json", failed_keys_per_minute=1) as client:
        assert [client.get("/v1/shards").status_code for _ in range(3)] == [401] * 3
        assert client.get("/v1/shards", headers={"authorization": "Bearer x"}).status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b'{"question": ""}', 422),
        (b'{"question": "   "}', 400),
        (b'{"question": 1}', 422),
        (b'{"question": "x", "k": 0}', 422),
        (b'{"question": "x", "k": 1e9}', 422),
        (b'{"question": "x", "regions": []}', 422),
        (b'{"question": "x", "regions": ["../.."]}', 400),
        (b'{"question": "x", "history": [{"question": "a"}]}', 422),
        (b'{"question": "\\ud800"}', 422),
        (b'{"question": "' + b"x" * 5000 + b'"}', 422),
        (b'{"question": "' + b"x" * 50_000 + b'"}', 413),
    ],
    ids=lambda value: str(value)[:40],
)
def test_malformed_and_oversized_bodies_get_a_named_error(sample_lake: str, body: bytes, status: int) -> None:
    with small(sample_lake, None, max_body=20_000) as client:
        reply = client.post("/v1/ask", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == status
        assert reply.json()["error"]["type"]
        chunked = client.post("/v1/ask", content=iter([body]), headers={"content-type": "application/json"})
        assert chunked.status_code == status


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"}])
def test_a_body_without_a_json_content_type_is_refused_with_the_header_to_send(
    sample_lake: str, headers: dict[str, str]
) -> None:
    with small(sample_lake, None) as client:
        reply = client.post("/v1/ask", content=b'{"question": "x"}', headers=headers)
    assert reply.status_code == 415
    assert "Content-Type: application/json" in reply.json()["error"]["message"]


def test_without_keys_the_service_does_not_start_by_default(sample_lake: str) -> None:
    settings = ServingSettings.model_validate({"lake_uri": sample_lake})
    with pytest.raises(SettingsError, match="keys create"):
        create_app(lambda: AsyncRagClient(settings), HttpSettings.model_validate({"keys": None}))


def test_the_page_has_a_content_security_policy_and_no_other_files_are_served(sample_lake: str) -> None:
    with small(sample_lake, None) as client:
        page = client.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for name in re.findall(r'(?:src|href)="(/page/[^"]+)"', page.text):
            assert client.get(name).status_code == 200
        assert not re.findall(r"https?://", page.text)
        for path in ("/page/..%2fapp.py", "/page/app.py", "/page/%2e%2e/app.py", "/nothing"):
            reply = client.get(path)
            assert (reply.status_code, reply.json()["error"]["type"]) == (404, "NotFound")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind", "message"),
    [
        ("GET", "/v1/ask", "", 405, "MethodNotAllowed", "GET is not allowed here; use POST"),
        ("POST", "/v2/ask", "{}", 404, "NotFound", "this path does not exist; GET /docs lists the routes"),
        ("POST", "/v1/ask", '{"question": x}', 422, "InvalidRequest", "the body is not valid JSON (character 13)"),
        ("POST", "/v1/ask", "{}", 422, "InvalidRequest", "body.question: is missing"),
        ("POST", "/v1/ask", '{"question": "x", "k": "x"}', 422, "InvalidRequest", "body.k: must be a whole number"),
        ("POST", "/v1/ask", '{"question": "x", "k": 0}', 422, "InvalidRequest", "body.k: must be greater than"),
        ("POST", "/v1/ask", '{"question": "x", "q": 0}', 422, "InvalidRequest", "body.q: is not a known field"),
    ],
)
def test_an_error_says_in_plain_words_what_is_wrong_with_the_request(
    sample_lake: str, method: str, path: str, body: str, status: int, kind: str, message: str
) -> None:
    with small(sample_lake, None) as client:
        reply = client.request(method, path, content=body, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind)
    assert reply.json()["error"]["message"].startswith(message)


# Readiness, metrics, logs and shutdown.


def test_readiness_reports_the_capabilities_of_the_cache(
    service: Service, sample_lake: str, plain_redis_url: str, tmp_path: Path
) -> None:
    assert httpx.get(f"{service.url}/readyz", trust_env=False).json() == {
        "ready": True,
        "shards": 11,
        "cache": "in this process",
        "model": "openai/stand-in",
    }
    settings = {"RAG_LAKE_URI": sample_lake, "RAG_REDIS_URL": plain_redis_url}
    with serving(tmp_path, settings, "--open") as plain:
        assert httpx.get(f"{plain.url}/readyz", trust_env=False).json()["cache"].startswith("exact tier only")


def test_a_wrong_key_is_refused_before_the_body_is_read(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        lines = ("POST /v1/ask HTTP/1.1", f"Host: {host}", "Authorization: Bearer rag_wrong", "Content-Length: 900000")
        connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        reply = b""
        while part := connection.recv(4096):
            reply += part
    assert reply.startswith(b"HTTP/1.1 401")
    assert b"www-authenticate: Bearer" in reply
    assert b"connection: close" in reply


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/feedback", {"correct": True, "answer": {"citations": [{}] * 300_000}}),
        ("/v1/ask", {"question": "Who?", "regions": [{}] * 300_000}),
        ("/v1/ask", {"question": "Who?", "history": [{}] * 300_000}),
        ("/v1/chat/completions", {"model": "rag-shards", "messages": [{}] * 300_000}),
        ("/v1/chat/completions", {"model": "rag-shards", "messages": [{"role": "user", "content": [{}] * 300_000}]}),
    ],
)
def test_a_list_of_countless_faults_is_refused_at_the_first_one(
    service: Service, oslo: str, path: str, body: dict[str, Any]
) -> None:
    with service.as_client(oslo) as client:
        reply = client.post(path, json=body)
    assert reply.status_code == 422
    assert reply.json()["error"]["message"].count(";") < 5


@pytest.mark.parametrize("body", [{"question": "Who?"}, {"question": "Who?", "history": [{}]}])
def test_an_object_of_countless_unknown_fields_is_refused_at_the_first_one(body: dict[str, Any]) -> None:
    inmost = body["history"][0] if "history" in body else body
    inmost.update({f"unknown-{number}": number for number in range(10_000)})
    with pytest.raises(ValidationError) as raised:
        AskRequest.model_validate(body)
    assert raised.value.error_count() < 5
    assert "unknown-0" in str(raised.value)


def test_an_answer_that_its_only_caller_no_longer_waits_for_is_cancelled(
    service: Service, oslo: str, stand_in: StandIn
) -> None:
    words = stand_in.words
    stand_in.words, stand_in.pause = ("It",) * 100, 0.5
    try:
        asked = {"question": "How often are laptops renewed?"}
        with service.as_client(oslo) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/ask", json=asked, headers={"x-request-id": "left-1"}, timeout=3)
        deadline = time.monotonic() + 30  # the answer takes 50 s
        while '"left-1"' not in service.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        stand_in.words, stand_in.pause = words, 0.0
    (line,) = (json.loads(line) for line in service.log.read_text().splitlines() if '"left-1"' in line)
    assert line["status"] == 499


def test_requests_are_counted_and_logged_without_questions_keys_or_document_text(service: Service, oslo: str) -> None:
    with service.as_client(oslo) as client:
        reply = client.post("/v1/ask", json={"question": QUESTION}, headers={"x-request-id": "my-id-1"})
        assert reply.headers["x-request-id"] == "my-id-1"
        client.post("/v1/ask", json={"question": QUESTION})
        odd = client.get("/v1/shards", headers={"x-request-id": "a b\tc"})
        assert re.fullmatch(r"[0-9a-f]{32}", odd.headers["x-request-id"])
        metrics = client.get("/metrics").text
    assert 'rag_requests_total{method="POST",route="/v1/ask",status="200"}' in metrics
    assert 'rag_events_total{event="exact"}' in metrics
    assert "rag_tokens_total" in metrics
    log = service.log.read_text()
    (line,) = (json.loads(line) for line in log.splitlines() if '"request_id": "my-id-1"' in line)
    assert (line["level"], line["route"], line["status"]) == ("INFO", "/v1/ask", 200)
    assert datetime.fromisoformat(line["time"]).tzinfo == UTC
    for secret in (QUESTION, oslo, oslo.split("_", 2)[2], "46 weeks", "not-a-key"):
        assert secret not in log


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_sigterm_finishes_running_requests(
    environment: dict[str, str], stand_in: StandIn, oslo: str, tmp_path: Path
) -> None:
    replies: list[str] = []
    begun = threading.Semaphore(0)

    def ask(number: int) -> None:
        body = {"question": f"{QUESTION} Number {number}.", "stream": True}
        with service.as_client(oslo) as client, client.stream("POST", "/v1/ask", json=body) as reply:
            begun.release()
            replies.append(reply.read().decode())

    with serving(tmp_path, environment, "--workers", "2") as service:
        children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        workers = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(workers[0], signal.SIGKILL)
        deadline = time.monotonic() + 60
        good = 0
        while good < 20:
            assert time.monotonic() < deadline
            try:
                with service.as_client(oslo) as client:
                    good += client.post("/v1/ask", json={"question": QUESTION}).status_code == 200
            except httpx.TransportError:  # the connection was to the killed worker
                time.sleep(0.2)
        stand_in.pause = 1.0
        try:
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
            for thread in threads:
                thread.start()
            for _ in threads:
                assert begun.acquire(timeout=60)
            service.process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join(60)
        finally:
            stand_in.pause = 0.0
        assert service.process.wait(60) in (0, -signal.SIGTERM)
    assert [sse(text)[-1][0] for text in replies] == ["done"] * 6
