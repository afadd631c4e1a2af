"""Measure a run in which nothing, one object, or one object in a hundred changed, by shard size.

A shard is indexed and run again unchanged: that run must fetch no object and write nothing. Then one object changes,
once named by an event and once found by listing; then one object in a hundred changes. Runs are Dagster runs in one
warm process, as in the bulk path; the source and the lake are folders. The first change of each shard warms caches and
is not counted.
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
STEPS = ("raw_documents", "chunks", "embeddings", "shards", "published")


def fill(source: Path, region: str, count: int) -> None:
    """Write this many short documents into one shard."""
    folder = source / region / DEPARTMENT
    folder.mkdir(parents=True)
    for number in range(count):
        write(source, region, number, "is free")


def write(source: Path, region: str, number: int, what: str) -> None:
    """Write one document of the shard."""
    path = source / region / DEPARTMENT / f"{number:06}.txt"
    path.write_text(f"Berth {number} of the harbour {what}.")


class Pipeline:
    """Runs single shards in this process; `stub` replaces the embedding model by a hash."""

    def __init__(self, source: Path, lake: Path, instance: Any, *, stub: bool = False) -> None:
        from benchmarks.stub import StubPipeline
        from rag_assets.defs.build import build_definitions
        from rag_assets.runs.names import INDEX_SHARD
        from rag_assets.settings import PipelineSettings

        values: dict[str, object] = {"source_uri": str(source), "lake_uri": str(lake)}
        if stub:  # random vectors have no near neighbours, so the index of a large shard misses them
            values["quality_min_recall"] = 0
        self.settings = PipelineSettings.model_validate(values)
        overrides = {"pipeline": StubPipeline(self.settings)} if stub else {}
        self._job = build_definitions(self.settings, overrides).resolve_job_def(INDEX_SHARD)
        self._instance = instance

    def run(self, region: str, keys: Sequence[str] = ()) -> Run:
        """Run the shard once; exceptions of the run propagate."""
        from rag_assets.runs.names import Names
        from rag_serving.lake.shards import Shard

        shard = Shard(region, DEPARTMENT)
        Names().add_shards(self._instance, [shard])
        started, cpu = time.perf_counter(), time.process_time()
        result = self._job.execute_in_process(
            partition_key=shard.key,
            instance=self._instance,
            run_config={
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                "ops": {"raw_documents": {"config": {"keys": list(keys)}}},
            },
        )
        return Run(result, time.perf_counter() - started, time.process_time() - cpu)


class Run:
    """Wall-clock seconds of a run, CPU seconds of this process, and the metadata of its assets."""

    def __init__(self, result: Any, seconds: float, cpu: float) -> None:
        self.seconds = seconds
        self.cpu = cpu
        self.said: dict[str, dict[str, Any]] = {
            event.asset_key.to_user_string(): {
                name: value.value for name, value in event.materialization.metadata.items()
            }
            for event in result.get_asset_materialization_events()
            if event.asset_key is not None
        }
        self.steps = {
            event.step_key: event.event_specific_data.duration_ms / 1000
            for event in result.all_events
            if event.event_type_value == "STEP_SUCCESS"
        }
        """Seconds of each step and check, measured by Dagster."""


def files_of(lake: Path, region: str) -> dict[str, int]:
    """Return every file of the shard's tables and records with its modification time."""
    from rag_serving.lake.shards import Shard

    name = Shard(region, DEPARTMENT).table_name
    return {
        str(path): path.stat().st_mtime_ns
        for path in lake.rglob("*")
        if path.is_file() and f"{name}." in str(path) and "leases" not in path.parts
    }


def unchanged(pipeline: Pipeline, lake: Path, region: str, size: int, runs: int) -> dict[str, object]:
    """Run a shard in which nothing changed."""
    before = files_of(lake, region)
    found = [pipeline.run(region) for _ in range(runs)]
    for run in found:
        raw = run.said["raw_documents"]
        if files_of(lake, region) != before or raw["bytes_fetched"] or raw["unchanged"] != size:
            raise SystemExit(f"the run of an unchanged shard fetched or wrote something: {raw}")
    seconds = statistics.median(run.seconds for run in found)
    return {
        "objects": size,
        "run s": round(seconds, 3),
        "CPU s": round(statistics.median(run.cpu for run in found), 3),
        "objects/s, whole run": round(size / seconds),
        "objects/s, listing and comparing": round(
            size / statistics.median(run.said["raw_documents"]["seconds"] for run in found)
        ),
        "fetched": 0,
        "written": 0,
    }


def changed(
    pipeline: Pipeline, source: Path, region: str, numbers: Sequence[Sequence[int]], *, named: bool, what: str
) -> list[Run]:
    """Change documents and run, once per batch; the first run is not returned."""
    found: list[Run] = []
    for run, batch in enumerate(numbers):
        for number in batch:
            write(source, region, number, f"{what} {run}")
        keys = [f"{region}/{DEPARTMENT}/{number:06}.txt" for number in batch] if named else []
        found.append(pipeline.run(region, keys))
        if found[-1].said["raw_documents"]["changed"] != len(batch):
            raise SystemExit(f"the run did not read every change: {found[-1].said['raw_documents']}")
    return found[1:] or found


def row(size: int, objects: int, runs: Sequence[Run]) -> dict[str, object]:
    """Return the medians of these runs."""
    return {
        "documents": size,
        "changed": objects,
        "run s": round(statistics.median(run.seconds for run in runs), 3),
        "CPU s": round(statistics.median(run.cpu for run in runs), 3),
        "steps s": round(statistics.median(sum(run.steps.values()) for run in runs), 3),
        **{step: round(statistics.median(run.steps[step] for run in runs), 3) for step in STEPS},
    }


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """Compare the largest shard with the smallest."""
    return [
        {
            "figure": name,
            f"{rows[0]['documents']} documents": rows[0][name],
            f"{rows[-1]['documents']} documents": rows[-1][name],
            "ratio": round(rows[-1][name] / rows[0][name], 2),
        }
        for name in ("run s", "CPU s", "steps s")
    ]


def main() -> None:
    """Run the benchmark and print its tables."""
    import dagster as dg

    from rag_assets.runs.sqlite_storage import warm_instance

    parser = arguments(__doc__ or "")
    parser.add_argument("--sizes", type=int, nargs="+", help="documents per shard (default 1000 10000 100000)")
    parser.add_argument("--runs", type=int, default=5, help="runs per median (default 5)")
    parser.add_argument("--stub-embedder", action="store_true", help="replace the model by a hash of the text")
    options = parser.parse_args()
    sizes = sorted(options.sizes or ([100, 500] if options.quick else [1000, 10_000, 100_000]))
    runs = 1 if options.quick else options.runs
    warnings.simplefilter("ignore")
    idle: list[dict[str, Any]] = []
    one: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    many: list[dict[str, Any]] = []
    first: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as scratch:
        source, lake, home = (Path(scratch, name) for name in ("source", "lake", "home"))
        home.mkdir()
        export(str(lake))
        with (
            dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as plain,
            warm_instance(plain) as instance,
        ):
            pipeline = Pipeline(source, lake, instance, stub=options.stub_embedder)
            for size in sizes:
                fill(source, f"region{size}", size)
                first[size] = pipeline.run(f"region{size}").seconds
            for size in sizes:
                region = f"region{size}"
                idle.append(unchanged(pipeline, lake, region, size, runs))
                singles = [[number] for number in range(runs + 1)]
                found = changed(pipeline, source, region, singles, named=True, what="is taken by ship")
                one.append(row(size, 1, found))
                found = changed(pipeline, source, region, singles, named=False, what="is left by ship")
                listed.append(row(size, 1, found))
                share = max(1, size // 100)
                hundredths = [range(at * share, (at + 1) * share) for at in range(min(runs, 3) + 1)]
                found = changed(pipeline, source, region, hundredths, named=False, what="is sold to owner")
                many.append(row(size, share, found))
    show("an unchanged shard, run again", idle, None)
    show("one changed object, found by listing", listed, None)
    show("one object in a hundred changed, found by listing", many, None)
    show("one changed object, named by an event", one, None)
    show(
        "one changed object: the largest shard compared with the smallest",
        ratios(one),
        options.json,
        unchanged=idle,
        named=one,
        listed=listed,
        hundredth=many,
        first_run_seconds=first,
        stub_embedder=options.stub_embedder,
    )


if __name__ == "__main__":
    main()
