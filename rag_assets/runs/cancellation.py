"""Interrupt a run that was terminated, where no launcher can send its process a signal: in Celery workers."""

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from rag_serving.errors import first_line

INTERVAL = 5.0
"""Seconds between two looks at the run's status."""
_AGAIN = 0.5
"""Seconds between two interrupts."""
_ENDED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE)

_watching = threading.Event()


def watch_in_this_process() -> None:
    """Make `interrupted_if_canceled` watch in this process and those forked from it."""
    _watching.set()


@contextmanager
def interrupted_if_canceled(
    instance: dg.DagsterInstance, run_id: str, log: dg.DagsterLogManager | None, *, interval: float = INTERVAL
) -> Generator[None]:
    """Send this process SIGINT until the block ends, once the run is canceled or given up.

    Once is not enough: Dagster repeats an interrupted step that has a retry policy. The next interrupt comes while it
    waits to do so, and ends the run.
    """
    if not _watching.is_set():
        yield
        return
    over = threading.Event()

    def watch() -> None:
        ended = False
        while not over.wait(_AGAIN if ended else interval):
            if ended:
                os.kill(os.getpid(), signal.SIGINT)
                continue
            try:
                run = instance.get_run_by_id(run_id)
            except Exception as error:  # noqa: BLE001 - a database that does not answer cancels nothing
                if log is not None:
                    log.warning("cannot look whether this run was canceled: %s", first_line(error))
                continue
            if run is not None and run.status in _ENDED:
                ended = True

    thread = threading.Thread(target=watch, name="cancellation", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
