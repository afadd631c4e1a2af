"""Compare Celery workers with one process on the same cores, and measure what a run of an unchanged shard costs them.

Starts Postgres, Redis, a Dagster daemon and the workers on loopback, all on the cores that the workers use too. The
workers are warm: they have indexed one shard before. With `--s3`, source and lake are on an S3 server, which shares the
cores as well. The documents are generated.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ingest import export
from benchmarks.reporting import arguments, show
from rag_assets.cli.init import write_instance
from tests.pipelines import seed_model
from tests.servers import DEFAULT_FOLDER, faulty_s3, s3_server
from tests.stress.burst import ROOT, daemon_environment
from tests.stress.cluster import Cluster, cluster, pages

FIRST = "warm-up"


def fill(folder: Path, shards: int, documents: int) -> None:
    """Write the documents of the measured shards, and those of one shard for warming up."""
    texts = pages(shards, documents)
    warm = {f"{FIRST}/team-{number}": next(iter(texts.values())) for number in range(8)}
    for shard, named in {**texts, **{key: dict(list(value.items())[:1]) for key, value in warm.items()}}.items():
        (folder / shard).mkdir(parents=True)
        for name, text in named.items():
            (folder / shard / name).write_text(text)


def one_process(environment: Mapping[str, str], home: Path) -> float:
    """Return the seconds in which one process indexes the measured shards."""
    write_instance(home)
    done = subprocess.run(
        [sys.executable, "-m", "rag_assets.cli", "backfill", "--here", "--jobs", "1", "--region", "harbour"],
        env={**environment, "DAGSTER_HOME": str(home)},
        check=True,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    found = re.search(r"indexed in ([\d.]+) s", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


@dataclass(frozen=True)
class Backfill:
    """What a backfill took."""

    seconds: float
    """From its first run's start to its last run's end."""
    cpu: float
    """CPU seconds of the workers."""
    elsewhere: float
    """CPU seconds of Postgres, Redis, the daemon and the code location."""
    runs: int


def backfill(running: Cluster, *arguments: str) -> Backfill:
    """Run a backfill and wait for its end."""
    cpu, elsewhere = cpu_of(running)
    known = {record.dagster_run.run_id for record in running.runs()}
    done = running.command("backfill", *arguments, "--wait")
    output, errors = done.communicate(timeout=3600)
    assert done.returncode == 0, output + errors
    records = [record for record in running.runs() if record.dagster_run.run_id not in known]
    indexed = [record for record in records if record.dagster_run.job_name == "index_shard"]
    seconds = max(record.end_time or 0.0 for record in indexed) - min(record.start_time or 0.0 for record in indexed)
    after = cpu_of(running)
    return Backfill(seconds, after[0] - cpu, after[1] - elsewhere, len(indexed))


def cpu_of(running: Cluster) -> tuple[float, float]:
    """Return the CPU seconds of the workers, and of all other processes of the cluster, so far."""
    workers = {process.pid for worker in running.workers for process in [worker, *worker.children(recursive=True)]}
    totals = [0.0, 0.0]
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            totals[process.pid not in workers] += times.user + times.system
    return totals[0], totals[1]


def requests_of(proxy: Any) -> int:
    """Return the requests to S3 so far, including those of the daemon and the heartbeats."""
    return 0 if proxy is None else proxy.requests


@contextlib.contextmanager
def stored(folder: Path, s3: bool) -> Generator[tuple[str, str, str, dict[str, str], Any]]:
    """Yield the URIs of the source and of two lakes, the AWS variables, and a counter of requests, if on S3."""
    if not s3:
        yield str(folder / "source"), str(folder / "lake-1"), str(folder / "lake-2"), {}, None
        return
    import boto3

    with s3_server(DEFAULT_FOLDER) as server, faulty_s3(server.endpoint_url) as proxy:
        aws = {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_REGION": server.region,
            "AWS_DEFAULT_REGION": server.region,
            "AWS_ENDPOINT_URL": server.endpoint_url,
        }
        os.environ.update(aws)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bench")
        for path in (folder / "source").rglob("*.txt"):
            client.upload_file(str(path), "bench", f"source/{path.relative_to(folder / 'source')}")
        counted = {**aws, "AWS_ENDPOINT_URL": proxy.endpoint_url}
        yield "s3://bench/source", "s3://bench/lake-1", "s3://bench/lake-2", counted, proxy


def measure(
    folder: Path, model_lake: Path, *, shards: int, documents: int, workers: int, s3: bool
) -> dict[str, object]:
    """Index the documents by one process and by workers, each into a lake of its own."""
    fill(folder / "source", shards, documents)
    with stored(folder, s3) as (source, first, second, aws, proxy):
        for lake in (first, second):
            seed_model(str(model_lake), lake)
        uris = {**aws, "RAG_SOURCE_URI": source, "PYTHONPATH": str(ROOT)}
        variables = daemon_environment(folder, folder, folder) | uris | {"RAG_LAKE_URI": first}
        alone = one_process(variables, folder / "one")
        with cluster(DEFAULT_FOLDER, folder, source, second, aws, slots=workers) as running:
            for _ in range(workers):
                running.start_worker()
            backfill(running, "--region", FIRST)  # both the code and the model stay loaded
            before = requests_of(proxy)
            indexed = backfill(running, "--region", "harbour")
            between = requests_of(proxy)
            unchanged = backfill(running, "--region", "harbour", "--all")
            after = requests_of(proxy)
    count = shards * documents
    return {
        "stored": "S3" if s3 else "folder",
        "documents": count,
        "shards": shards,
        "one process, s": alone,
        f"{workers} workers, s": indexed.seconds,
        "workers / process": alone / indexed.seconds,
        "CPU s a run": indexed.cpu / indexed.runs,
        "CPU s elsewhere": indexed.elsewhere / indexed.runs,
        "unchanged: CPU s a run": unchanged.cpu / unchanged.runs,
        "unchanged: s a run": unchanged.seconds / unchanged.runs,
        "S3 requests a shard": (between - before) / shards,
        "unchanged: S3 requests": (after - between) / shards,
    }


def main() -> None:
    """Measure and print the figures."""
    warnings.simplefilter("ignore")
    parser = arguments(__doc__ or "")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--s3", action="store_true", help="source and lake on an S3 server")
    parser.add_argument("--shards", type=int)
    parser.add_argument("--documents", type=int, help="documents a shard, of about 1,500 tokens")
    options = parser.parse_args()
    shards = options.shards or (4 if options.quick else 24)
    documents = options.documents or (2 if options.quick else 40)
    with tempfile.TemporaryDirectory(prefix="rag-bench-", ignore_cleanup_errors=True) as scratch:
        model_lake = Path(scratch, "model")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(export, str(model_lake)).result()
        started = time.monotonic()
        row = measure(
            Path(scratch), model_lake, shards=shards, documents=documents, workers=options.workers, s3=options.s3
        )
        print(f"measured in {time.monotonic() - started:.0f} s", file=sys.stderr)
    show("Celery workers and one process on the same cores", [row], options.json)


if __name__ == "__main__":
    main()
