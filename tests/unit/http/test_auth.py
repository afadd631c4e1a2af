"""Authentication: what the log says about wrong keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from starlette.requests import HTTPConnection

from rag_serving.errors import NotAllowed, TooManyRequests
from rag_serving.http.api_keys import ApiKeys, create_key
from rag_serving.http.auth import Authenticator
from rag_serving.http.rate_limits import RateLimits

WRONG = "rag_00000000_" + "s" * 43


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def connection(address: str, presented: str) -> HTTPConnection:
    headers = [(b"authorization", f"Bearer {presented}".encode())]
    return HTTPConnection({"type": "http", "headers": headers, "client": (address, 1)})


def present(
    tmp_path: Path, presented: Sequence[tuple[str, str]], *, clock: Clock | None = None, pause: float = 0
) -> None:
    """Present keys from addresses to a service that allows three wrong keys in a minute."""
    create_key(tmp_path / "keys.json", "one")
    clock = Clock()

    async def run() -> None:
        keys = ApiKeys(tmp_path / "keys.json")
        made = Authenticator(keys, RateLimits(), failed_per_minute=3, delay=0, clock=clock)
        for address, key in presented:
            with pytest.raises((NotAllowed, TooManyRequests)):
                await made.authenticate(connection(address, key))
            clock.now += pause

    asyncio.run(run())


def test_a_wrong_key_is_logged_with_the_address_and_without_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    present(tmp_path, [("10.0.0.7", WRONG), ("10.0.0.8", "hunter2")])
    assert caplog.messages == ["wrong API key from 10.0.0.7", "wrong API key from 10.0.0.8"]
    assert {(line.levelno, line.name) for line in caplog.records} == {(logging.WARNING, "rag_serving.http.auth")}


def test_an_address_that_guesses_cannot_flood_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    present(tmp_path, [("10.0.0.7", WRONG)] * 50 + [("10.0.0.8", WRONG)])
    assert caplog.messages == [
        *["wrong API key from 10.0.0.7"] * 3,
        "refusing wrong API keys from 10.0.0.7: more than 3 in a minute",
        "wrong API key from 10.0.0.8",
    ]


def test_a_refused_address_is_logged_once_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    present(tmp_path, [("10.0.0.7", WRONG)] * 24, pause=10)
    assert sum(message.startswith("refusing") for message in caplog.messages) == 4


def test_a_request_without_a_key_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    present(tmp_path, [("10.0.0.7", "")])
    assert caplog.messages == []


def test_wrong_keys_beyond_the_limit_wait_for_their_refusal_but_not_endlessly_many(tmp_path: Path) -> None:
    create_key(tmp_path / "keys.json", "one")

    async def run() -> None:
        keys = ApiKeys(tmp_path / "keys.json")
        made = Authenticator(keys, RateLimits(), failed_per_minute=1, delay=3_600)
        with pytest.raises(NotAllowed):
            await made.authenticate(connection("10.0.0.7", WRONG))
        waiting = [asyncio.create_task(made.authenticate(connection("10.0.0.7", WRONG))) for _ in range(100)]
        done, _ = await asyncio.wait(waiting, timeout=0.2)
        assert not done
        with pytest.raises(TooManyRequests):
            await made.authenticate(connection("10.0.0.7", WRONG))
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())
