"""Low-priority work: it and the threads it starts get a lower priority, and no other thread does."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from rag_serving.concurrency.thread_priority import with_low_priority

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_low_priority_work_and_the_threads_it_starts_are_nicer_than_the_caller() -> None:
    mine, found = niceness(), []

    def work() -> int:
        thread = threading.Thread(target=lambda: found.append(niceness()))
        thread.start()
        thread.join()
        return niceness()

    assert with_low_priority(work) > mine
    assert found[0] > mine
    assert niceness() == mine


def test_an_error_in_low_priority_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        with_low_priority(lambda: 1 // 0)
