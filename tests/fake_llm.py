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

    `faults` maps a model's name to what happens to its calls: an HTTP status, "hangs", "cut" after the first word, or
    "broken" by an error in the stream after it.
    """

    url: str = ""
    words: tuple[str, ...] = ("46 weeks", " on full pay", " [1]", " [77].")
    rewrite: str = ""
    status: int = 200
    pause: float = 0.0
    """Seconds before each word."""
    faults: dict[str, str] = field(default_factory=dict[str, str])
    refuses: tuple[str, ...] = ()
    """Parameters that it does not accept; "system" is the role, "stream" is streaming."""
    room: int = 10**9
    """Characters of the longest prompt."""
    reasoning: tuple[str, ...] = ()
    """Pieces of reasoning_content before the words."""
    finish: str | None = "stop"
    tells_usage: bool = True
    message: str = "overloaded"
    """What it says with an HTTP status."""
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


_USAGE = {"prompt_tokens": 700, "completion_tokens": 9, "total_tokens": 709}


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
            self.wfile.write(json.dumps({"error": {"message": state.message, "type": "server_error"}}).encode())
            return
        refusal = self._refusal(request)
        if refusal:
            self.send_response(400)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps({"error": {"message": refusal, "type": "invalid_request_error"}}).encode())
            return
        if not request.get("stream"):
            self._whole_answer()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        rewriting = "rewrite" in request["messages"][0]["content"]
        for thought in state.reasoning:
            time.sleep(state.pause)
            self._event({"choices": [{"index": 0, "delta": {"reasoning_content": thought}}]})
        for word in (state.rewrite,) if rewriting else state.words:
            time.sleep(state.pause)
            self._event({"choices": [{"index": 0, "delta": {"content": word}}]})
            if fault == "cut":
                self.connection.close()
                return
            if fault == "broken":
                error = {"message": "worker lost", "type": "server_error", "code": 500}
                self.wfile.write(f"data: {json.dumps({'error': error})}\n\n".encode())
                return
        if state.finish is not None:
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": state.finish}]})
        if state.tells_usage:
            self._event({"choices": [], "usage": _USAGE})
        self.wfile.write(b"data: [DONE]\n\n")

    def _refusal(self, request: dict[str, Any]) -> str:
        """Return why the request is refused, in the words of a provider; empty if it is not."""
        state = self.stand_in
        for name in state.refuses:
            if name == "system" and any(message["role"] == "system" for message in request["messages"]):
                return "Conversation roles must alternate user/assistant; System role not supported"
            if request.get(name):
                return f"Unsupported parameter: '{name}' is not supported with this model."
        length = sum(len(message["content"]) for message in request["messages"])
        if length > state.room:
            return (
                f"This model's maximum context length is {state.room} tokens. However, you requested {length} tokens."
            )
        return ""

    def _whole_answer(self) -> None:
        message = {"role": "assistant", "content": "".join(self.stand_in.words)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "stand-in"}
        body = json.dumps({**answer, "choices": choices, "usage": _USAGE}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _event(self, content: dict[str, Any]) -> None:
        common = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "stand-in"}
        self.wfile.write(f"data: {json.dumps({**common, **content})}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class defines the name
        pass
