"""Measure the service's latency over thousands of open connections: ``python -m benchmarks.load``.

The pipeline indexes the sample corpus. `rag-serving serve` with two workers and an API key, a real Redis, a language
model that streams for half a second, and the load generator share this machine's cores. The load is an open loop: every
connection asks at its own times, whether or not others were answered. 2,000 connections first ask every 30 seconds
each, then more or less often, until the highest rate is found at which the p95 of hits stays within its limit and no
request fails.

With ``--hot``, 300 and then 1,000 connections ask the same answered question instead, each again as soon as it has its
answer. At least 99% of the answers must come from the cache, and Redis must never be bypassed.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from benchmarks import lakes
from benchmarks.cache.__main__ import QUICK_SHARDS, SAMPLE
from benchmarks.cache.ours import read_questions
from benchmarks.cache.timing import percentile
from benchmarks.load.people import Plan
from benchmarks.reporting import arguments, show
from rag_serving.http.api_keys import create_key

HITS = ("exact", "semantic", "revalidated")
P95_MS = 200.0
INTERVAL = 30.0
REPEATS = 0.5
HOT_CONNECTIONS = (300, 1_000)
HOT_SHARE = 0.99
HOT_TITLE = f"One question, asked again at once: at least {HOT_SHARE:.0%} from the cache, Redis never bypassed"
_STEP = 1.5
_READY_SECONDS = 120


@contextmanager
def running(command: Sequence[str], environment: dict[str, str], log: Path, ready: str) -> Generator[psutil.Process]:
    """Run a process for the duration of the block, which starts once the URL `ready` answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(ready, timeout=5):  # noqa: S310 - loopback
                    break
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[2]} did not start: {log.read_text()[-1500:]}")
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(90)


def ask_once(url: str, key: str, body: dict[str, Any]) -> None:
    """Ask a question and wait for the answer; raises if the request fails."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/ask", json.dumps(body).encode(), headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        reply.read()


def free_port() -> int:
    """Return a port that is currently free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def tree(process: psutil.Process) -> list[psutil.Process]:
    """Return the process and its descendants."""
    return [process, *process.children(recursive=True)]


def own_memory(process: psutil.Process) -> float:
    """Return the proportional set size of the process and its descendants, in MiB."""
    return sum(one.memory_full_info().pss for one in tree(process)) / 2**20


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of the process and its descendants."""
    return sum(sum(one.cpu_times()[:2]) for one in tree(process))


def people(plan: Plan, watched: dict[str, psutil.Process]) -> dict[str, Any]:
    """Run the load generator; return its requests and the CPU and memory of the watched processes."""
    before = own_memory(watched["service"])
    asking = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load.people"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert asking.stdin is not None
    assert asking.stdout is not None
    try:
        asking.stdin.write(json.dumps(asdict(plan)) + "\n")
        asking.stdin.flush()
        if asking.stdout.readline() != "open\n":
            raise RuntimeError("the connections could not be opened")
        time.sleep(1)
        opened = own_memory(watched["service"])
        everyone = {**watched, "people": psutil.Process(asking.pid)}
        used = {name: cpu_seconds(one) for name, one in everyone.items()}
        asking.stdin.write("\n")
        asking.stdin.flush()
        started = time.monotonic()
        found = None
        while found is None:  # the load generator exits after its report
            line = asking.stdout.readline()
            if not line:
                raise RuntimeError("the load generator exited without a report")
            found = json.loads(line)
            used = {name: cpu_seconds(one) - used[name] for name, one in everyone.items() if one.is_running()}
        lasted = time.monotonic() - started
    finally:
        asking.kill()
        asking.wait()
    after = own_memory(watched["service"])
    return {
        **found,
        "cores": {name: seconds / lasted for name, seconds in used.items()},
        "MiB": {"before": before, "connected": opened, "after": after},
    }


def judged(plan: Plan, found: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table, including whether the rate was sustained."""
    met = found["met"]
    hits = [one["whole"] * 1000 for one in met if one["state"] in HITS]
    misses = [one for one in met if one["state"] not in (*HITS, "error")]
    problems = Counter(one["problem"] for one in met if one["state"] == "error")
    p95 = percentile(hits, 0.95) if hits else float("inf")
    first = [one["begun"] * 1000 for one in misses]
    return {
        "questions/s": round(plan.connections / plan.interval, 1),
        "asked": len(met),
        "hits": len(hits),
        "hit p50 ms": round(percentile(hits, 0.5), 1) if hits else "",
        "hit p95 ms": round(p95, 1),
        "hit p99 ms": round(percentile(hits, 0.99), 1) if hits else "",
        "miss, first word p50 ms": round(percentile(first, 0.5)) if first else "",
        "miss, first word p95 ms": round(percentile(first, 0.95)) if first else "",
        "miss, complete p95 ms": round(percentile([one["whole"] * 1000 for one in misses], 0.95)) if misses else "",
        "errors": ", ".join(f"{count} {name}" for name, count in problems.items()) or "0",
        "cores: service / load generator / model / Redis": " / ".join(
            f"{found['cores'].get(name, 0):.2f}" for name in ("service", "people", "model", "redis")
        ),
        "sustained": "yes" if p95 < P95_MS and not problems else "no",
    }


def main() -> None:
    """Run the benchmark and print its table."""
    from tests.servers import DEFAULT_FOLDER, ServersMissingError, redis_server, require_installed

    parser = arguments(__doc__ or "")
    parser.add_argument("--connections", type=int, default=2_000, help="open connections (default %(default)s)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each step (default 60)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the service (default %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the lake in FOLDER and reuse it")
    parser.add_argument(
        "--only-first", action="store_true", help="measure only the first rate; do not search for the highest one"
    )
    parser.add_argument("--hot", action="store_true", help="measure hits on a single question at full load instead")
    options = parser.parse_args()
    connections = 100 if options.quick else options.connections
    seconds = options.seconds or (10.0 if options.quick else 60.0)
    try:
        binaries = require_installed(Path(os.environ.get("RAG_TEST_SERVERS") or DEFAULT_FOLDER))
    except ServersMissingError as error:
        parser.error(str(error))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        scratch = Path(folder)
        lake = str(scratch / "lake")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            keys = QUICK_SHARDS if options.quick else ()
            chunker = lakes.STRUCTURE if options.quick else "semantic"
            pool.submit(lakes.built, str(SAMPLE), lake, keys, chunker, options.keep).result()
        with redis_server(binaries) as redis, serving(lake, redis, scratch, options.workers) as service:
            if options.hot:
                show(HOT_TITLE, hot_rows(service, options.seconds or (5.0 if options.quick else 20.0)), options.json)
                return
            rows, runs = measured(service, connections, seconds, options.only_first)
    holding = [row for row in rows if row["sustained"] == "yes"]
    best = max((row["questions/s"] for row in holding), default=0)
    memory = runs[0]["MiB"]
    each = (memory["connected"] - memory["before"]) * 1024 / connections
    title = (
        f"{connections} open connections, half of the questions asked before; p95 of hits below {P95_MS:g} ms without "
        f"errors up to {best} questions/s; {each:.1f} KiB of the service's memory per connection"
    )
    show(title, rows, options.json, memory=[run["MiB"] for run in runs], cores=[run["cores"] for run in runs])


@dataclass(frozen=True, slots=True)
class Service:
    """A running service with its stand-in model and Redis."""

    url: str
    key: str
    log: Path
    common: list[dict[str, Any]]
    """Request bodies of questions, the most common first."""
    watched: dict[str, psutil.Process]


@contextmanager
def serving(lake: str, redis: Any, scratch: Path, workers: int) -> Generator[Service]:
    """Run the service on the lake and the Redis for the duration of the block."""
    shards = {path.name for path in Path(lake, "catalog").glob("*.json")}
    samples = read_questions({name.removesuffix(".json").replace(".", "/") for name in shards})
    key_file = scratch / "keys.json"
    _, key = create_key(key_file, "benchmark", requests_per_minute=1_000_000)
    model_port, port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "RAG_LAKE_URI": lake,
        "RAG_REDIS_URL": redis.url,
        "RAG_LLM_MODEL": "openai/stand-in",
        "OPENAI_API_KEY": "not-a-key",
        "OPENAI_API_BASE": f"http://127.0.0.1:{model_port}/v1",
        "NO_PROXY": "127.0.0.1",
        "RAG_HTTP_KEYS": str(key_file),
    }
    model_command = [
        *(sys.executable, "-m", "uvicorn", "benchmarks.load.model:app", "--factory", "--port", str(model_port)),
        *("--no-access-log", "--log-level", "warning"),
    ]
    command = [
        *(sys.executable, "-m", "rag_serving.cli", "serve"),
        *("--port", str(port), "--workers", str(workers)),
    ]
    log = scratch / "service.log"
    with (
        running(model_command, {}, scratch / "model.log", f"http://127.0.0.1:{model_port}/") as model,
        running(command, environment, log, f"{url}/readyz") as service,
    ):
        watched = {"service": service, "model": model, "redis": psutil.Process(redis.process.pid)}
        yield Service(url, key, log, [{"question": one.text, **one.scope} for one in samples], watched)


def measured(
    service: Service, connections: int, seconds: float, only_first: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of all steps and their raw figures."""
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    url, key, common = service.url, service.key, service.common

    def step(interval: float, count: float, first: int) -> bool:
        plan = Plan(url, key, connections, interval, count, 5.0, common, REPEATS, first)
        found = people(plan, service.watched)
        runs.append(found)
        rows.append(judged(plan, found))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        return rows[-1]["sustained"] == "yes"

    for body in common:  # store every common question
        ask_once(url, key, body)
    warm = min(connections, 200)
    # Warm both workers: kernels, tables and connections.
    people(Plan(url, key, warm, warm / 20, 20.0, 0.0, common, 0.8, 10_000_000), service.watched)
    interval, held, failed = INTERVAL, None, None
    for number in range(1, 10):
        if step(interval, seconds, number * 1_000_000):
            held = interval
        else:
            failed = interval
        if only_first or (held and failed and held / failed < 1.1):
            break
        if held is None or failed is None:
            interval = interval * _STEP if held is None else interval / _STEP
        else:
            interval = (held + failed) / 2
    return rows, runs


def hot_rows(service: Service, seconds: float) -> list[dict[str, Any]]:
    """Ask one answered question over many connections; return a row for each number of connections."""
    body = service.common[0]
    ask_once(service.url, service.key, body)
    rows: list[dict[str, Any]] = []
    for connections in HOT_CONNECTIONS:
        logged = service.log.stat().st_size
        found = people(Plan(service.url, service.key, connections, 0.0, seconds, 2.0, [body], 1.0, 0), service.watched)
        with service.log.open("rb") as log:
            log.seek(logged)
            warnings = sum(b" WARNING " in line and b"Redis" in line for line in log)
        rows.append(hot_row(connections, found, warnings))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def hot_row(connections: int, found: dict[str, Any], warnings: int) -> dict[str, Any]:
    """Return a row of the table of ``--hot``."""
    met = found["met"]
    states = Counter(one["state"] for one in met)
    share = sum(states[state] for state in HITS) / len(met)
    whole = [one["whole"] * 1000 for one in met]
    return {
        "connections": connections,
        "answers/s": round(len(met) / found["seconds"], 1),
        "from the cache": f"{share:.2%}",
        "p50 ms": round(percentile(whole, 0.5)),
        "p95 ms": round(percentile(whole, 0.95)),
        "other answers": ", ".join(f"{count} {state}" for state, count in states.items() if state not in HITS) or "0",
        "warnings about Redis": warnings,
        "cores: service / load generator / Redis": " / ".join(
            f"{found['cores'].get(name, 0):.2f}" for name in ("service", "people", "redis")
        ),
        "held": "yes" if share >= HOT_SHARE and not warnings else "no",
    }


if __name__ == "__main__":
    main()
