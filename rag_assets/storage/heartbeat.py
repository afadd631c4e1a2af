"""The heartbeat of a run: a small object in the lake that the run rewrites while its process lives.

If it stays unchanged for `SILENT_AFTER` seconds, the process is dead or cannot reach the lake, and so cannot work. A
lease cannot tell: a run may wait for its shard's lease, and not every run has a shard.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Generator

from rag_serving.errors import LakeUnavailable
from rag_serving.lake.object_store import ObjectStore

HEARTBEATS = "heartbeats"
INTERVAL = 10.0
"""Seconds between two beats. The first comes after one interval, so that short runs write nothing."""
SILENT_AFTER = 45.0
"""Seconds without a beat after which a run counts as dead: four missed beats."""


def heartbeat_key(run_id: str) -> str:
    """Return the key of the run's heartbeat in the lake."""
    return f"{HEARTBEATS}/{run_id}"


def forget_heartbeats(objects: ObjectStore) -> int:
    """Delete every heartbeat and return their number. A living run soon writes its own again."""
    found = objects.list(HEARTBEATS)
    for entry in found:
        objects.delete(entry.key)
    return len(found)


@contextlib.contextmanager
def keep_heartbeat(objects: ObjectStore, run_id: str, *, interval: float = INTERVAL) -> Generator[None]:
    """Rewrite the run's heartbeat during the block, and delete it afterwards.

    A beat that the lake does not accept is skipped: the work itself reports an outage better than its heartbeat.
    """
    key, stop, beats = heartbeat_key(run_id), threading.Event(), 0

    def beat() -> None:
        nonlocal beats
        while not stop.wait(interval):
            beats += 1
            with contextlib.suppress(LakeUnavailable):
                objects.put(key, f"{beats} {socket.gethostname()}:{os.getpid()}".encode())

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if beats:
            with contextlib.suppress(LakeUnavailable):  # maintenance deletes what is left behind
                objects.delete(key)
