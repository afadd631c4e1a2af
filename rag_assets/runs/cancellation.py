"""Interrupt a terminated run until it ends: one interrupt of its launcher, if any reaches it, is not enough."""

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from rag_assets.runs.failures import interrupts_end_this_run
from rag_serving.errors import first_line

INTERVAL = 5.0
"""Seconds between two looks at the run's status."""
_AGAIN = 0.5
"""Seconds between two interrupts."""
_ENDED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE)


@contextmanager
def interrupted_if_canceled(
    instance: dg.DagsterInstance, run_id: str, log: dg.DagsterLogManager | None, *, interval: float = INTERVAL
) -> Generator[None]:
    """Send this process SIGINT until the block ends, once the run is canceled or given up.

    Once is not enough: Dagster repeats an interrupted step that has a retry policy. The next interrupt comes while it
    waits to do so, and ends the run. A Celery worker's process gets no signal from elsewhere. A run that ends at the
    first interrupt is left alone, as is one in an instance that no other process can read.
    """
    if interrupts_end_this_run() or not instance.is_persistent:
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
