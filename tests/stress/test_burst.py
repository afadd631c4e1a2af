"""A burst of arrivals through a real Dagster daemon: one run for each shard and arrival, never two at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress.burst import burst


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_burst_becomes_one_run_for_each_shard_and_arrival_and_all_is_published(
    model_lake: str, tmp_path: Path
) -> None:
    found = burst(tmp_path, Path(model_lake), objects=90, shards=6)
    assert found.problems == []
    assert 6 <= found.runs <= 8  # a second wave reached two of the six shards, some before their first run
