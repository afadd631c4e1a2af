"""One writer per shard: leases in a folder and on a real S3 server, between threads and processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rag_assets.errors import LeaseLost, ShardLocked
from rag_assets.storage.lease import LEASES, Lease, acquire_lease
from rag_serving.errors import LakeCorrupt, LakeUnavailable
from rag_serving.lake.object_store import ANY, ObjectEntry, ObjectStore, StoredObject, open_object_store
from rag_serving.lake.shards import Shard

SHARD = Shard("London", "people & culture")

HOLDER = """
import sys
from rag_assets.errors import LeaseLost
from rag_assets.storage.lease import acquire_lease
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.shards import Shard

objects, shard, seconds = open_object_store(sys.argv[1]), Shard.parse(sys.argv[2]), float(sys.argv[3])
with acquire_lease(objects, shard, "the other", seconds=seconds) as lease:
    print(lease.epoch, flush=True)
    for _ in sys.stdin:
        try:
            lease.check()
            print("held", flush=True)
        except LeaseLost as error:
            print("lost:", error, flush=True)
"""


class Unplugged:
    """A lake whose connection to one writer can be cut."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.cut = False

    def _reach(self) -> ObjectStore:
        if self.cut:
            raise LakeUnavailable("the cable is out")
        return self._objects

    def get(self, key: str) -> StoredObject | None:
        return self._reach().get(key)

    def put(self, key: str, data: bytes, *, expect: str = ANY) -> str:
        return self._reach().put(key, data, expect=expect)

    def list(self, prefix: str) -> list[ObjectEntry]:
        return self._reach().list(prefix)

    def delete(self, key: str) -> None:
        self._reach().delete(key)


class Forgetful:
    """A lake that applies every write but reports those with a number in `lost` as failed."""

    def __init__(self, objects: ObjectStore, lost: set[int]) -> None:
        self._objects = objects
        self._lost = lost
        self.puts = 0
        self.kept_on = threading.Event()

    def get(self, key: str) -> StoredObject | None:
        return self._objects.get(key)

    def put(self, key: str, data: bytes, *, expect: str = ANY) -> str:
        etag = self._objects.put(key, data, expect=expect)
        self.puts += 1
        if self.puts in self._lost:
            raise LakeUnavailable("the answer was lost")
        if self.puts > max(self._lost):
            self.kept_on.set()
        return etag

    def list(self, prefix: str) -> list[ObjectEntry]:
        return self._objects.list(prefix)

    def delete(self, key: str) -> None:
        self._objects.delete(key)


@pytest.fixture
def objects(lake_uri: str) -> ObjectStore:
    return open_object_store(lake_uri)


@pytest.fixture
def other_process(lake_uri: str) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """Start a process that holds the lease of `SHARD`; return once it does."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, lake_uri, SHARD.key, str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= 1
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("check\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_the_lease_of_a_free_shard_is_acquired_immediately(objects: ObjectStore) -> None:
    with acquire_lease(objects, SHARD, "me", wait=0) as lease:
        assert (lease.shard, lease.epoch) == (SHARD, 1)
        lease.check()


def test_a_second_writer_waits_and_then_raises_shard_locked(objects: ObjectStore) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        time.sleep(seconds)

    with acquire_lease(objects, SHARD, "run-1"):
        started = time.monotonic()
        with (
            pytest.raises(ShardLocked, match=r"London/people & culture.*run-1") as caught,
            acquire_lease(objects, SHARD, "run-2", wait=0.8, sleep=nap),
        ):
            pytest.fail("two writers hold one shard")
        assert 0.8 <= time.monotonic() - started < 5
        assert naps
        assert "UTC" in str(caught.value)


def test_a_second_writer_that_waits_long_enough_acquires_the_lease(objects: ObjectStore) -> None:
    release = threading.Event()

    def first() -> None:
        with acquire_lease(objects, SHARD, "run-1"):
            held.set()
            release.wait(10)

    held = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(first)
        assert held.wait(10)
        threading.Timer(0.3, release.set).start()
        with acquire_lease(objects, SHARD, "run-2", wait=10, sleep=lambda _: time.sleep(0.1)) as lease:
            assert lease.epoch == 2
        holding.result()


def test_leases_of_two_shards_are_independent(objects: ObjectStore) -> None:
    with (
        acquire_lease(objects, Shard("a", "b"), "one", wait=0) as first,
        acquire_lease(objects, Shard("A", "b"), "two", wait=0) as second,
    ):
        first.check()
        second.check()


def test_the_epoch_increases_with_every_holder(objects: ObjectStore) -> None:
    epochs: list[int] = []
    for _ in range(3):
        with acquire_lease(objects, SHARD, "me", wait=0) as lease:
            epochs.append(lease.epoch)
    assert epochs == [1, 2, 3]


def test_a_lease_is_released_if_the_work_fails(objects: ObjectStore) -> None:
    with pytest.raises(ZeroDivisionError), acquire_lease(objects, SHARD, "me", wait=0):
        raise ZeroDivisionError
    with acquire_lease(objects, SHARD, "you", wait=0) as lease:
        lease.check()


def test_a_lease_that_could_not_be_renewed_is_lost_to_the_next_holder(objects: ObjectStore) -> None:
    cable = Unplugged(objects)
    with acquire_lease(cable, SHARD, "cut off", seconds=0.9) as lease:
        cable.cut = True
        with acquire_lease(objects, SHARD, "follower", wait=10, sleep=lambda _: time.sleep(0.1)) as follower:
            assert follower.epoch == lease.epoch + 1
            with pytest.raises(LeaseLost, match="London/people & culture"):
                lease.check()
            cable.cut = False  # a lost lease stays lost after the lake recovers
            time.sleep(0.5)
            with pytest.raises(LeaseLost):
                lease.check()
            follower.check()


def test_a_holder_that_lost_its_lease_does_not_release_the_next_holders(objects: ObjectStore) -> None:
    cable = Unplugged(objects)
    with acquire_lease(cable, SHARD, "cut off", seconds=0.6):
        cable.cut = True
        follower = acquire_lease(objects, SHARD, "follower", wait=10, sleep=lambda _: time.sleep(0.1))
        lease = follower.__enter__()
        cable.cut = False
    try:
        lease.check()
        with pytest.raises(ShardLocked, match="follower"), acquire_lease(objects, SHARD, "third", wait=0):
            pytest.fail("two writers hold one shard")
    finally:
        follower.__exit__(None, None, None)


def test_a_short_outage_of_the_lake_does_not_lose_the_lease(tmp_path: Path) -> None:
    cable = Unplugged(open_object_store(str(tmp_path)))
    with acquire_lease(cable, SHARD, "me", seconds=1.8) as lease:
        cable.cut = True
        time.sleep(0.8)  # the first renewal fails during this time
        cable.cut = False
        time.sleep(1.2)  # past the lease's original expiry
        lease.check()


def test_the_heartbeat_extends_the_lease(objects: ObjectStore) -> None:
    with acquire_lease(objects, SHARD, "me", seconds=0.9) as lease:
        for _ in range(3):
            time.sleep(0.4)
            lease.check()
        with pytest.raises(ShardLocked), acquire_lease(objects, SHARD, "you", wait=0):
            pytest.fail("two writers hold one shard")


def test_many_writers_of_a_shard_hold_its_lease_one_at_a_time(objects: ObjectStore) -> None:
    inside: list[int] = []
    most = 0

    def write(number: int) -> int:
        nonlocal most
        with acquire_lease(objects, SHARD, f"run-{number}", wait=30, sleep=lambda _: time.sleep(0.02)) as lease:
            inside.append(number)
            most = max(most, len(inside))
            time.sleep(0.03)
            lease.check()
            inside.remove(number)
            return lease.epoch

    with ThreadPoolExecutor(6) as pool:
        epochs = list(pool.map(write, range(6)))
    assert most == 1
    assert sorted(epochs) == [1, 2, 3, 4, 5, 6]


def test_the_lease_of_a_killed_process_can_be_acquired_after_it_expires(
    objects: ObjectStore, other_process: Callable[[float], subprocess.Popen[str]]
) -> None:
    process = other_process(1.5)
    assert ask(process) == "held"
    with pytest.raises(ShardLocked, match="the other"), acquire_lease(objects, SHARD, "me", wait=0):
        pytest.fail("two writers hold one shard")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    started = time.monotonic()
    with acquire_lease(objects, SHARD, "me", wait=10, sleep=lambda _: time.sleep(0.1)) as lease:
        assert time.monotonic() - started < 3
        assert lease.epoch == 2
        lease.check()


def test_a_frozen_process_finds_its_lease_lost_when_it_wakes_up(
    objects: ObjectStore, other_process: Callable[[float], subprocess.Popen[str]]
) -> None:
    process = other_process(1.0)
    process.send_signal(signal.SIGSTOP)
    with acquire_lease(objects, SHARD, "me", wait=10, sleep=lambda _: time.sleep(0.1)) as lease:
        process.send_signal(signal.SIGCONT)
        assert ask(process).startswith("lost: the lease of London/people & culture")
        lease.check()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"epoch": "x"}',
        b'{"epoch": 1, "holder": "a", "where": "b", "expires_at": "2026-01-01T00:00:00"}',
    ],
    ids=["empty", "not JSON", "missing fields", "time without a zone"],
)
def test_a_malformed_lease_is_lake_corrupt_and_not_taken_over(objects: ObjectStore, data: bytes) -> None:
    objects.put(f"{LEASES}/{SHARD.table_name}.json", data)
    with pytest.raises(LakeCorrupt, match=LEASES), acquire_lease(objects, SHARD, "me", wait=0):
        pytest.fail("a malformed lease was taken")


def test_the_heartbeat_stops_when_the_lease_is_released(objects: ObjectStore) -> None:
    def beating() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("lease-")]

    with acquire_lease(objects, SHARD, "me") as lease:
        assert isinstance(lease, Lease)
        assert beating() == [f"lease-{SHARD.table_name}"]
    assert beating() == []


def test_a_renewal_that_was_written_but_reported_as_failed_keeps_the_lease(objects: ObjectStore) -> None:
    lake = Forgetful(objects, lost={2, 3})
    with acquire_lease(lake, SHARD, "me", seconds=3) as lease:
        assert lake.kept_on.wait(60)
        lease.check()
    with acquire_lease(objects, SHARD, "the next", wait=0) as follower:
        assert (follower.epoch, follower.taken_over) == (2, False)


def test_a_lease_that_was_written_but_reported_as_failed_must_expire_first(objects: ObjectStore) -> None:
    with pytest.raises(LakeUnavailable), acquire_lease(Forgetful(objects, lost={1}), SHARD, "me", seconds=0.5):
        pytest.fail("the lease was not known to be held")
    with acquire_lease(objects, SHARD, "me again", wait=10) as lease:
        assert (lease.epoch, lease.taken_over) == (2, True)
