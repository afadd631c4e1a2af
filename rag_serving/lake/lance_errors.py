"""Errors of Lance, which has no classes of its own: what it raises, and how it is named here."""

from collections.abc import Generator
from contextlib import contextmanager

from rag_serving.errors import LakeUnavailable, first_line

LANCE_ERRORS = (OSError, RuntimeError, ValueError)
"""What LanceDB raises for a missing file or version, a refused commit, and a store that does not answer."""


@contextmanager
def named_lance_errors(what: str, remedy: str = "") -> Generator[None]:
    """Raise Lance's errors as `LakeUnavailable`, with what was tried."""
    try:
        yield
    except LANCE_ERRORS as error:
        raise LakeUnavailable(f"{what}: {first_line(error)}{remedy}") from error


def is_commit_conflict(error: BaseException) -> bool:
    """Return whether Lance refused a commit because another writer's came first."""
    return "commit conflict" in str(error).lower()
