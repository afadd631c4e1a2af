"""Measure the peak memory of indexing one shard of small documents, by the number of documents.

Each size runs in its own process, from listing to publishing, on an empty lake. The figure is the peak resident set of
that process; parser processes, which have their own limits, are excluded. Vectors come from a hash of the text unless
--model is given, because the model takes the same memory for every size and hides the growth.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.incremental import Pipeline, fill
from benchmarks.ingest import export
from benchmarks.reporting import arguments, show

# ru_maxrss is in KiB on Linux and in bytes on macOS.
_UNIT = 1 if sys.platform == "darwin" else 1024


def index(source: str, lake: str, scratch: str, *, stub: bool) -> dict[str, Any]:
    """Index the only shard of the source. Call it in a fresh process."""
    warnings.simplefilter("ignore")
    import dagster as dg

    home = Path(tempfile.mkdtemp(dir=scratch))
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        pipeline = Pipeline(Path(source), Path(lake), instance, stub=stub)
        imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
        run = pipeline.run(Path(source).name)
    return {
        "documents": run.said["published"]["documents"],
        "seconds": run.seconds,
        "cpu_seconds": run.cpu,
        "imported_bytes": imported,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT,
    }


def main() -> None:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--sizes", type=int, nargs="+", help="documents per shard (default 10000 100000)")
    embedder = parser.add_mutually_exclusive_group()
    embedder.add_argument("--stub-embedder", action="store_true", default=True, help="the default")
    embedder.add_argument("--model", dest="stub_embedder", action="store_false", help="embed with the real model")
    options = parser.parse_args()
    sizes = sorted(options.sizes or ([100, 1000] if options.quick else [10_000, 100_000]))
    context = get_context("spawn")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as scratch:
        model = Path(scratch, "model")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(export, str(model)).result()
        for size in sizes:
            source, lake = Path(scratch, f"source{size}"), Path(scratch, f"lake{size}")
            shutil.copytree(model, lake)
            fill(source, source.name, size)
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                job = pool.submit(index, str(source), str(lake), scratch, stub=options.stub_embedder)
                results.append(job.result())
            shutil.rmtree(lake)
            shutil.rmtree(source)
    rows = [
        {
            "documents": result["documents"],
            "MiB after imports": round(result["imported_bytes"] / 2**20),
            "peak MiB": round(result["peak_bytes"] / 2**20),
            f"× {results[0]['documents']} documents": f"{result['peak_bytes'] / results[0]['peak_bytes']:.2f}",
            "seconds": round(result["seconds"], 1),
            "CPU s": round(result["cpu_seconds"], 1),
        }
        for result in results
    ]
    show("peak memory of indexing one shard", rows, options.json, runs=results, stub_embedder=options.stub_embedder)


if __name__ == "__main__":
    main()
