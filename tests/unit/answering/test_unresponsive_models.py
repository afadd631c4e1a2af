"""A model that does not respond is bypassed, so that no question waits for it, and tried again until it responds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rag_serving.answering.generation import LanguageModel
from rag_serving.answering.unresponsive_models import UnresponsiveModels
from rag_serving.errors import ModelUnavailable
from rag_serving.litellm_calls import ModelError

SILENT = TimeoutError()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_model_is_bypassed_after_failures_in_a_row_and_tried_by_one_call_after_each_pause() -> None:
    clock = Clock()
    models = UnresponsiveModels(failures=2, pause=30, clock=clock)
    models.failed("a", SILENT)
    assert not models.bypasses("a")
    models.failed("a", SILENT)
    assert models.bypasses("a")
    assert not models.bypasses("b")
    assert len(models) == 1
    clock.now = 31.0
    assert [models.bypasses("a") for _ in range(3)] == [False, True, True]
    models.failed("a", SILENT)
    clock.now = 62.0
    assert not models.bypasses("a")
    models.responded("a")
    assert not models.bypasses("a")
    assert not models


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (SILENT, True),
        (ModelError("Timeout"), True),
        (ModelError("InternalServerError", "Connection error."), True),
        (ModelError("InternalServerError", "out of memory"), False),
        (ModelError("RateLimitError"), False),
        (ModelError("BadRequestError", "too long", too_long=True), False),
    ],
)
def test_only_a_model_that_does_not_respond_is_bypassed(error: Exception, counts: bool) -> None:
    models = UnresponsiveModels(failures=2)
    models.failed("a", SILENT)
    models.failed("a", error)
    assert models.bypasses("a") is counts


def test_a_question_does_not_wait_for_a_model_that_hung_before() -> None:
    calls = 0

    async def hangs(**_call: Any) -> Any:
        nonlocal calls
        calls += 1
        await asyncio.Event().wait()

    async def ask() -> list[str]:
        model = LanguageModel("a", timeout=0.01, retries=0, max_tokens=10, completion=hangs)
        problems: list[str] = []
        for _ in range(7):
            with pytest.raises(ModelUnavailable) as raised:
                await model.complete([{"role": "user", "content": "When?"}])
            problems.append(str(raised.value))
        assert [(call.model, call.outcome) for call in model.ended] == [("a", "failed")] * 5
        return problems

    problems = asyncio.run(ask())
    assert calls == 5
    assert problems[4] == "every language model failed: a (silent for 0.01 s)"
    assert problems[5] == "every language model failed: a (bypassed, because it does not respond)"
