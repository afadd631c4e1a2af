"""Run the application under uvicorn, in one or several processes."""

import gc
import logging
import os
import resource
import socket
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors import Multiprocess

from rag_serving.answering.llm_process import ModelProcess
from rag_serving.clients.factory import configured_model
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.http import logs
from rag_serving.http.connections import BoundedHttpProtocol
from rag_serving.http.rate_limits import open_rate_limits
from rag_serving.http.settings import HttpSettings
from rag_serving.http.watching import requests_of_dead_process
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.tables import start_tables
from rag_serving.litellm_calls import import_litellm
from rag_serving.settings import ServingSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger(__name__)

_MOST_FILES = 65_536

_NOT_STARTED = 3
"""uvicorn's exit code for a failed start."""
_SWITCH_SECONDS = 0.001
"""Interval after which a Python thread yields to the event loop; Python's default is five times as long."""
_OBJECTS_PER_COLLECTION = 50_000
"""Python's default of 700 collects hundreds of times while one large body is parsed, which doubles its time."""
_RECEIVE_BYTES = 65_536
"""Bytes that the system accepts of a connection before they are read; those of a refused request cost time as well."""
_UNRESPONSIVE_SECONDS = 10
"""Seconds after which a worker that does not respond to its parent is replaced, with all its connections."""


def app(workers: int = 1, *, open_to_all: bool = False, metrics: str | None = None) -> "FastAPI":
    """Create the application from the environment; uvicorn calls this in each of its `workers` processes.

    `metrics` is the folder in which several processes share their metrics and record their requests.
    """
    if "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        os.environ.setdefault("OTEL_SERVICE_NAME", "rag-shards")
    if metrics is not None:
        # prometheus_client reads this on import, and importing the application imports it.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
    from rag_serving.http.app import create_app

    settings, http_settings = ServingSettings.from_env(), HttpSettings.from_env()
    logging.captureWarnings(True)
    # The process of the language model is another program, which never runs what lancedb has in memory.
    warnings.filterwarnings("ignore", message="lancedb fork support")
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(_OBJECTS_PER_COLLECTION, *gc.get_threshold()[1:])
    start_tables()

    def client() -> AsyncRagClient:
        model = configured_model(settings, ModelProcess() if http_settings.llm_process else None)
        if model is not None and model.process is not None:
            model.process.begin()
        elif model is not None:
            threading.Thread(target=import_litellm, name="import litellm", daemon=True).start()
        load = partial(load_embedder, cores=settings.usable_cores, low_priority=True)
        return AsyncRagClient(settings, model=model, load=load)

    return create_app(
        client,
        http_settings,
        make_rates=open_rate_limits(settings, workers=workers),
        version=version("rag-shards"),
        open_to_all=open_to_all,
        shared=None if metrics is None else Path(metrics),
    )


def serve(host: str, port: int, *, workers: int, open_to_all: bool) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in progress. Raises `SettingsError` before starting."""
    from rag_serving.http.app import create_app

    settings = HttpSettings.from_env()
    create_app(lambda: AsyncRagClient(ServingSettings.from_env()), settings, open_to_all=open_to_all)  # check settings
    _allow_connections()
    with tempfile.TemporaryDirectory(prefix="rag-metrics-") as folder:
        config = uvicorn.Config(
            partial(app, workers, open_to_all=open_to_all, metrics=folder if workers > 1 else None),
            factory=True,
            host=host,
            port=port,
            workers=workers,
            http=BoundedHttpProtocol,
            ws="none",
            log_config=logs.CONFIG,
            access_log=False,
            server_header=False,
            proxy_headers=settings.trusted_proxies is not None,
            forwarded_allow_ips=settings.trusted_proxies or "",
            timeout_graceful_shutdown=settings.drain_seconds,
            timeout_keep_alive=settings.keep_alive,
            timeout_worker_healthcheck=_UNRESPONSIVE_SECONDS,
        )
        with suppress(KeyboardInterrupt):  # uvicorn re-raises it after a graceful shutdown
            listener = config.bind_socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            if workers > 1:
                _Workers(config, listener, Path(folder)).run()
                return
            server = uvicorn.Server(config)
            server.run(sockets=[listener])
            if not server.started:
                raise SystemExit(_NOT_STARTED)


class _Workers(Multiprocess):
    """uvicorn's parent of several workers; logs what one was doing that died or did not respond."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, shared: Path) -> None:
        super().__init__(config, sockets=[listener])
        self._shared = shared

    def keep_subprocess_alive(self) -> None:
        """Replace such workers."""
        from prometheus_client.multiprocess import mark_process_dead  # pyright: ignore[reportUnknownVariableType]

        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            if pid is not None:
                mark_process_dead(pid, str(self._shared))
                requests = requests_of_dead_process(self._shared, pid)
                _log.error(
                    "worker %d ended or did not respond and is being replaced; requests in progress: %s",
                    pid,
                    ", ".join(requests) or "none",
                )


def _allow_connections() -> None:
    """Raise the limit of open files as far as allowed: each connection needs one, and 1,024 is a common default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # the limit stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
