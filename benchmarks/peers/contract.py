"""Shared by all peers: the task, the timing of the ingestion, and the output, one line of JSON.

A peer's `prepare` imports its libraries, loads the model, and returns the ingestion. The ingestion is timed; it reads
the files and writes the vectors to a LanceDB table in `Task.target`, in which chunks and tokens are counted afterwards.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

MAX_TOKENS = 256
"""Maximum tokens of a chunk including special tokens: the model's window."""
BATCH_ROWS = 32
"""Texts per batch for peers with a smaller default: the default of sentence-transformers."""
WARM_UP = "The quarterly report is due on the third working day of the month."


@dataclass(frozen=True, slots=True)
class Task:
    """A folder of UTF-8 text files, an empty folder for the database, and the folder of the model."""

    source: Path
    target: Path
    model: Path

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the key and path of each file."""
        for path in sorted(self.source.rglob("*")):
            if path.is_file():
                yield path.relative_to(self.source).as_posix(), path


def answer(prepare: Callable[[Task], Callable[[], int]], *, distribution: str) -> None:
    """Run the task from the command line; the ingestion that `prepare` returns must return its number of documents."""
    task = Task(*(Path(argument) for argument in sys.argv[1:4]))
    ingest = prepare(task)
    started, cpu = time.perf_counter(), time.process_time()
    documents = ingest()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    chunks, tokens, cut = _stored(task)
    figures = {
        "version": version(distribution),
        "documents": documents,
        "chunks": chunks,
        "tokens": tokens,
        "cut_chunks": cut,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak,
    }
    print(json.dumps(figures), flush=True)


def _stored(task: Task) -> tuple[int, int, int]:
    """Return the rows of the written table, the tokens that the model read, and the rows that were truncated."""
    import lancedb
    from tokenizers import Tokenizer

    database = lancedb.connect(task.target)
    (name,) = database.table_names()
    rows = database.open_table(name).to_arrow()
    texts = rows.column("content" if "content" in rows.column_names else "text").to_pylist()
    tokenizer = Tokenizer.from_file(str(task.model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    return (
        len(texts),
        sum(min(length, MAX_TOKENS) for length in lengths),
        sum(length > MAX_TOKENS for length in lengths),
    )
