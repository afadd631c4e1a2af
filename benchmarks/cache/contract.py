"""Shared by all peers: the task from the command line, the timing, and the output, one line of JSON."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache.timing import cycled, measured, one_by_one

LEAST_COSINE = 0.9
"""Threshold of the peers: RedisVL's default, a distance of 0.1."""
ANSWER = "It is as the source says [1]."


@dataclass(frozen=True, slots=True)
class Task:
    """A Redis URL, the folder of the model, a folder for files, and the questions by kind."""

    redis: str
    model: Path
    folder: Path
    asks: int
    callers: int
    questions: dict[str, list[str]]


Ask = Callable[[str], Coroutine[Any, Any, bool]]
"""Returns whether the cache answers; if not, stores an answer to the question."""


def answer(prepare: Callable[[Task], Ask], version: str) -> None:
    """Run the task from the command line with the empty cache that `prepare` returns."""
    given = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    task = Task(**{**given, "model": Path(given["model"]), "folder": Path(given["folder"])})
    print(json.dumps({"version": version, **asyncio.run(_measured(task, prepare(task)))}), flush=True)


async def _measured(task: Task, ask: Ask) -> dict[str, Any]:
    await one_by_one(task.questions["stored"], ask)
    misses = itertools.cycle(task.questions["miss"])
    kinds: dict[str, Callable[[int], list[str]]] = {"exact": lambda count: cycled(task.questions["stored"], count)}
    for kind in ("sure", "guarded"):
        if task.questions[kind]:
            kinds[kind] = lambda count, kind=kind: cycled(task.questions[kind], count)
    kinds["miss"] = lambda count: [next(misses) for _ in range(count)]
    _, _, near = await one_by_one(task.questions["near"], ask)  # before other questions are stored
    figures = await measured(kinds, ask, task.asks, task.callers)
    return {"figures": {kind: one.as_json() for kind, one in figures.items()}, "near_served": near}
