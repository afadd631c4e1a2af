"""The readiness probe and the replies while something that the service needs is gone, broken, frozen or hung."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from rag_serving.http.api_keys import create_key
from tests.fake_llm import StandIn
from tests.servers.processes import redis_server
from tests.serving_process import Service, service_environment, serving

QUESTION = "How many weeks of parental leave are on full pay?"


@pytest.fixture
def lake(sample_lake: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_lake, tmp_path / "lake"))


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def key(keys_file: Path) -> str:
    return create_key(keys_file, "any")[1]


@pytest.fixture
def environment(lake: Path, keys_file: Path, key: str) -> dict[str, str]:
    assert key
    return {"RAG_LAKE_URI": str(lake), "RAG_HTTP_KEYS": str(keys_file), "RAG_CATALOG_REFRESH": "0.1"}


def probe(service: Service) -> tuple[int, dict[str, Any]]:
    reply = httpx.get(f"{service.url}/readyz", trust_env=False, timeout=30)
    return reply.status_code, reply.json()


def asked(service: Service, key: str, question: str = QUESTION) -> httpx.Response:
    with service.as_client(key) as client:
        return client.post("/v1/ask", json={"question": question})


def error_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["type"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def moved_away(lake: Path) -> Callable[[], object]:
    """Move the lake elsewhere; returns what restores it."""
    lake.rename(lake.with_name("away"))
    return lambda: lake.with_name("away").rename(lake)


def emptied(lake: Path) -> Callable[[], object]:
    """Leave an empty folder in place of the lake, as of a file system that is not mounted."""
    lake.rename(lake.with_name("away"))
    lake.mkdir()

    def restore() -> None:
        lake.rmdir()
        lake.with_name("away").rename(lake)

    return restore


@pytest.mark.parametrize("vanish", [moved_away, emptied])
def test_a_lake_that_vanishes_is_unavailable_until_it_is_back(
    environment: dict[str, str], lake: Path, key: str, tmp_path: Path, vanish: Callable[[Path], Callable[[], object]]
) -> None:
    with serving(tmp_path, environment) as service:
        assert asked(service, key).status_code == 200
        restore = vanish(lake)
        wait_for(lambda: probe(service)[0] == 503)
        assert probe(service)[1] == {"ready": False, "problem": "LakeUnavailable"}
        reply = asked(service, key)
        assert error_of(reply) == (503, "LakeUnavailable")
        assert reply.json()["error"]["message"] == "the lake cannot be read; retry later"
        with service.as_client(key) as client:
            assert error_of(client.get("/v1/shards")) == (503, "LakeUnavailable")
        restore()
        wait_for(lambda: probe(service)[0] == 200)
        assert asked(service, key).status_code == 200


def test_without_models_no_question_can_be_answered(
    environment: dict[str, str], lake: Path, key: str, tmp_path: Path
) -> None:
    shutil.rmtree(lake / "models")
    with started(tmp_path, environment) as service:
        assert probe(service) == (503, {"ready": False, "problem": "EmbedderUnavailable"})
        reply = asked(service, key)
        assert error_of(reply) == (503, "EmbedderUnavailable")
        told = "the model that embeds questions cannot be used; retry later"
        assert reply.json()["error"]["message"] == told
        metrics = httpx.get(f"{service.url}/metrics", trust_env=False, timeout=30).text
        published = re.findall(r"^rag_shards(?:_left_out)? (.*)$", metrics, re.MULTILINE)
        assert len(published) == 2
        assert len(set(published)) == 1


def test_models_that_are_removed_after_they_were_loaded_do_no_harm(
    environment: dict[str, str], lake: Path, key: str, tmp_path: Path
) -> None:
    with serving(tmp_path, environment) as service:
        shutil.rmtree(lake / "models")
        assert probe(service)[0] == 200
        assert asked(service, key).status_code == 200


def test_a_lake_without_shards_is_not_ready(environment: dict[str, str], lake: Path, key: str, tmp_path: Path) -> None:
    shutil.rmtree(lake / "catalog")
    with started(tmp_path, environment) as service:
        assert probe(service) == (503, {"ready": False, "problem": "NothingPublished"})
        assert error_of(asked(service, key)) == (404, "UnknownScope")


def test_a_broken_key_file_is_reported_to_operators_while_known_keys_stay_valid(
    environment: dict[str, str], keys_file: Path, key: str, tmp_path: Path
) -> None:
    def broken(service: Service) -> bool:
        metrics = httpx.get(f"{service.url}/metrics", trust_env=False).text
        return "\nrag_key_file_broken 1.0" in metrics

    with serving(tmp_path, environment) as service:
        good = keys_file.read_text()
        assert not broken(service)
        keys_file.write_text(good[:-20])
        wait_for(lambda: asked(service, key).status_code == 200 and broken(service))
        assert probe(service)[0] == 200
        reply = httpx.get(f"{service.url}/v1/shards", headers={"authorization": "Bearer wrong"}, trust_env=False)
        assert error_of(reply) == (401, "NotAllowed")
        assert str(keys_file) not in reply.text
        keys_file.write_text(good)
        wait_for(lambda: asked(service, key).status_code == 200 and not broken(service))
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert [line["level"] for line in lines if str(keys_file) in line["message"]] == ["ERROR", "WARNING"]


def test_questions_are_answered_without_the_cache_while_redis_is_frozen(
    environment: dict[str, str], key: str, tmp_path: Path, server_binaries: Path
) -> None:
    with redis_server(server_binaries) as redis:
        environment = {**environment, "RAG_REDIS_URL": redis.url}
        with serving(tmp_path, environment) as service:
            assert asked(service, key).json()["cache"] == "miss"
            redis.process.send_signal(signal.SIGSTOP)
            try:
                answers = [asked(service, key, "What is the travel per-diem in Oslo?").json() for _ in range(3)]
                status, state = probe(service)
            finally:
                redis.process.send_signal(signal.SIGCONT)
        assert [answer["cache"] for answer in answers] == ["bypass"] * 3
        assert (status, state["cache"]) == (200, "unavailable")


def test_questions_are_answered_with_extracts_while_the_language_model_hangs(
    lake: Path, keys_file: Path, key: str, stand_in: StandIn, tmp_path: Path
) -> None:
    hanging = {"RAG_LLM_TIMEOUT": "1", "RAG_LLM_RETRIES": "0"}
    environment = service_environment(str(lake), stand_in, keys_file, **hanging)
    stand_in.faults = {"stand-in": "hangs"}
    try:
        with serving(tmp_path, environment) as service:
            answer = asked(service, key).json()
            assert probe(service)[0] == 200
    finally:
        stand_in.faults = {}
    assert answer["kind"] == "extract"
    assert any(mark.startswith("model_unavailable") for mark in answer["degraded"])


@contextmanager
def started(folder: Path, environment: dict[str, str]) -> Iterator[Service]:
    """Run a service that does not become ready."""
    with serving(folder, environment, path="/healthz") as service:
        wait_for(lambda: probe(service)[1].get("problem") != "Starting")
        yield service
