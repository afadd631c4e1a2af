"""How steps fail and are retried: deliberate errors by name, interrupts, and what another try can mend."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import dagster as dg

from rag_assets.errors import LeaseLost, ShardLocked, SourceRefused, SourceUnavailable
from rag_serving.errors import LakeUnavailable, RagError, WriteConflict, first_line

INTERRUPTED = "Interrupted: it goes on from there when it is run again"
_INTERRUPTS_END_RUNS: ContextVar[bool] = ContextVar("interrupts_end_runs", default=False)

TRANSIENT = (SourceUnavailable, LakeUnavailable, WriteConflict, ShardLocked)

step_retries = dg.RetryPolicy(max_retries=3, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


@contextmanager
def interrupts_end_runs() -> Generator[None]:
    """Have an interrupted step fail for good, as `INTERRUPTED`, instead of being retried."""
    token = _INTERRUPTS_END_RUNS.set(True)
    try:
        yield
    finally:
        _INTERRUPTS_END_RUNS.reset(token)


@contextmanager
def named_failures() -> Generator[None]:
    """Show a deliberate error as a Dagster failure with its message, retried only where trying again can help."""
    try:
        yield
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt) as interrupt:
        # Dagster counts an interrupt as a failure to be retried, which suits a daemon's run and no one at a terminal.
        if not _INTERRUPTS_END_RUNS.get():
            raise
        raise dg.Failure(description=INTERRUPTED, allow_retries=False) from interrupt
    except (OSError, RuntimeError) as error:
        # Lance's own errors, met in the middle of a read or a commit; it has retried what it can.
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
