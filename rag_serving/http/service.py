"""What the routes share: the client, the caller, and the state of the process."""

import asyncio
import logging
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from rag_serving.errors import RagError
from rag_serving.http.auth import Authenticator, Principal
from rag_serving.http.connections import Connections
from rag_serving.http.metrics import Metrics
from rag_serving.http.rate_limits import RateLimits
from rag_serving.http.settings import HttpSettings
from rag_serving.http.watching import LoopWatch

if TYPE_CHECKING:
    from rag_serving.clients.lake import AsyncRagClient

_log = logging.getLogger(__name__)

_REPORT_SECONDS = 5.0
"""Interval at which a process updates its gauges, which another process may be asked for."""


@dataclass(slots=True)
class Service:
    """State that the routes share; create it on the event loop."""

    client: "AsyncRagClient"
    authenticator: Authenticator
    metrics: Metrics
    rates: RateLimits
    settings: HttpSettings
    connections: Connections
    watch: LoopWatch = field(default_factory=LoopWatch)
    stopping: bool = False
    """Whether the process was told to stop and will refuse connections soon."""
    was_ready: bool = False
    """Whether a question could have been answered before."""

    def report(self) -> None:
        """Update the metrics."""
        states = {
            "connections": self.connections.open,
            "loop_blocked": self.watch.blocked,
            "rates_shared": self.rates.shared,
            "key_file_broken": self.authenticator.key_file_broken,
            **self.client.states(),
        }
        for call in self.client.ended_model_calls():
            self.metrics.called(call)
        self.metrics.follow(self.client.stats(), self.connections.closed, states)


def service_of(request: Request) -> Service:
    """Return the state that the routes share."""
    return request.app.state.service


async def _caller_of(request: Request) -> Principal:
    """Return the caller whom the middleware has authenticated."""
    return request.state.caller


_FOR_OPERATORS = {
    "LakeUnavailable": "the lake cannot be read; retry later",
    "EmbedderUnavailable": "the model that embeds questions cannot be used; retry later",
}


def told_to_caller(kind: str, message: str) -> str:
    """Return the message of an error for callers. One that names addresses or settings is logged and replaced."""
    told = _FOR_OPERATORS.get(kind)
    if told is not None:
        _log.error("%s: %s", kind, message)
    return told or message


Allowed = Annotated[Principal, Depends(_caller_of)]


async def load_models(service: Service) -> None:
    """Load what the first question would otherwise wait for; a problem is left to the readiness probe."""
    with suppress(RagError):
        await service.client.health()


async def report_regularly(service: Service) -> None:
    """Update the metrics again and again, until cancelled."""
    while True:
        service.report()
        await asyncio.sleep(_REPORT_SECONDS)


def notice_before_stopping(service: Service) -> None:
    """On SIGTERM fail the readiness probe first, so that no new connections are sent here when they are refused."""
    stop = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(stop):
        return
    loop = asyncio.get_running_loop()

    def notice(number: int, _frame: object) -> None:
        service.stopping = True
        loop.call_soon_threadsafe(stop_later, number)

    def stop_later(number: int) -> None:
        seconds = service.settings.notice_seconds
        _log.info("told to stop: readiness fails now, and connections are refused in %g seconds", seconds)
        loop.call_later(seconds, stop, number, None)

    signal.signal(signal.SIGTERM, notice)
