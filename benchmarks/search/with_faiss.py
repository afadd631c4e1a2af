"""faiss in memory: an inverted file of exact vectors; a selector of ids restricts a search to a shard."""

from __future__ import annotations

import time

import faiss

from benchmarks.search.contract import K, read_task

PROBES = 64


def main() -> None:
    """Build the index, time the questions and print the figures."""
    task = read_task()
    faiss.omp_set_num_threads(1)
    rows, dimensions = task.vectors.shape
    started = time.perf_counter()
    lists = max(16, int(rows**0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimensions), dimensions, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64
    index.train(task.vectors[:: max(1, rows // (64 * lists))])
    for at in range(0, rows, 100_000):
        index.add(task.vectors[at : at + 100_000])
    seconds = time.perf_counter() - started

    def ask(question: int, scope: str) -> list[int]:
        parameters = faiss.SearchParametersIVF(nprobe=min(PROBES, lists))
        if scope == "shard":
            first = int(task.shards[question]) * task.shard_rows
            parameters.sel = faiss.IDSelectorRange(first, first + task.shard_rows)
        _, found = index.search(task.questions[question : question + 1], K, params=parameters)
        return [int(row) for row in found[0] if row >= 0]

    task.report(faiss.__version__, seconds, ask)


if __name__ == "__main__":
    main()
