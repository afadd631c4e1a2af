"""The lease that admits one writer per shard. It is stored in the lake, so it holds however a run is started.

Each shard and the company index have one object with the holder, the expiry, and an epoch that increases with every new
holder. It is acquired and renewed by conditional writes. A dead holder's lease expires; a holder that lost its lease
gets `LeaseLost` on its next `check()`.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from rag_assets.errors import LeaseLost, ShardLocked
from rag_assets.storage.lake import TableOwner
from rag_serving.errors import LakeCorrupt, LakeUnavailable, WriteConflict
from rag_serving.lake.object_store import ABSENT, ObjectStore

LEASES = "leases"


class LeaseRecord(BaseModel):
    """The content of the lease object."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    epoch: int
    holder: str
    where: str
    expires_at: AwareDatetime
    released: bool = False
    token: str = ""
    """Random; identifies the holder's own record."""

    @property
    def is_over(self) -> bool:
        """Whether another writer may take over."""
        return self.released or self.expires_at < datetime.now(UTC)


class Lease:
    """A held lease, renewed by a thread. Call `check` before every commit."""

    def __init__(
        self,
        objects: ObjectStore,
        shard: TableOwner,
        record: LeaseRecord,
        etag: str,
        seconds: float,
        deadline: float,
        *,
        taken_over: bool = False,
    ) -> None:
        self.shard = shard
        self.epoch = record.epoch
        self.taken_over = taken_over
        """Whether the previous holder did not release it: that writer may be dead, or asleep and still wake up."""
        self._objects = objects
        self._record = record
        self._etag = etag
        self._seconds = seconds
        self._deadline = deadline
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat, name=f"lease-{shard.table_name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LeaseLost` if another writer may hold the lease."""
        if self._lost is None and time.monotonic() > self._deadline:
            self._lost = "it could not be renewed in time"
        if self._lost is not None:
            raise LeaseLost(f"the lease of {self.shard} was lost: {self._lost}; run it again")

    def release(self) -> None:
        """Release the lease. Its object stays, so that the epoch never decreases."""
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            record = self._record.model_copy(update={"released": True})
            with contextlib.suppress(WriteConflict, LakeCorrupt, LakeUnavailable):  # then it expires
                self._write(record)

    def _heartbeat(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            deadline = time.monotonic() + self._seconds
            record = self._record.model_copy(update={"expires_at": _expiry(self._seconds)})
            try:
                self._write(record)
            except (WriteConflict, LakeCorrupt):
                self._lost = "another writer took it over"
                return
            except LakeUnavailable:
                continue  # the next heartbeat retries; `check` fails after the deadline
            self._record, self._deadline = record, deadline

    def _write(self, record: LeaseRecord) -> None:
        data = record.model_dump_json().encode()
        try:
            self._etag = self._objects.put(_key(self.shard), data, expect=self._etag)
        except WriteConflict:
            found = self._objects.get(_key(self.shard))
            if found is None or _read(self.shard, found.data).token != record.token:
                raise
            # An earlier heartbeat was applied, but an outage lost its response.
            self._etag = self._objects.put(_key(self.shard), data, expect=found.etag)


@contextlib.contextmanager
def acquire_lease(
    objects: ObjectStore,
    shard: TableOwner,
    holder: str,
    *,
    seconds: float = 30.0,
    wait: float = 45.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Lease]:
    """Hold the shard's lease for the length of the block; raise `ShardLocked` if it is not free in `wait` seconds."""
    lease = _acquire(objects, shard, holder, seconds, wait, sleep)
    try:
        yield lease
    finally:
        lease.release()


def writer_of(objects: ObjectStore, shard: TableOwner) -> LeaseRecord | None:
    """Return the lease of the shard's writer; None if none writes to it."""
    found = objects.get(_key(shard))
    record = None if found is None else _read(shard, found.data)
    return None if record is None or record.is_over else record


def _acquire(
    objects: ObjectStore, shard: TableOwner, holder: str, seconds: float, wait: float, sleep: Callable[[float], None]
) -> Lease:
    give_up = time.monotonic() + wait
    while True:
        found = objects.get(_key(shard))
        current = None if found is None else _read(shard, found.data)
        if current is None or current.is_over:
            deadline = time.monotonic() + seconds
            record = LeaseRecord(
                epoch=1 if current is None else current.epoch + 1,
                holder=holder,
                where=f"{socket.gethostname()}:{os.getpid()}",
                expires_at=_expiry(seconds),
                token=uuid.uuid4().hex,
            )
            try:
                etag = objects.put(
                    _key(shard),
                    record.model_dump_json().encode(),
                    expect=ABSENT if found is None else found.etag,
                )
                taken_over = current is not None and not current.released
                return Lease(objects, shard, record, etag, seconds, deadline, taken_over=taken_over)
            except WriteConflict:
                continue
        if time.monotonic() >= give_up:
            raise ShardLocked(
                f"{shard} is being written by {current.holder} on {current.where}, whose lease lasts until "
                f"{current.expires_at:%H:%M:%S} UTC; wait for it or stop it, then try again"
            )
        sleep(0.5)


def _expiry(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _key(shard: TableOwner) -> str:
    return f"{LEASES}/{shard.table_name}.json"


def _read(shard: TableOwner, data: bytes) -> LeaseRecord:
    try:
        return LeaseRecord.model_validate_json(data)
    except ValidationError as error:
        raise LakeCorrupt(f"the lease object of {shard} is malformed; delete {_key(shard)} in the lake") from error
