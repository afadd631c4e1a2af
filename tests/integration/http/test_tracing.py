"""Spans that a collector receives from a running service."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from rag_serving.http.api_keys import create_key
from tests.fake_llm import stand_in_model
from tests.serving_process import serving

QUESTION = "How many weeks of parental leave are on full pay?"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass
class Collector:
    """A collector that records what it receives by OTLP over HTTP."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list[bytes])

    def services(self) -> set[str]:
        found: set[str] = set()
        for body in self.bodies:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                found |= {one.value.string_value for one in group.resource.attributes if one.key == "service.name"}
        return found

    def spans(self) -> list[Any]:
        return [
            span
            for body in self.bodies
            for group in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]


@contextlib.contextmanager
def collecting() -> Generator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class defines the name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def traced(
    sample_lake: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Collector, str, dict[str, httpx.Response]]]:
    """Everything collected from a service until it ended, the key that was used, and the service's replies."""
    folder = tmp_path_factory.mktemp("service")
    key = create_key(folder / "keys.json", "any")[1]
    with stand_in_model() as model, collecting() as collector:
        environment = {
            **model.environment,
            "RAG_LAKE_URI": sample_lake,
            "RAG_LLM_MODEL": "openai/stand-in",
            "RAG_HTTP_KEYS": str(folder / "keys.json"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        }
        with serving(folder, environment) as service, service.as_client(key) as client:
            context = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
            replies = {
                "miss": client.post("/v1/ask", json={"question": QUESTION}, headers=context),
                "exact": client.post("/v1/ask", json={"question": QUESTION, "stream": True}),
                "search": client.post(f"/v1/search?key={key}", json={"question": QUESTION}),
                "refused": client.get("/v1/shards", headers={"authorization": "Bearer wrong"}),
                "health": client.get("/healthz"),
            }
        yield collector, key, replies


def values(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def below(spans: list[Any], parent: Any) -> list[str]:
    return [span.name for span in spans if span.parent_span_id == parent.span_id]


def test_a_request_is_a_span_in_its_callers_trace_with_its_phases_as_children(
    traced: tuple[Collector, str, dict[str, httpx.Response]],
) -> None:
    collector, key, replies = traced
    assert [reply.status_code for reply in replies.values()] == [200, 200, 200, 401, 200]
    spans = collector.spans()
    requests = {(span.name, values(span).get("rag.cache")): span for span in spans if span.kind == 2}
    assert set(requests) == {
        ("POST /v1/ask", "miss"),
        ("POST /v1/ask", "exact"),
        ("POST /v1/search", None),
        ("GET", None),  # refused before it is routed
    }
    miss, exact = requests["POST /v1/ask", "miss"], requests["POST /v1/ask", "exact"]
    assert (miss.trace_id.hex(), miss.parent_span_id.hex()) == (TRACE, CALLER)
    assert exact.trace_id.hex() != TRACE
    expected = {"http.route": "/v1/ask", "http.response.status_code": 200, "rag.key": key.split("_")[1]}
    assert expected.items() <= values(miss).items()
    assert expected.items() <= values(exact).items()
    phases = ["rag.cache", "rag.embed", "rag.cache", "rag.search", "rag.answer", "rag.cache"]
    assert [name for name in below(spans, miss) if name != "chat stand-in"] == phases
    (call,) = (span for span in spans if span.name == "chat stand-in")
    assert (call.kind, call.parent_span_id) == (3, miss.span_id)
    usage = {"gen_ai.usage.input_tokens": 700, "gen_ai.usage.output_tokens": 9}
    named = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "stand-in"}
    assert (usage | named).items() <= values(call).items()
    assert below(spans, exact) == ["rag.cache"]
    assert below(spans, requests["POST /v1/search", None]) == ["rag.embed", "rag.search"]
    assert values(requests["GET", None])["http.response.status_code"] == 401
    for phase in (span for span in spans if span.parent_span_id == miss.span_id):
        assert phase.trace_id.hex() == TRACE
        assert miss.start_time_unix_nano <= phase.start_time_unix_nano <= phase.end_time_unix_nano
        assert phase.end_time_unix_nano <= miss.end_time_unix_nano
    assert collector.services() == {"rag-shards"}


def test_spans_contain_no_question_document_text_or_key(
    traced: tuple[Collector, str, dict[str, httpx.Response]],
) -> None:
    collector, key, replies = traced
    sent = b"".join(collector.bodies)
    assert b"rag.cache" in sent
    answer = replies["miss"].json()
    for secret in (QUESTION, answer["text"], answer["citations"][0]["text"][:40], key, key.split("_", 2)[2], "wrong"):
        assert secret.encode() not in sent


def test_without_opentelemetry_a_client_works_without_spans() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
from rag_serving.answering.timing import Clock
clock = Clock()
clock.lap("cache")
assert set(clock.timings()) == {"cache", "total"}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unreachable_collector_delays_neither_answers_nor_shutdown(sample_lake: str, tmp_path: Path) -> None:
    environment = {"RAG_LAKE_URI": sample_lake, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with serving(tmp_path, environment, "--open") as service:
        reply = httpx.post(f"{service.url}/v1/search", json={"question": QUESTION}, trust_env=False, timeout=60)
        assert reply.status_code == 200
        service.process.terminate()
        assert service.process.wait(60) in (0, -signal.SIGTERM)
