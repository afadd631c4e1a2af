"""Runs killed at random instants and repeated: does the published table always equal that of a clean run?

A shard's source changes at random. A process that indexes it is killed, together with its parsers, at an instant drawn
uniformly from the length of a whole run. A normal run follows, and its published table is compared with that of a clean
run of the same source into an empty lake: every column equal, vectors within 1e-3, and equal digests. One kill in four
is followed by another one during the recovery. The test expires the dead writer's lease itself instead of waiting.
"""

from __future__ import annotations

import contextlib
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from benchmarks.ingest import SAMPLE, export
from benchmarks.reporting import arguments, show
from rag_assets.storage.lake import Lake
from rag_assets.storage.lease import LEASES, LeaseRecord
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, QUARANTINE, RAW_DOCUMENTS
from rag_assets.storage.shard_writer import read_progress
from rag_serving.lake.catalog_entry import Publication, catalog_key, read_catalog_entry
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS

if TYPE_CHECKING:
    from benchmarks.indexing import Indexer

SHARD = Shard("Oslo", "people")
DOCUMENTS = 40
KILLS_OF_A_LAKE = 6
"""After this many kills, the next one hits a first run into an empty lake."""
_WORDS = (
    "badge bridge canteen contract dock engine factory harbour invoice keel leave mast office parental pump quay "
    "receipt rudder safety ship shift signal survey travel valve vessel warranty welding winch yard"
)
_STAGES = (QUARANTINE, RAW_DOCUMENTS, CHUNKS, EMBEDDINGS, SHARDS)
"""The tables, in the order in which a run writes to them."""
_NOTHING, _CATALOG, _ENDED = "nothing yet", "catalog", "(had ended)"


class ChangingSource:
    """A shard's folder of documents in several formats, some long, some unreadable, that changes at random."""

    def __init__(self, folder: Path, random: random.Random) -> None:
        self.folder = folder
        self._shard = folder / SHARD.key
        self._random = random
        self._words = _WORDS.split()
        self._made = 0
        self._samples = sorted(path for path in SAMPLE.rglob("*") if path.suffix in (".pdf", ".docx"))
        self._shard.mkdir(parents=True)
        for _ in range(DOCUMENTS):
            self._add()

    def change(self) -> None:
        """Add, change, rename and delete some documents; sometimes one, sometimes a third of them."""
        for _ in range(self._random.choice((1, 2, 5, DOCUMENTS // 3))):
            paths = sorted(self._shard.iterdir())
            action = self._random.choice(("add", "change", "change", "rename", "delete"))
            if action == "add" or len(paths) < DOCUMENTS // 2:
                self._add()
                continue
            path = self._random.choice(paths)
            if action == "change":
                # A document that turns unreadable would keep its old version, which a clean run does not have.
                path.write_bytes(self._content(path.suffix if path.suffix != ".bin" else ".txt"))
            elif action == "rename":
                path.rename(path.with_name(self._name(path.suffix)))
            elif len(paths) > DOCUMENTS:
                path.unlink()

    def _add(self) -> None:
        suffix = self._random.choice((".txt", ".md", ".md", ".html", ".csv", ".eml", ".bin", "sample"))
        if suffix == "sample":
            sample = self._random.choice(self._samples)
            shutil.copyfile(sample, self._shard / self._name(sample.suffix))
        else:
            (self._shard / self._name(suffix)).write_bytes(self._content(suffix))

    def _name(self, suffix: str) -> str:
        self._made += 1
        return f"{self._made:05}{suffix}"

    def _text(self, sentences: int) -> str:
        return " ".join(
            " ".join(self._random.choices(self._words, k=self._random.randint(4, 14))).capitalize() + "."
            for _ in range(sentences)
        )

    def _content(self, suffix: str) -> bytes:
        if suffix in (".pdf", ".docx"):
            return self._random.choice([s for s in self._samples if s.suffix == suffix]).read_bytes()
        if suffix == ".bin":
            return bytes(range(256)) + self._random.randbytes(64)
        if suffix == ".md":
            sections = self._random.choice((1, 2, 3, 30))
            text = "\n\n".join(f"## {self._text(1)}\n\n{self._text(8)}" for _ in range(sections))
            return f"# {self._text(1)}\n\n{text}\n".encode()
        if suffix == ".html":
            return f"<html><body><h1>{self._text(1)}</h1><p>{self._text(5)}</p></body></html>".encode()
        if suffix == ".csv":
            return "\n".join(f"{n},{word}" for n, word in enumerate(self._random.choices(self._words, k=20))).encode()
        if suffix == ".eml":
            message = EmailMessage()
            message["From"], message["To"], message["Subject"] = "a@example.com", "b@example.com", self._text(1)
            message.set_content(self._text(3))
            for number in range(self._random.randint(0, 2)):
                message.add_attachment(self._text(4), filename=f"note-{number}.txt")
            return message.as_bytes()
        return self._text(self._random.randint(1, 6)).encode()


class Victims:
    """Processes that index and are killed; the next one starts while the last kill is examined."""

    def __init__(self, indexer: Indexer) -> None:
        self._indexer = indexer
        self._next = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", "-m", "benchmarks.indexing"),
                *(self._indexer.source, self._indexer.model_lake, self._indexer.shard.key),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, lake: Path, seconds: float | None) -> float | None:
        """Index into the lake and kill the process after `seconds`; return the run's duration, or None if killed."""
        process, self._next = self._next, self._start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            assert said == "ready", f"the process to kill did not start; its output: {said!r}"
            started = time.perf_counter()
            process.stdin.write(f"{lake}\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], seconds)[0]:
                return None
            lasted, said = time.perf_counter() - started, process.stdout.readline().strip()
            assert said == "done", f"a run failed without being killed; its output: {said!r}"
            return lasted
        finally:
            kill(process)

    def close(self) -> None:
        kill(self._next)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the process and its children immediately."""
    parsers: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parsers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for parser in parsers:
        with contextlib.suppress(psutil.NoSuchProcess):
            parser.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@dataclass(frozen=True)
class Blow:
    """One kill: the table of the last commit before it, and whether that commit was not yet recorded."""

    last_commit: str
    unrecorded: bool
    first_run: bool


@dataclass
class Outcome:
    """The outcome of all kills. `different` describes each table that differs from that of a clean run."""

    blows: list[tuple[Blow, bool]] = field(default_factory=list[tuple[Blow, bool]])
    different: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return sum(blow.last_commit != _ENDED for blow, _ in self.blows)


def kill_and_compare(scratch: Path, model_lake: str, *, times: int, seed: int) -> Iterator[Outcome]:
    """Kill `times` runs; yield the outcome so far after each comparison. Keep the folders of differing tables."""
    from benchmarks.indexing import Indexer  # imported here because it emits Dagster's preview warnings

    draw = random.Random(seed)
    source = ChangingSource(scratch / "source", draw)
    indexer = Indexer(str(source.folder), model_lake, SHARD)
    indexer.load()
    outcome, started = Outcome(), time.perf_counter()
    with contextlib.closing(Victims(indexer)) as victims:
        lasted = _measure(victims, source, scratch)
        number = 0
        while outcome.kills < times:
            lake = scratch / f"lake-{number}"
            for at in range(KILLS_OF_A_LAKE):
                if outcome.kills >= times:
                    break
                if at:
                    source.change()
                blows = list(_blows(victims, lake, lasted, draw))
                problems = _recovered(indexer, lake, scratch / "clean")
                outcome.blows += [(blow, not problems) for blow in blows]
                outcome.seconds = time.perf_counter() - started
                if problems:
                    kept = _keep(scratch, lake, source.folder, len(outcome.different))
                    how = ", ".join(f"{b.last_commit}{' unrecorded' if b.unrecorded else ''}" for b in blows)
                    outcome.different.append(f"killed at {how}; see {kept}: {'; '.join(problems)}")
                yield outcome
                if problems:
                    break
                shutil.rmtree(scratch / "clean")
            shutil.rmtree(lake, ignore_errors=True)
            number += 1


def _measure(victims: Victims, source: ChangingSource, scratch: Path) -> dict[bool, float]:
    """Return the seconds of a first run into an empty lake (True) and of the longest of two later runs (False)."""
    lake = scratch / "measured"
    lasted = {True: victims.run(lake, None) or 0.0, False: 0.0}
    for _ in range(2):
        source.change()
        lasted[False] = max(lasted[False], victims.run(lake, None) or 0.0)
    shutil.rmtree(lake)
    return lasted


def _blows(victims: Victims, lake: Path, lasted: dict[bool, float], draw: random.Random) -> Iterator[Blow]:
    while True:
        before = _versions(lake)
        first = before[_CATALOG] == 0
        # Runs differ in length with their changes, so some end before their kill; they are compared nevertheless.
        if victims.run(lake, draw.uniform(0, lasted[first])) is not None:
            yield Blow(_ENDED, unrecorded=False, first_run=first)
            return
        after = _versions(lake)
        changed = [stage for stage in after if after[stage] != before[stage]]
        progress = read_progress(Lake(str(lake)), SHARD)
        noted = {} if progress is None else {f.partition("/")[0]: version for f, version in progress.versions.items()}
        unrecorded = any(after[stage] != noted.get(stage, 0) for stage in _STAGES)
        yield Blow(changed[-1] if changed else _NOTHING, unrecorded, first)
        _end_lease(lake)
        if draw.random() > 0.25:
            return


def _versions(lake: Path) -> dict[str, int]:
    """Return the version of each table and then of the catalog object; 0 if there is none yet."""
    opened = Lake(str(lake))
    versions: dict[str, int] = {}
    for stage in _STAGES:
        found = [folder.name for folder in (lake / stage).glob("*") if stage == EMBEDDINGS and folder.is_dir()]
        table = opened.open(stage, SHARD, fingerprint=found[0] if found else "")
        versions[stage] = 0 if table is None else table.version
    stored = opened.objects.get(catalog_key(SHARD))
    versions[_CATALOG] = 0 if stored is None else hash(stored.etag)
    return versions


def _end_lease(lake: Path) -> None:
    """Expire the lease of a dead holder now."""
    objects = Lake(str(lake)).objects
    key = f"{LEASES}/{SHARD.table_name}.json"
    found = objects.get(key)
    if found is not None:
        record = LeaseRecord.model_validate_json(found.data)
        over = record.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(seconds=1)})
        objects.put(key, over.model_dump_json().encode())


def _recovered(indexer: Indexer, lake: Path, clean: Path) -> list[str]:
    """Run normally, and return how the published table differs from that of a clean run."""
    for folder in (lake, clean):
        result = indexer.index(str(folder))
        if not result.success:
            failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
            said = [f.user_failure_data.description if f.user_failure_data else str(f.error) for f in failures]
            return [f"the run into {folder.name} failed: {said or 'before its first step'}"]
    one, other = _published(lake), _published(clean)
    problems = differences(one[1], other[1])
    for name in ("content_digest", "source_digest", "documents", "chunks", "quarantined"):
        if getattr(one[0], name) != getattr(other[0], name):
            problems.append(f"{name}: {getattr(one[0], name)} instead of {getattr(other[0], name)}")
    progress = read_progress(Lake(str(lake)), SHARD)
    if progress is None or progress.dirty != ():
        problems.append("the progress record still names dirty documents")
    return problems


def _published(lake: Path) -> tuple[Publication, list[dict[str, Any]]]:
    opened = Lake(str(lake))
    found = read_catalog_entry(opened.objects, SHARD)
    table = opened.open(SHARDS, SHARD)
    assert found is not None
    assert table is not None
    table.checkout(found[0].current.version)
    rows: list[dict[str, Any]] = table.to_arrow().to_pylist()
    return found[0].current, sorted(rows, key=lambda row: (row["source"], row["ordinal"], row["chunk_id"]))


def differences(rows: Sequence[dict[str, Any]], clean: Sequence[dict[str, Any]]) -> list[str]:
    """Return how the rows differ from those of a clean run; indexing times may differ, vectors by 1e-3."""
    ids, clean_ids = Counter(row["chunk_id"] for row in rows), Counter(row["chunk_id"] for row in clean)
    problems = [
        f"{sum(counted.values())} {what}"
        for counted, what in (
            (ids - Counter(ids.keys()), "duplicate rows"),
            (clean_ids - ids, "rows missing"),
            (ids - clean_ids, "unexpected rows"),
        )
        if counted
    ]
    if problems:
        return problems
    for row, expected in zip(rows, clean, strict=True):
        differing = [n for n in expected if n not in ("vector", "indexed_at") and row[n] != expected[n]]
        if np.abs(np.subtract(row["vector"], expected["vector"])).max() > 1e-3:
            differing.append("vector")
        if differing:
            problems.append(f"{row['source']} row {row['ordinal']}: {', '.join(differing)}")
    return problems


def _keep(scratch: Path, lake: Path, source: Path, number: int) -> Path:
    kept = scratch.parent / f"{scratch.name}-different-{number}"
    for folder in (lake, scratch / "clean"):
        if folder.exists():
            shutil.copytree(folder, kept / folder.name)
            shutil.rmtree(folder)
    shutil.copytree(source, kept / "source")
    return kept


def main() -> None:
    """Kill, compare and print the outcome; exit with 1 if any table differs."""
    warnings.simplefilter("ignore")
    parser = arguments(__doc__ or "")
    parser.add_argument("--times", type=int, help="runs to kill (default 200, 5 with --quick)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes and instants (default 0)")
    options = parser.parse_args()
    times = options.times or (5 if options.quick else 200)
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as scratch:
        model_lake = str(Path(scratch, "model"))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(export, model_lake).result()
        printed = 0
        for outcome in kill_and_compare(Path(scratch), model_lake, times=times, seed=options.seed):
            for problem in outcome.different[printed:]:
                print(problem, flush=True)
            printed = len(outcome.different)
            if sys.stderr.isatty():
                print(f"\r{outcome.kills} of {times} killed", end="", file=sys.stderr, flush=True)
    rows = _rows(outcome)
    show(
        f"{outcome.kills} runs killed and repeated", rows, options.json, seed=options.seed, different=outcome.different
    )
    sys.exit(1 if outcome.different else 0)


def _rows(outcome: Outcome) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for stage in (_NOTHING, *_STAGES, _CATALOG, _ENDED, "all"):
        of_stage = [(blow, equal) for blow, equal in outcome.blows if stage in ("all", blow.last_commit)]
        rows.append(
            {
                "last commit in": stage,
                "kills": sum(blow.last_commit != _ENDED for blow, _ in of_stage),
                "of first runs": sum(blow.first_run for blow, _ in of_stage),
                "commit not recorded": sum(blow.unrecorded for blow, _ in of_stage),
                "equal": sum(equal for _, equal in of_stage),
                "not equal": sum(not equal for _, equal in of_stage),
                "seconds": round(outcome.seconds, 1) if stage == "all" else "",
            }
        )
    return rows


if __name__ == "__main__":
    main()
