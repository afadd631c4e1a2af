"""What a run costs when nothing or one thing changed: objects checked a second, and one named object by shard size.

First a shard is indexed and run again unchanged: the second run must fetch no object and write nothing. Then, in shards
of growing size, one object changes and a run is asked for as a feed asks for it, by the object's name; beside it the
same change found by a listing. Runs are Dagster's, in one warm process; the source and the lake are folders.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ingest import export
from benchmarks.reporting import arguments, show

DEPARTMENT = "documents"


def fill(source: Path, region: str, count: int) -> None:
    """That many short documents in one shard."""
    folder = source / region / DEPARTMENT
    folder.mkdir(parents=True)
    for number in range(count):
        write(source, region, number, "is free")


def write(source: Path, region: str, number: int, what: str) -> None:
    """One document of the shard."""
    path = source / region / DEPARTMENT / f"{number:06}.txt"
    path.write_text(f"Berth {number} of the harbour {what}.")


class Pipeline:
    """Runs of single shards in this process."""

    def __init__(self, source: Path, lake: Path, instance: Any) -> None:
        from rag_assets.defs.build import build_definitions
        from rag_assets.defs.jobs import INDEX_SHARD
        from rag_assets.settings import PipelineSettings

        self.settings = PipelineSettings.model_validate({"source_uri": str(source), "lake_uri": str(lake)})
        self._job = build_definitions(self.settings).resolve_job_def(INDEX_SHARD)
        self._instance = instance

    def run(self, region: str, keys: Sequence[str] = ()) -> tuple[float, dict[str, dict[str, Any]]]:
        """Seconds of one run, and what its assets say."""
        from rag_assets.defs.partitions import add_shards
        from rag_serving.shards import Shard

        shard = Shard(region, DEPARTMENT)
        add_shards(self._instance, [shard])
        started = time.perf_counter()
        result = self._job.execute_in_process(
            partition_key=shard.key,
            instance=self._instance,
            run_config={
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                "ops": {"raw_documents": {"config": {"keys": list(keys)}}},
            },
        )
        seconds = time.perf_counter() - started
        said = {
            event.asset_key.to_user_string(): {
                name: value.value for name, value in event.materialization.metadata.items()
            }
            for event in result.get_asset_materialization_events()
            if event.asset_key is not None
        }
        return seconds, said


def files_of(lake: Path, region: str) -> dict[str, int]:
    """Every file of the shard's tables, catalog and note, with its time of writing."""
    from rag_serving.shards import Shard

    name = Shard(region, DEPARTMENT).table_name
    return {
        str(path): path.stat().st_mtime_ns
        for path in lake.rglob("*")
        if path.is_file() and f"{name}." in str(path) and "leases" not in path.parts
    }


def measure(pipeline: Pipeline, source: Path, lake: Path, sizes: Sequence[int], runs: int) -> tuple[Any, Any]:
    """Both tables."""
    changes: list[dict[str, object]] = []
    unchanged: list[dict[str, object]] = []
    for size in sizes:
        region = f"region{size}"
        fill(source, region, size)
        first, _ = pipeline.run(region)
        before = files_of(lake, region)
        idle: list[float] = []
        steps: list[float] = []
        for _ in range(runs):
            seconds, said = pipeline.run(region)
            raw = said["raw_documents"]
            if files_of(lake, region) != before or raw["bytes_fetched"] or raw["unchanged"] != size:
                raise SystemExit(f"an unchanged shard was fetched or written: {raw}")
            idle.append(seconds)
            steps.append(raw["seconds"])
        unchanged.append(
            {
                "objects": size,
                "first run s": round(first, 1),
                "unchanged run s": round(statistics.median(idle), 3),
                "objects/s, run": round(size / statistics.median(idle)),
                "objects/s, listing and comparing": round(size / statistics.median(steps)),
                "fetched": 0,
                "written": 0,
            }
        )
        named: list[float] = []
        parts: dict[str, list[float]] = {}
        listed: list[float] = []
        for run in range(runs):
            write(source, region, run, f"is taken by ship {run}")
            seconds, said = pipeline.run(region, [f"{region}/{DEPARTMENT}/{run:06}.txt"])
            if said["raw_documents"]["changed"] != 1:
                raise SystemExit(f"the named change was not read: {said['raw_documents']}")
            named.append(seconds)
            for asset in ("raw_documents", "chunks", "embeddings", "shards"):
                parts.setdefault(asset, []).append(said[asset]["seconds"])
            write(source, region, run, f"is left by ship {run}")
            listed.append(pipeline.run(region)[0])
        changes.append(
            {
                "objects": size,
                "named s": round(statistics.median(named), 3),
                **{asset: round(statistics.median(seconds), 3) for asset, seconds in parts.items()},
                "found by listing s": round(statistics.median(listed), 3),
            }
        )
    return unchanged, changes


def main() -> None:
    """Measure and print."""
    import dagster as dg

    parser = arguments(__doc__ or "")
    parser.add_argument("--sizes", type=int, nargs="+", help="documents of the shards (default 1000 10000 50000)")
    parser.add_argument("--runs", type=int, default=5, help="runs to take each median of (default 5)")
    options = parser.parse_args()
    sizes = options.sizes or ([100, 500] if options.quick else [1000, 10_000, 50_000])
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as scratch:
        source, lake, home = (Path(scratch, name) for name in ("source", "lake", "home"))
        home.mkdir()
        export(str(lake))
        with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
            unchanged, changes = measure(
                Pipeline(source, lake, instance), source, lake, sizes, 1 if options.quick else options.runs
            )
    show("an unchanged shard, run again", unchanged, None)
    show("one changed object, by the size of its shard", changes, options.json, unchanged=unchanged)


if __name__ == "__main__":
    main()
