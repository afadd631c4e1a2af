"""Low-priority threads, so that heavy work for one question does not delay the event loop."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

_NICENESS = 10
"""On a contended core such a thread gets about a tenth of the event loop's share."""
_T = TypeVar("_T")


def lower_priority() -> None:
    """Lower the priority of this thread and of those it starts. Only Linux has per-thread priorities."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def with_low_priority(work: Callable[[], _T]) -> _T:
    """Run `work` in a low-priority thread; threads that it starts inherit the priority."""
    with ThreadPoolExecutor(1, initializer=lower_priority) as pool:
        return pool.submit(work).result()
