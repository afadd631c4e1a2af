"""The simulation of a fleet, on cases that can be computed by hand."""

from __future__ import annotations

import pytest

from benchmarks.fleet import Fleet, simulate, sizes


def test_equal_runs_fill_the_workers_evenly() -> None:
    found = simulate(Fleet(2, documents_per_second=10, run_seconds=0, runs_per_second=1e9), [100] * 4)
    assert found.seconds == pytest.approx(20)
    assert found.idle == pytest.approx(0, abs=1e-6)


def test_a_large_shard_at_the_end_leaves_the_other_workers_idle() -> None:
    found = simulate(Fleet(2, documents_per_second=1, run_seconds=0, runs_per_second=1e9), [10, 10, 100])
    assert found.seconds == pytest.approx(110)
    assert found.idle == pytest.approx(1 - 120 / 220)


def test_the_daemon_s_pace_limits_a_fleet_that_is_fast_enough() -> None:
    found = simulate(Fleet(100, documents_per_second=1e9, run_seconds=0.5, runs_per_second=1), [1] * 61)
    assert found.seconds == pytest.approx(60.5)


def test_sizes_add_up_and_are_the_same_for_a_seed() -> None:
    assert abs(sum(sizes(100, 50_000, 1.2, 1)) - 50_000) < 100
    assert sizes(100, 50_000, 1.2, 1) == sizes(100, 50_000, 1.2, 1)
