"""Build filters in Lance's SQL, with every value escaped."""

from collections.abc import Iterable
from datetime import UTC, datetime


def sql_in(column: str, values: Iterable[str]) -> str:
    """Return ``column IN ('…', …)``; ``false`` without values."""
    quoted = ", ".join(_quoted(value) for value in values)
    return f"{column} IN ({quoted})" if quoted else "false"


def sql_not_in(column: str, values: Iterable[str]) -> str:
    """Return ``column NOT IN ('…', …)``; ``true`` without values."""
    quoted = ", ".join(_quoted(value) for value in values)
    return f"{column} NOT IN ({quoted})" if quoted else "true"


def sql_starts_with(column: str, prefix: str) -> str:
    """Return a filter on a literal prefix; no character is a wildcard."""
    return f"starts_with({column}, {_quoted(prefix)})"


def sql_from(column: str, moment: datetime) -> str:
    """Return a filter for UTC times at or after a moment."""
    return f"{column} >= {_time(moment)}"


def sql_before(column: str, moment: datetime) -> str:
    """Return a filter for UTC times before a moment."""
    return f"{column} < {_time(moment)}"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _time(moment: datetime) -> str:
    return f"TIMESTAMP '{moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ', timespec='microseconds')}Z'"
