"""Threads that give way, so that heavy work for one question does not keep the event loop from answering others."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

_NICENESS = 10
"""The share of a core that such a thread is left, where both want it, is then about a tenth of the event loop's."""
_T = TypeVar("_T")


def lower_priority() -> None:
    """Lower the priority of this thread, and of those that it starts from now on.

    Only Linux has priorities of threads; elsewhere nothing changes.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def with_low_priority(work: Callable[[], _T]) -> _T:
    """Do it in a thread that gives way, as do those that a library starts meanwhile."""
    with ThreadPoolExecutor(1, initializer=lower_priority) as pool:
        return pool.submit(work).result()
