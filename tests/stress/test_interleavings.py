"""Promise 7: random orders of publishes, rollbacks, questions, expiry and cache losses.

`python -m tests.stress.interleavings` runs thousands more.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.stress.interleavings import run, run_on_redis


@pytest.mark.parametrize("seed", [1, 2])
def test_answers_never_come_from_unpublished_documents_or_another_tenant_or_scope(seed: int) -> None:
    outcome = asyncio.run(run(600, seed))
    assert outcome.wrong == []
    assert min(outcome.answers[state] for state in ("exact", "semantic", "revalidated", "miss")) >= 5


def test_answers_cached_in_redis_never_come_from_unpublished_documents_or_another_scope(redis_clean: str) -> None:
    outcome = asyncio.run(run_on_redis(400, 3, redis_clean))
    assert outcome.wrong == []
    assert min(outcome.answers[state] for state in ("exact", "semantic", "revalidated", "miss")) >= 5
