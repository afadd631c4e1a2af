"""A burst of arrivals through a real Dagster daemon: one run per shard and arrival, never two at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress.burst import burst


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_burst_is_published_with_at_most_one_run_per_shard_and_arrival(model_lake: str, tmp_path: Path) -> None:
    found = burst(tmp_path, Path(model_lake), objects=90, shards=6)
    assert found.problems == []
    assert 6 <= found.runs <= 8  # a second wave reaches two of the six shards, possibly before their first run
