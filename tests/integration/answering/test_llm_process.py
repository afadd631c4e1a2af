"""litellm in its own process: answers, failures and prices reach the caller, and the process never outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rag_serving.answering.generation import Generated, LanguageModel
from rag_serving.answering.llm_process import ModelProcess, ModelProcessDied
from rag_serving.errors import ModelUnavailable
from tests.fake_llm import StandIn

ROOT = Path(__file__).parents[3]
MESSAGES = [{"role": "user", "content": "How many weeks?"}]
PARENT = """
import asyncio
import sys
from rag_serving.answering.generation import LanguageModel
from rag_serving.answering.llm_process import ModelProcess, ModelProcessDied

async def main():
    await ModelProcess().warm()
    print("litellm" in sys.modules, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@asynccontextmanager
async def running(name: str = "openai/stand-in") -> AsyncGenerator[LanguageModel]:
    model = LanguageModel(name, timeout=60, retries=0, max_tokens=100, process=ModelProcess())
    try:
        yield model
    finally:
        await model.close()


def child() -> psutil.Process:
    """Return the model process that this process started."""
    (found,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if "rag_serving.answering.llm_process" in process.cmdline()
    ]
    return found


def connections() -> int:
    """Count the model process's open connections to the model."""
    return sum(each.status == psutil.CONN_ESTABLISHED for each in child().net_connections("tcp"))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30  # shorter than the hanging calls
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def test_answers_stream_with_usage_and_litellms_price(stand_in_here: StandIn) -> None:
    async def work() -> None:
        async with running("openai/gpt-4o-mini") as model:
            result = Generated()
            pieces = [piece async for piece in model.stream([MESSAGES], result)]
            assert len(pieces) >= len(stand_in_here.words)
            assert "".join(pieces) == "".join(stand_in_here.words)
            assert (result.text, result.model) == ("".join(pieces), "openai/gpt-4o-mini")
            assert result.tokens == {"prompt": 700, "completion": 9}
            assert 0 < (result.price or 0) < 0.01
            assert stand_in_here.requests[0]["messages"] == MESSAGES
        async with running() as model:
            assert (await model.complete(MESSAGES)).price is None

    run(work)


def test_a_process_started_early_answers_the_first_call(stand_in_here: StandIn) -> None:
    async def work() -> None:
        async with running() as model:
            assert model.process is not None
            model.process.begin()
            await asyncio.to_thread(wait_for, lambda: len(psutil.Process().children()) > 0)
            first = child().pid
            assert (await model.complete(MESSAGES)).text == "".join(stand_in_here.words)
            assert child().pid == first
        async with running() as model:
            assert model.process is not None
            model.process.begin()  # and closed before it has started

    run(work)


def test_failures_keep_litellms_names_and_a_truncated_answer_is_a_failure(stand_in_here: StandIn) -> None:
    async def work() -> None:
        async with running() as model:
            stand_in_here.status = 429
            with pytest.raises(ModelUnavailable, match="RateLimitError"):
                await model.complete(MESSAGES)
            stand_in_here.status, stand_in_here.faults = 200, {"stand-in": "cut"}
            # The second is its name since litellm 1.110.
            with pytest.raises(ModelUnavailable, match=r"ConnectionError|MidStreamFallbackError"):
                await model.complete(MESSAGES)
            stand_in_here.faults = {}
            assert (await model.complete(MESSAGES)).text == "".join(stand_in_here.words)

    run(work)


def test_many_calls_run_concurrently_and_an_abandoned_call_is_cancelled(stand_in_here: StandIn) -> None:
    async def work() -> None:
        async with running() as model:
            stand_in_here.pause = 0.05
            answers = await asyncio.gather(*(model.complete(MESSAGES) for _ in range(20)))
            assert {answer.text for answer in answers} == {"".join(stand_in_here.words)}
            await asyncio.to_thread(wait_for, lambda: connections() == 0)
            stand_in_here.faults = {"stand-in": "hangs"}
            hanging = asyncio.create_task(model.complete(MESSAGES))
            await asyncio.to_thread(wait_for, lambda: connections() == 1)
            hanging.cancel()
            await asyncio.to_thread(wait_for, lambda: connections() == 0)
            stand_in_here.faults = {}
            assert (await model.complete(MESSAGES)).text == "".join(stand_in_here.words)

    run(work)


def test_a_process_that_dies_fails_the_call_pending_and_the_next_one_has_another(stand_in_here: StandIn) -> None:
    async def work() -> None:
        async with running() as model:
            await model.warm()
            stand_in_here.pause = 0.5
            pending = asyncio.create_task(model.complete(MESSAGES))
            await asyncio.to_thread(wait_for, lambda: bool(stand_in_here.requests))
            first = child().pid
            os.kill(first, signal.SIGKILL)
            with pytest.raises(ModelUnavailable, match="ModelProcessDied"):
                await pending
            stand_in_here.pause = 0.0
            assert (await model.complete(MESSAGES)).text == "".join(stand_in_here.words)
            assert child().pid != first

    run(work)


def test_a_process_that_dies_at_every_start_is_restarted_with_a_pause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stand_in_here: StandIn
) -> None:
    starts = tmp_path / "starts"
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\necho started >> {starts}\nexit 3\n")
    broken.chmod(0o700)

    async def work() -> None:
        process = ModelProcess(pause=2.0)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", str(broken))
            for _ in range(20):
                with pytest.raises(ModelProcessDied):
                    await process.warm()
        assert starts.read_text().count("started") == 2
        await asyncio.sleep(2)
        model = LanguageModel("openai/stand-in", timeout=60, retries=0, max_tokens=100, process=process)
        try:
            assert (await model.complete(MESSAGES)).text == "".join(stand_in_here.words)
        finally:
            await model.close()

    run(work)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_with_its_parent_and_the_parent_never_imports_litellm(how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "False\n"
        (started,) = psutil.Process(parent.pid).children()
        parent.send_signal(how)
        parent.wait(30)
        started.wait(30)
    finally:
        parent.kill()
        parent.communicate()
