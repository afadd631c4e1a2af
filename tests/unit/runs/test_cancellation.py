"""A run is interrupted when it is terminated, and only then."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import dagster as dg
import pytest

from rag_assets.runs.cancellation import interrupted_if_canceled
from rag_assets.runs.failures import interrupts_end_runs


class Records:
    """An instance whose run has these states one after another; an exception is raised instead of returned."""

    def __init__(self, *states: dg.DagsterRunStatus | Exception, persistent: bool = True) -> None:
        self.states = list(states)
        self.is_persistent = persistent
        self.looks = 0

    def get_run_by_id(self, run_id: str) -> dg.DagsterRun:
        self.looks += 1
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return dg.DagsterRun("index_shard", run_id=run_id, status=state)


@pytest.fixture
def interrupts() -> Iterator[list[int]]:
    """Counts SIGINT instead of raising KeyboardInterrupt."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    yield seen
    signal.signal(signal.SIGINT, before)


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 30
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("ended", [dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.FAILURE])
def test_a_run_that_is_canceled_or_given_up_is_interrupted_until_it_ends(
    interrupts: list[int], ended: dg.DagsterRunStatus
) -> None:
    records: Any = Records(dg.DagsterRunStatus.STARTED, RuntimeError("no route to the database"), ended)
    with interrupted_if_canceled(records, "run", None, interval=0.01):
        wait_for(lambda: len(interrupts) >= 2)
    counted = len(interrupts)
    time.sleep(1)
    assert len(interrupts) == counted


def test_a_run_that_goes_on_is_not_interrupted(interrupts: list[int]) -> None:
    records: Any = Records(dg.DagsterRunStatus.STARTED)
    with interrupted_if_canceled(records, "run", None, interval=0.01):
        wait_for(lambda: records.looks > 5)
    assert interrupts == []


def test_a_run_that_ends_at_the_first_interrupt_is_left_alone() -> None:
    records: Any = Records(dg.DagsterRunStatus.CANCELING)
    with interrupts_end_runs(), interrupted_if_canceled(records, "run", None, interval=0.001):
        time.sleep(0.05)
    assert records.looks == 0


def test_a_run_that_no_other_process_can_cancel_is_left_alone() -> None:
    records: Any = Records(dg.DagsterRunStatus.CANCELING, persistent=False)
    with interrupted_if_canceled(records, "run", None, interval=0.001):
        time.sleep(0.05)
    assert records.looks == 0
