"""Logs of the service: one JSON object a line, with the request and the trace that it belongs to."""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from rag_serving.tracing import current_trace

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request in progress; empty outside of requests."""
FIELDS = "fields"
"""Attribute of a record with further fields of its line: `extra={FIELDS: {...}}`."""

CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "rag_serving.http.logs.JsonLines"}},
    "filters": {"unnamed": {"()": "rag_serving.http.logs.WithoutInvalidRequests"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["unnamed"]}},
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
