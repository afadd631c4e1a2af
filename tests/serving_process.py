"""`rag-serving serve` in its own process, for tests of the service and of its clients."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx

from tests.fake_llm import StandIn


@dataclass
class Service:
    """A running service and its log."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def as_client(self, key: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=60, trust_env=False)


def service_environment(lake: str, stand_in: StandIn, keys_file: Path, **more: str) -> dict[str, str]:
    """Return the environment of a service on this lake, with this model and these keys."""
    return {
        **stand_in.environment,
        "RAG_LAKE_URI": lake,
        "RAG_LLM_MODEL": "openai/stand-in",
        "RAG_HTTP_KEYS": str(keys_file),
        "RAG_HTTP_FAILED_KEYS_PER_MINUTE": "1000",
        **more,
    }


@contextmanager
def serving(
    folder: Path,
    environment: dict[str, str],
    *arguments: str,
    path: str = "/readyz",
    preexec_fn: Callable[[], None] | None = None,
) -> Generator[Service]:
    """Run `rag-serving serve` on a free port until the block ends; it has begun when `path` answers 200."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    log = folder / f"serve-{port}.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAG_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "rag_serving.cli", "serve", "--port", str(port), *arguments],
            env={**inherited, "RAG_HTTP_NOTICE_SECONDS": "0", **environment},
            stdout=output,
            stderr=output,
            preexec_fn=preexec_fn,
        )
    service = Service(f"http://127.0.0.1:{port}", process, log)
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                if httpx.get(f"{service.url}{path}", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield service
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
