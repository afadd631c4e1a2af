"""Answers written by a language model through the real litellm, from a stand-in that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rag_serving.answer import LanguageModel
from rag_serving.client import AsyncRagClient, RagClient
from rag_serving.settings import ServingSettings

QUESTION = "How many weeks of parental leave are on full pay?"


@dataclass
class StandIn:
    """A model that answers with these words, or with an HTTP status; it keeps what it was asked."""

    url: str = ""
    words: tuple[str, ...] = ("46 weeks", " on full pay", " [1]", " [77].")
    status: int = 200
    requests: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(state.status)
            if state.status != 200:
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(b'{"error": {"message": "overloaded", "type": "server_error"}}')
                return
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for word in state.words:
                self.event({"choices": [{"index": 0, "delta": {"content": word}}]})
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": 700, "completion_tokens": 9, "total_tokens": 709}
            self.event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")

        def event(self, content: dict[str, Any]) -> None:
            common = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "stand-in"}
            self.wfile.write(f"data: {json.dumps({**common, **content})}\n\n".encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so by the base class
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    monkeypatch.setenv("OPENAI_API_BASE", state.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(sample_lake: str, stand_in: StandIn) -> Iterator[RagClient]:
    settings = ServingSettings.model_validate({"lake_uri": sample_lake, "llm_retries": 0, "llm_timeout": 20})
    model = LanguageModel("openai/stand-in", timeout=20, retries=0, max_tokens=100)
    with RagClient(lambda: AsyncRagClient(settings, model=model)) as made:
        yield made


@pytest.mark.filterwarnings("ignore")  # litellm's and its providers' own
def test_a_model_behind_litellm_writes_the_answer_with_checked_citations_and_usage(
    client: RagClient, stand_in: StandIn
) -> None:
    answer = client.ask(QUESTION, regions=["oslo"])

    assert answer.kind == "generated"
    assert answer.text == "46 weeks on full pay [1] ."
    assert [citation.number for citation in answer.citations] == [1]
    assert answer.citations[0].shard.startswith("oslo/")
    assert answer.tokens == {"prompt": 700, "completion": 9}
    assert "invented_citations:1" in answer.degraded
    system, user = stand_in.requests[0]["messages"]
    assert "46 weeks" in user["content"]
    assert "46 weeks" not in system["content"]


@pytest.mark.filterwarnings("ignore")
def test_an_answer_of_the_model_is_served_from_the_cache_without_a_second_call(
    client: RagClient, stand_in: StandIn
) -> None:
    stand_in.words = ("46 weeks [1].",)
    first = client.ask(QUESTION, regions=["oslo"])
    second = client.ask(QUESTION, regions=["oslo"])

    assert (first.cache, second.cache) == ("miss", "exact")
    assert second.text == first.text == "46 weeks [1]."
    assert len(stand_in.requests) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_failing_model_gives_a_marked_extract_that_is_not_cached(client: RagClient, stand_in: StandIn) -> None:
    stand_in.status = 500
    failed = client.ask(QUESTION, regions=["oslo"])
    stand_in.status, stand_in.words = 200, ("46 weeks [1].",)
    recovered = client.ask(QUESTION, regions=["oslo"])

    assert (failed.kind, failed.degraded) == ("extract", ("model_unavailable",))
    assert "46 weeks" in failed.text
    assert (recovered.kind, recovered.cache) == ("generated", "miss")
