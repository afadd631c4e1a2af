"""A burst of arrivals through a real Dagster daemon: one run for each shard and arrival, never two at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.burst import burst


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_burst_becomes_one_run_for_each_shard_and_arrival_and_all_is_published(
    model_lake: str, tmp_path: Path
) -> None:
    found = burst(tmp_path, Path(model_lake), objects=180, shards=12)
    assert found.problems == []
    assert 12 <= found.runs <= 15  # a second wave reached three of the twelve shards, some before their first run
