"""Filters in Lance's SQL, with every value escaped."""

from collections.abc import Iterable
from datetime import UTC, datetime


def sql_in(column: str, values: Iterable[str]) -> str:
    """``column IN ('…', …)`` with every value quoted; false for no values."""
    quoted = ", ".join(_quoted(value) for value in values)
    return f"{column} IN ({quoted})" if quoted else "false"


def sql_not_in(column: str, values: Iterable[str]) -> str:
    """``column NOT IN ('…', …)`` with every value quoted; true for no values."""
    quoted = ", ".join(_quoted(value) for value in values)
    return f"{column} NOT IN ({quoted})" if quoted else "true"


def sql_starts_with(column: str, prefix: str) -> str:
    """Whether a column begins with exactly that text; no character of it is a wildcard."""
    return f"starts_with({column}, {_quoted(prefix)})"


def sql_from(column: str, moment: datetime) -> str:
    """Whether a column of times in UTC is at the moment or after it."""
    return f"{column} >= {_time(moment)}"


def sql_before(column: str, moment: datetime) -> str:
    """Whether a column of times in UTC is before the moment."""
    return f"{column} < {_time(moment)}"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _time(moment: datetime) -> str:
    return f"TIMESTAMP '{moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ', timespec='microseconds')}Z'"
