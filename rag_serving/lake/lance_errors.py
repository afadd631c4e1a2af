"""Errors of Lance, which has no exception classes, converted to ours."""

from collections.abc import Generator
from contextlib import contextmanager

from rag_serving.errors import LakeUnavailable, first_line

LANCE_ERRORS = (OSError, RuntimeError, ValueError)
"""Raised by LanceDB for a missing file or version, a rejected commit, and an unreachable store."""


@contextmanager
def named_lance_errors(what: str, remedy: str = "") -> Generator[None]:
    """Raise Lance's errors as `LakeUnavailable`, with the failed operation `what` and a remedy."""
    try:
        yield
    except LANCE_ERRORS as error:
        raise LakeUnavailable(f"{what}: {first_line(error)}{remedy}") from error


def is_commit_conflict(error: BaseException) -> bool:
    """Return whether Lance rejected a commit because another writer committed first."""
    return "commit conflict" in str(error).lower()
