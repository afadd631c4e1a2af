"""Promise 7 under any order of publishes, rollbacks, questions, expiry and lost caches; thousands more as a command."""

from __future__ import annotations

import asyncio

import pytest

from tests.stress.interleavings import run, run_on_redis


@pytest.mark.parametrize("seed", [1, 2])
def test_no_answer_is_from_what_is_not_there_or_of_another_tenant_or_scope(seed: int) -> None:
    outcome = asyncio.run(run(600, seed))
    assert outcome.wrong == []
    assert min(outcome.answers[state] for state in ("exact", "semantic", "revalidated", "miss")) >= 5


def test_the_same_holds_for_answers_kept_in_redis(redis_clean: str) -> None:
    outcome = asyncio.run(run_on_redis(400, 3, redis_clean))
    assert outcome.wrong == []
    assert min(outcome.answers[state] for state in ("exact", "semantic", "revalidated", "miss")) >= 5
