"""A stand-in language model: it serves OpenAI's protocol on loopback, records requests and injects faults."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class StandIn:
    """The model's replies: these words, or an HTTP status; `rewrite` replaces a follow-up question.

    `faults` maps a model's name to what happens to its calls: an HTTP status, "hangs", or "cut" after the first word.
    """

    url: str = ""
    words: tuple[str, ...] = ("46 weeks", " on full pay", " [1]", " [77].")
    rewrite: str = ""
    status: int = 200
    pause: float = 0.0
    """Seconds before each word."""
    faults: dict[str, str] = field(default_factory=dict[str, str])
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which litellm finds the stand-in."""
        return {"OPENAI_API_KEY": "not-a-key", "OPENAI_API_BASE": self.url, "NO_PROXY": "127.0.0.1"}


@contextlib.contextmanager
def stand_in_model() -> Generator[StandIn]:
    """Run a stand-in model until the block ends."""
    state = StandIn()

    class Handler(_Handler):
        stand_in = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        state.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn

    def do_POST(self) -> None:
        state = self.stand_in
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state.requests.append(request)
        fault = state.faults.get(request["model"], str(state.status))
        if fault == "hangs":
            state.over.wait(60)
            return
        if fault.isdigit() and fault != "200":
            self.send_response(int(fault))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "overloaded", "type": "server_error"}}')
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        rewriting = "rewrite" in request["messages"][0]["content"]
        for word in (state.rewrite,) if rewriting else state.words:
            time.sleep(state.pause)
            self._event({"choices": [{"index": 0, "delta": {"content": word}}]})
            if fault == "cut":
                self.connection.close()
                return
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 700, "completion_tokens": 9, "total_tokens": 709}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content: dict[str, Any]) -> None:
        common = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "stand-in"}
        self.wfile.write(f"data: {json.dumps({**common, **content})}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class defines the name
        pass
