"""Promise 1 at random instants, as `python -m tests.stress.kills` checks with many more kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress.kills import Outcome, kill_and_compare


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_at_a_random_instant_and_repeated_leaves_the_table_of_a_clean_run(
    model_lake: str, tmp_path: Path
) -> None:
    outcome = Outcome()
    for outcome in kill_and_compare(tmp_path, model_lake, times=3, seed=1):
        assert not outcome.different
    assert outcome.kills >= 3
