"""Logs of the service: one JSON object a line, with the request and the trace that it belongs to."""

import json
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from rag_serving.tracing import current_trace

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request in progress; empty outside of requests."""
FIELDS = "fields"
"""Attribute of a record with further fields of its line: `extra={FIELDS: {...}}`."""
_QUIET_SECONDS = 60.0
_MOST_MESSAGES = 1_000

CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "rag_serving.http.logs.JsonLines"}},
    "filters": {
        "unnamed": {"()": "rag_serving.http.logs.WithoutInvalidRequests"},
        "repeated": {"()": "rag_serving.http.logs.WithoutRepetitions"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["unnamed", "repeated"]}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    # The INFO lines of these contain the prompts.
    "loggers": {"LiteLLM": {"level": "WARNING"}, "httpx": {"level": "WARNING"}},
}
"""Configuration for `logging.config.dictConfig`."""


class WithoutInvalidRequests(logging.Filter):
    """Drops uvicorn's line about an invalid request: `connections` writes one with the caller's address."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write the record."""
        return record.msg != "Invalid HTTP request received."


class WithoutRepetitions(logging.Filter):
    """Writes the same warning or error at most once in `_QUIET_SECONDS`: an outage is no line for each request.

    The next line has the field ``repeated``, the number of those that were left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._written: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        """When a message was last written, and how often it has been left out since; oldest first."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write the record."""
        if record.levelno < logging.WARNING:
            return True
        message, now = (record.name, record.getMessage()), self._clock()
        written, left_out = self._written.get(message, (-math.inf, 0))
        if now - written < _QUIET_SECONDS:
            self._written[message] = written, left_out + 1
            return False
        self._written.pop(message, None)
        self._written[message] = now, 0
        if len(self._written) > _MOST_MESSAGES:
            self._written.popitem(last=False)
        if left_out:
            setattr(record, FIELDS, {**getattr(record, FIELDS, {}), "repeated": left_out})
        return True


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            "trace_id": current_trace(),
        }
        line.update(getattr(record, FIELDS, {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value != ""}, ensure_ascii=False)
