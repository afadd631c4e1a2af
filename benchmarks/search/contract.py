"""Input and output of a peer's program. It runs in the peers' environment, which contains only numpy and the peer.

Input: a JSON object on the command line, which names `vectors.f32` (rows, dimensions), and a folder with
`questions.npy` and `shards.npy` (the shard of each question). Output: one line of JSON, and the rows found in
``found-<scope>.npy``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.search.measures import in_threads, median_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

K = 10


@dataclass(frozen=True, slots=True)
class Task:
    """Rows and questions; shard `n` contains the `shard_rows` rows from ``n * shard_rows`` on."""

    folder: Path
    vectors: Vectors
    questions: Vectors
    shards: npt.NDArray[np.int64]
    shard_rows: int
    at_once: list[int]
    runs: int

    def scopes(self) -> list[str]:
        """Return the scopes to search: one shard, and all of them if there are several."""
        return ["shard", "all"] if len(self.vectors) > self.shard_rows else ["shard"]

    def report(self, version: str, build_seconds: float, ask: Callable[[int, str], list[int]]) -> None:
        """Time `ask`, a function of a question and a scope, and print the figures."""
        figures: list[dict[str, Any]] = []
        for scope in self.scopes():
            found = np.full((len(self.questions), K), -1, np.int64)

            def once(question: int, scope: str = scope, found: Any = found) -> None:
                rows = ask(question, scope)
                found[question, : len(rows)] = rows

            numbers = range(len(self.questions))
            in_threads(once, numbers[: len(numbers) // 4], 1)
            for at_once in self.at_once:
                timings = [in_threads(once, numbers, at_once) for _ in range(self.runs)]
                figures.append({"scope": scope, "in_flight": at_once, "figures": asdict(median_of(timings))})
            np.save(self.folder / f"found-{scope}.npy", found)
        print(json.dumps({"version": version, "build_seconds": build_seconds, "figures": figures}), flush=True)


def read_task() -> Task:
    """Read the task from the command line."""
    given = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    shape = (given["rows"], given["dimensions"])
    return Task(
        folder,
        np.memmap(given["vectors"], np.float32, "r", shape=shape),
        np.load(folder / "questions.npy"),
        np.load(folder / "shards.npy"),
        given["shard_rows"],
        given["at_once"],
        given["runs"],
    )
