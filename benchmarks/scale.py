"""Index many documents in many shards by the bulk path: sustained documents per second, extrapolated to 500,000.

Documents of about 500 tokens are generated in regions x departments shards; everything except generating them and
exporting the model is measured. With `--stub-embedder`, everything except the model is real, which shows whether other
costs grow with the number of documents or shards; the default is then 500,000 documents in 1,000 shards.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ingest import SAMPLE, export
from benchmarks.limits import raw_limit
from benchmarks.reporting import arguments, peak_memory, show

if TYPE_CHECKING:
    import dagster as dg

    from rag_assets.settings import PipelineSettings

CLAIM_DOCUMENTS = 500_000
_WORDS_A_DOCUMENT = 396
"""About 500 tokens of the packaged model."""


def generate(source: Path, documents: int, regions: int, departments: int) -> None:
    """Write distinct documents of words from the sample corpus, with headings, evenly over the shards."""
    text = " ".join(path.read_text() for path in sorted(SAMPLE.rglob("*.md")))
    words = sorted({word.lower() for word in re.findall(r"[A-Za-z]{3,}", text)})
    drawn = random.Random(20)
    shards = [
        source / f"region{region:02}" / f"department{department:02}"
        for region in range(regions)
        for department in range(departments)
    ]
    for shard in shards:
        shard.mkdir(parents=True)
    for number in range(documents):
        sentences = [" ".join(drawn.choices(words, k=11)).capitalize() + "." for _ in range(_WORDS_A_DOCUMENT // 11)]
        paragraphs = [" ".join(sentences[at : at + 10]) for at in range(0, len(sentences), 10)]
        body = "\n\n".join(f"## Part {part}\n\n{paragraph}" for part, paragraph in enumerate(paragraphs, start=1))
        (shards[number % len(shards)] / f"{number:07}.md").write_text(f"# Circular {number}\n\n{body}\n")


def stub_definitions(settings: PipelineSettings) -> dg.Definitions:
    """Return definitions with the stub embedder; the bulk path's processes import this function."""
    from benchmarks.stub import StubPipeline
    from rag_assets.defs.build import build_definitions

    return build_definitions(settings, {"pipeline": StubPipeline(settings)})


def index(source: str, lake: str, scratch: str, *, stub: bool, jobs: int, progress: int) -> dict[str, Any]:
    """Index every shard of the source; print the progress every `progress` shards."""
    warnings.simplefilter("ignore")
    import dagster as dg

    from rag_assets.defs.build import build_definitions
    from rag_assets.pipeline import Pipeline
    from rag_assets.runs.bulk import run_here
    from rag_assets.settings import PipelineSettings

    settings = PipelineSettings.model_validate({"source_uri": source, "lake_uri": lake})
    home = tempfile.mkdtemp(dir=scratch)
    seen: list[tuple[float, int]] = []
    with (
        dg.DagsterInstance.local_temp(home, overrides={"telemetry": {"enabled": False}}) as instance,
        peak_memory() as peaks,
    ):
        started = time.perf_counter()
        shards = sorted(Pipeline(settings).survey().listed)
        surveyed = time.perf_counter() - started

        def done(shard: object, reason: str | None) -> None:
            if reason is not None:
                raise SystemExit(f"{shard} failed: {reason}")
            seen.append((time.perf_counter() - started, peaks[-1] if peaks else 0))
            if len(seen) % progress == 0:
                print(f"{len(seen)} of {len(shards)} shards, {seen[-1][0]:.0f} s, {seen[-1][1] >> 20} MiB", flush=True)

        result = run_here(
            instance,
            settings,
            shards,
            tags={},
            at_once=jobs,
            build=stub_definitions if stub else build_definitions,
            done=done,
        )
        seconds = time.perf_counter() - started
    quarter = max(1, len(seen) // 4)
    return {
        "shards": len(result.succeeded),
        "documents": result.totals["published_documents"],
        "chunks": result.totals["published_chunks"],
        "tokens": result.totals["tokens"],
        "seconds": seconds,
        "survey_seconds": surveyed,
        "first_quarter_seconds": seen[quarter - 1][0] - surveyed,
        "last_quarter_seconds": seen[-1][0] - seen[-quarter - 1][0] if len(seen) > quarter else seen[-1][0],
        "memory_first_quarter": max(memory for _, memory in seen[:quarter]),
        "memory_peak": max(memory for _, memory in seen),
    }


def main() -> None:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, help="documents (default 20,000; 500,000 with --stub-embedder)")
    parser.add_argument("--regions", type=int, help="regions (default 10; 25 with --stub-embedder)")
    parser.add_argument("--departments", type=int, help="departments per region (default 10; 40 with --stub-embedder)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--stub-embedder", action="store_true", help="replace the model by a hash of the text")
    parser.add_argument("--folder", type=Path, help="working folder (default: a temporary one)")
    options = parser.parse_args()
    stub = options.stub_embedder
    documents = options.documents or (200 if options.quick else CLAIM_DOCUMENTS if stub else 20_000)
    regions = options.regions or (2 if options.quick else 25 if stub else 10)
    departments = options.departments or (2 if options.quick else 40 if stub else 10)
    with tempfile.TemporaryDirectory(prefix="rag-bench-", dir=options.folder) as scratch:
        source, lake = Path(scratch, "source"), Path(scratch, "lake")
        started = time.perf_counter()
        generate(source, documents, regions, departments)
        print(f"generated {documents} documents in {time.perf_counter() - started:.0f} s", flush=True)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(export, str(lake)).result()
        limit = None
        if not stub:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                limit = pool.submit(raw_limit, str(lake), seconds=2 if options.quick else 8).result()
        shards = regions * departments
        found = index(str(source), str(lake), scratch, stub=stub, jobs=options.jobs, progress=max(1, shards // 20))
        shutil.rmtree(lake)
    if (found["documents"], found["shards"]) != (documents, shards):
        raise SystemExit(f"some documents or shards were not published: {found}")
    rate = documents / found["seconds"]
    quarter = documents * max(1, shards // 4) / shards
    row: dict[str, Any] = {
        "documents": documents,
        "shards": shards,
        "tokens per document": round(found["tokens"] / documents),
        "embedder": "stub" if stub else "real",
        "seconds": round(found["seconds"]),
        "documents/s": round(rate, 1),
        "documents/s, first quarter": round(quarter / found["first_quarter_seconds"], 1),
        "documents/s, last quarter": round(quarter / found["last_quarter_seconds"], 1),
        "MiB, first quarter": found["memory_first_quarter"] >> 20,
        "peak MiB": found["memory_peak"] >> 20,
        "time for 500,000": f"{CLAIM_DOCUMENTS / rate / 3600:.1f} h",
    }
    if limit is not None:
        row["share of raw limit"] = f"{found['tokens'] / found['seconds'] / limit:.0%}"
    show("scale of the bulk path", [row], options.json, found=found, raw_limit=limit, jobs=options.jobs)


if __name__ == "__main__":
    main()
