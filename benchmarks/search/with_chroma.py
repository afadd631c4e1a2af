"""chroma in this process: one collection, filtered by region and department as in its documentation."""

from __future__ import annotations

import time
from typing import Any

import chromadb

from benchmarks.search.contract import K, read_task

REGIONS = 10
_AT_ONCE = 5_000


def main() -> None:
    """Build the collection, time the questions and print the figures."""
    task = read_task()
    client = chromadb.PersistentClient(
        str(task.folder / "chroma"), settings=chromadb.Settings(anonymized_telemetry=False)
    )
    collection = client.create_collection("passages", metadata={"hnsw:space": "cosine"}, embedding_function=None)
    started = time.perf_counter()
    for at in range(0, len(task.vectors), _AT_ONCE):
        rows = range(at, min(at + _AT_ONCE, len(task.vectors)))
        facts: list[Any] = [place(row // task.shard_rows) for row in rows]
        collection.add([str(row) for row in rows], embeddings=task.vectors[at : at + len(rows)], metadatas=facts)
    seconds = time.perf_counter() - started

    def ask(question: int, scope: str) -> list[int]:
        asked = place(int(task.shards[question]))
        where: Any = {"$and": [{"region": asked["region"]}, {"department": asked["department"]}]}
        found = collection.query(
            query_embeddings=task.questions[question : question + 1],
            n_results=K,
            where=where if scope == "shard" else None,
            include=["distances"],
        )
        return [int(name) for name in found["ids"][0]]

    task.report(chromadb.__version__, seconds, ask)


def place(shard: int) -> dict[str, str]:
    """Return the region and department of a shard."""
    return {"region": f"region{shard % REGIONS}", "department": f"department{shard // REGIONS:03}"}


if __name__ == "__main__":
    main()
