"""Runs the application under uvicorn, in one process or in several."""

from __future__ import annotations

import logging
import os
import resource
import sys
import tempfile
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from rag_serving.answering.llm_process import ModelProcess
from rag_serving.clients.factory import configured_model
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.http.app import create_app
from rag_serving.http.metrics import SHARED
from rag_serving.http.rate_limits import open_rate_limits
from rag_serving.http.settings import HttpSettings
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.tables import start_tables
from rag_serving.settings import ServingSettings

if TYPE_CHECKING:
    from fastapi import FastAPI


_OPEN = "RAG_HTTP_OPEN_TO_ALL"
_WORKERS = "RAG_HTTP_WORKER_PROCESSES"
_MOST_FILES = 65_536
_SWITCH_SECONDS = 0.001
"""After which another thread of Python lets the event loop go on; five times that is Python's own."""


def app() -> FastAPI:
    """The application by the environment; uvicorn calls it in each of its processes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for name in ("LiteLLM", "httpx"):  # they tell what is asked of a model
        logging.getLogger(name).setLevel(logging.WARNING)
    if "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        os.environ.setdefault("OTEL_SERVICE_NAME", "rag-shards")
    settings, http_settings = ServingSettings.from_env(), HttpSettings.from_env()
    sys.setswitchinterval(_SWITCH_SECONDS)
    start_tables()

    def client() -> AsyncRagClient:
        model = configured_model(settings, ModelProcess() if http_settings.llm_process else None)
        if model is not None and model.process is not None:
            model.process.begin()
        return AsyncRagClient(settings, model=model, load=partial(load_embedder, low_priority=True))

    return create_app(
        client,
        http_settings,
        make_rates=open_rate_limits(settings, workers=int(os.environ.get(_WORKERS, "1"))),
        version=version("rag-shards"),
        open_to_all=os.environ.get(_OPEN) == "1",
    )


def serve(host: str, port: int, *, workers: int, open_to_all: bool) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are finished then. Raises `SettingsError` at once."""
    import uvicorn

    settings = HttpSettings.from_env()
    create_app(lambda: AsyncRagClient(ServingSettings.from_env()), settings, open_to_all=open_to_all)  # is it well set?
    if open_to_all:
        os.environ[_OPEN] = "1"
    os.environ[_WORKERS] = str(workers)
    _allow_connections()
    with tempfile.TemporaryDirectory(prefix="rag-metrics-") as folder:
        if workers > 1:
            os.environ[SHARED] = folder
        uvicorn.run(
            "rag_serving.http.server:app",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            access_log=False,
            server_header=False,
            proxy_headers=settings.trusted_proxies is not None,
            forwarded_allow_ips=settings.trusted_proxies or "",
            timeout_graceful_shutdown=settings.drain_seconds,
            timeout_keep_alive=settings.keep_alive,
        )


def _allow_connections() -> None:
    """As many open files as the system allows: each connection is one, and what shells begin with is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # then it is as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
