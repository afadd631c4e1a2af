"""The load generator, an open loop: each connection asks at its own times, unless the plan's interval is 0.

Run it as ``python -m benchmarks.load.people`` with a plan as JSON in the first line of standard input. It prints
``open`` when all connections are open, waits for a second line, and prints the outcome of every request as JSON.
Latency counts from the intended send time, so that a slow service cannot slow down its own measurement.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import aiohttp

_OPENING_AT_ONCE = 64
_GIVE_UP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Connections, rate, duration and questions."""

    url: str
    key: str
    connections: int
    interval: float
    """Seconds between two questions of a connection; 0: it asks again as soon as it has its answer."""
    seconds: float
    settle: float
    """Seconds at the start that are not counted."""
    common: list[dict[str, Any]]
    """Request bodies of questions that were asked before, the most common first."""
    repeats: float
    """Share of common questions; the others were never asked before."""
    first_number: int
    """Number of the first new question, so that two plans never ask the same one."""


@dataclass(frozen=True, slots=True)
class Met:
    """The outcome of one request."""

    at: float
    """Intended send time, in seconds from the start."""
    state: str
    """The cache state of the answer, or ``error``."""
    begun: float
    """Seconds until the first piece of the answer."""
    whole: float
    """Seconds until the end of the answer."""
    problem: str = ""


def questions_of(plan: Plan) -> Iterator[dict[str, Any]]:
    """Generate request bodies forever: common questions by Zipf's law, and new ones."""
    draw = random.Random(plan.first_number)
    weights = [1 / rank for rank in range(1, len(plan.common) + 1)]
    numbers = itertools.count(plan.first_number)
    while True:
        (body,) = draw.choices(plan.common, weights)
        if draw.random() >= plan.repeats:
            body = {**body, "question": f"{body['question'].rstrip('?')} under order {next(numbers)}?"}
        yield body


async def _ask(session: aiohttp.ClientSession, plan: Plan, body: dict[str, Any], intended: float) -> Met:
    loop = asyncio.get_running_loop()
    at, begun, state, problem = intended, 0.0, "error", ""
    try:
        async with session.post(f"{plan.url}/v1/ask", json={**body, "stream": True}) as reply:
            if reply.status != 200:
                problem = f"status {reply.status}"
                await reply.read()
            else:
                event = ""
                async for line in reply.content:
                    if line.startswith(b"event: "):
                        event = line[7:].strip().decode()
                    elif line.startswith(b"data: ") and event == "delta" and not begun:
                        begun = loop.time() - intended
                    elif line.startswith(b"data: ") and event == "done":
                        state = json.loads(line[6:])["answer"]["cache"]
                    elif line.startswith(b"data: ") and event == "error":
                        problem = json.loads(line[6:])["error"]
                if state == "error" and not problem:
                    problem = "the stream was cut"
    except (aiohttp.ClientError, TimeoutError) as error:
        problem = type(error).__name__
    return Met(at, "error" if problem else state, begun, loop.time() - intended, problem)


async def _person(
    number: int,
    plan: Plan,
    questions: Iterator[dict[str, Any]],
    opening: asyncio.Semaphore,
    opened: asyncio.Queue[int],
    begin: asyncio.Future[float],
) -> list[Met]:
    """Open a connection, wait until all are open, and ask."""
    loop = asyncio.get_running_loop()
    met: list[Met] = []
    connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=3_600)
    timeout = aiohttp.ClientTimeout(total=_GIVE_UP_SECONDS)
    headers = {"authorization": f"Bearer {plan.key}"}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        async with opening, session.get(f"{plan.url}/healthz") as reply:
            await reply.read()
        opened.put_nowait(number)
        intended = await begin + number * plan.interval / plan.connections
        while intended < begin.result() + plan.settle + plan.seconds:
            await asyncio.sleep(max(0.0, intended - loop.time()))
            met.append(await _ask(session, plan, next(questions), intended))
            intended = intended + plan.interval if plan.interval else loop.time()
    return met


async def _people(plan: Plan) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    opening, opened = asyncio.Semaphore(_OPENING_AT_ONCE), asyncio.Queue[int]()
    begin: asyncio.Future[float] = loop.create_future()
    questions = questions_of(plan)
    people = [
        asyncio.create_task(_person(number, plan, questions, opening, opened, begin))
        for number in range(plan.connections)
    ]
    everybody = asyncio.gather(*people)
    for _ in people:
        getting = asyncio.ensure_future(opened.get())
        await asyncio.wait([getting, everybody], return_when=asyncio.FIRST_COMPLETED)
        if not getting.done():
            await everybody  # a connection failed
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    started = loop.time() + 0.5
    begin.set_result(started)
    met = [one for some in await everybody for one in some]
    counted = [replace(one, at=one.at - started) for one in met if one.at - started >= plan.settle]
    return {"met": [asdict(one) for one in counted], "seconds": plan.seconds}


def main() -> None:
    """Read the plan, wait for the signal, and ask."""
    plan = Plan(**json.loads(sys.stdin.readline()))
    print(json.dumps(asyncio.run(_people(plan))), flush=True)


if __name__ == "__main__":
    main()
