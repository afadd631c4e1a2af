"""How steps fail: named errors, interrupts, and which failures are retried."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import dagster as dg

from rag_assets.errors import LeaseLost, ShardLocked, SourceRefused, SourceUnavailable
from rag_serving.errors import LakeUnavailable, RagError, WriteConflict, first_line

INTERRUPTED = "Interrupted: the next run continues from here"
_INTERRUPTS_END_RUNS: ContextVar[bool] = ContextVar("interrupts_end_runs", default=False)

TRANSIENT = (SourceUnavailable, LakeUnavailable, WriteConflict, ShardLocked)

step_retries = dg.RetryPolicy(max_retries=3, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


@contextmanager
def interrupts_end_runs() -> Generator[None]:
    """Let an interrupted step fail as `INTERRUPTED`, without retries."""
    token = _INTERRUPTS_END_RUNS.set(True)
    try:
        yield
    finally:
        _INTERRUPTS_END_RUNS.reset(token)


def interrupts_end_this_run() -> bool:
    """Return whether this runs within `interrupts_end_runs`."""
    return _INTERRUPTS_END_RUNS.get()


@contextmanager
def named_failures() -> Generator[None]:
    """Turn the project's errors into Dagster failures with a short message, retried only if a retry may succeed."""
    try:
        yield
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt) as interrupt:
        # Dagster retries an interrupted step, which is right for a daemon's run but not for a user's Ctrl-C.
        if not interrupts_end_this_run():
            raise
        raise dg.Failure(description=INTERRUPTED, allow_retries=False) from interrupt
    except (OSError, RuntimeError) as error:
        # Lance raises these in the middle of a read or a commit, after its own retries.
        if "LanceError(IO)" not in str(error):
            raise
        code = re.search(r"<Code>(\w+)</Code>", str(error))
        reason = (f"{code[1]}: " if code else "") + first_line(error)
        raise dg.Failure(
            description=f"LakeUnavailable: {reason}", metadata={"error": LakeUnavailable.__name__}, allow_retries=True
        ) from error
    except RagError as error:
        transient = isinstance(error, TRANSIENT) and not isinstance(error, SourceRefused | LeaseLost)
        raise dg.Failure(
            description=f"{type(error).__name__}: {error}",
            metadata={"error": type(error).__name__},
            allow_retries=transient,
        ) from error
