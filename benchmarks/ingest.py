"""Index a folder through Dagster's bulk path: documents and tokens per second, compared with the raw limit.

The raw limit is the throughput of the embedding graph alone, on full batches of one length, measured on the same
machine in the same run. Each run starts with an empty lake in its own process; exporting the model is not measured.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.limits import raw_limit
from benchmarks.reporting import arguments, peak_memory, show

SAMPLE = Path(__file__).parents[1] / "examples" / "corpus"


def ingest(source: str, lake: str, scratch: str, jobs: int | None = None) -> dict[str, Any]:
    """Index every shard of the source into the lake once. Call it in a fresh process.

    With one job, as for small sources, the model is loaded before the clock starts; with several, the time includes
    starting the processes.
    """
    warnings.simplefilter("ignore")
    import dagster as dg

    from rag_assets.defs.build import build_definitions
    from rag_assets.models.registry import warm_embedder
    from rag_assets.pipeline import Pipeline
    from rag_assets.runs.bulk import processes_for, run_here
    from rag_assets.settings import PipelineSettings
    from rag_assets.sources.listing_digest import listed_objects

    settings = PipelineSettings.model_validate({"source_uri": source, "lake_uri": lake})
    home = Path(tempfile.mkdtemp(dir=scratch))
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        state = Pipeline(settings).survey()
        jobs = jobs or processes_for(len(state.listed), state.objects, settings.usable_cores)
        if jobs == 1:
            warm_embedder(lake, settings.embedding_model)
        with peak_memory() as memory:
            started, cpu = time.perf_counter(), cpu_seconds()
            state = Pipeline(settings).survey()
            shards = sorted(state.listed, key=lambda shard: -listed_objects(state.listed[shard]))
            result = run_here(
                instance,
                settings,
                shards,
                tags={},
                build=build_definitions,
                at_once=jobs,
                done=lambda _shard, _reason: None,
            )
            seconds = time.perf_counter() - started
    if result.failed:
        raise SystemExit(f"shards failed: {result.failed}")
    return {
        "jobs": jobs,
        "shards": len(result.succeeded),
        "documents": result.totals["added"],
        "quarantined": result.totals["newly_quarantined"],
        "chunks": result.totals["chunks_written"],
        "tokens": result.totals["tokens"],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu,
        "peak_bytes": max(memory, default=0),
    }


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its finished children."""
    return sum(os.times()[:4])


def main() -> None:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--source", type=Path, help="folder to index (default: the corpus of RAG_TEST_DATA, or the sample)"
    )
    parser.add_argument(
        "--jobs", type=int, help="concurrent indexing processes (default: as in rag-assets backfill --here)"
    )
    parser.add_argument("--runs", type=int, help="runs per median (default 3, 1 with --quick)")
    options = parser.parse_args()
    data = os.environ.get("RAG_TEST_DATA")
    source = options.source or (Path(data, "bucket") if data and not options.quick else SAMPLE)
    runs = options.runs or (1 if options.quick else 3)
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as scratch:
        model_lake = Path(scratch, "model")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(export, str(model_lake)).result()
        results: list[dict[str, Any]] = []
        limits: list[float] = []
        for run in range(runs):
            lake = Path(scratch, f"lake-{run}")
            shutil.copytree(model_lake, lake)
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                limits.append(pool.submit(raw_limit, str(lake), seconds=2 if options.quick else 8).result())
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                results.append(pool.submit(ingest, str(source.resolve()), str(lake), scratch, options.jobs).result())
            shutil.rmtree(lake)
    results.sort(key=lambda result: result["seconds"])
    median = results[len(results) // 2]
    limit = statistics.median(limits)
    rate = median["tokens"] / median["seconds"]
    row = {
        "source": source.name,
        "shards": median["shards"],
        "processes": median["jobs"],
        "documents": median["documents"],
        "chunks": median["chunks"],
        "seconds": round(median["seconds"], 1),
        "documents/s": round(median["documents"] / median["seconds"], 2),
        "tokens/s": round(rate),
        "raw limit tokens/s": round(limit),
        "share of raw limit": f"{rate / limit:.0%}",
        "CPU s": round(median["cpu_seconds"], 1),
        "peak MiB": round(median["peak_bytes"] / 2**20),
    }
    show(f"ingest, median of {runs} runs", [row], options.json, runs=results, raw_limits=limits)


def export(lake: str) -> None:
    """Export the packaged model into a lake and distil its static vectors; this is never part of a figure.

    Call it in its own process, so that torch's memory is not counted as the pipeline's.
    """
    warnings.simplefilter("ignore")
    from rag_assets.models.export import ensure_exported
    from rag_assets.models.static_vectors import ensure_distilled
    from rag_assets.options import PACKAGED_MODEL
    from rag_serving.lake.object_store import open_object_store

    objects = open_object_store(lake)
    ensure_distilled(objects, ensure_exported(objects, PACKAGED_MODEL).identity)


if __name__ == "__main__":
    main()
