"""The health check of runs: a run whose heartbeat stopped is failed, and a slow one that still beats never is."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, RunLauncher, WorkerStatus

from rag_assets.runs.tags import LAKE_TAG, PIPELINE_RESOURCE
from rag_assets.storage.heartbeat import SILENT_AFTER, heartbeat_key
from rag_serving.errors import RagError
from rag_serving.lake.object_store import ObjectStore, open_object_store

if TYPE_CHECKING:
    Base = RunLauncher[Any]
else:
    Base = object

_MOST_REMEMBERED = 10_000

_log = logging.getLogger(__name__)


class Heartbeats:
    """Remembers when each run's heartbeat last changed, by this process's clock, so that no other clock matters."""

    def __init__(
        self,
        open_objects: Callable[[str], ObjectStore] = open_object_store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_objects = lru_cache(maxsize=8)(open_objects)
        self._clock = clock
        self._seen: OrderedDict[str, tuple[str | None, float]] = OrderedDict()

    def silent_for(self, run_id: str, lake_uri: str | None) -> float:
        """Return the seconds for which the run's heartbeat has not changed; 0 if the lake cannot be asked.

        A run that has not named its lake yet, or written its first beat, is silent from its first check on.
        """
        try:
            found = None if lake_uri is None else self._open_objects(lake_uri).get(heartbeat_key(run_id))
        except RagError as error:
            _log.warning("cannot read the heartbeat of run %s, which counts as alive: %s", run_id, error)
            self._seen.pop(run_id, None)
            return 0.0
        etag, now = None if found is None else found.etag, self._clock()
        before = self._seen.get(run_id)
        if before is None or before[0] != etag:
            self._seen[run_id] = (etag, now)
        self._seen.move_to_end(run_id)
        while len(self._seen) > _MOST_REMEMBERED:
            self._seen.popitem(last=False)
        return now - self._seen[run_id][1]


class JudgedByHeartbeat(Base):
    """Put before a run launcher among the bases of a class: adds the health check to it."""

    _heartbeats: Heartbeats | None = None

    @property
    def supports_check_run_worker_health(self) -> Literal[True]:
        """True: every launcher of this package can check its runs."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return FAILED if the launcher knows that the run's worker failed, or if its heartbeat stopped.

        What the launcher does not know (a broker that lost its results, a pod that a node took along) the heartbeat
        decides. Runs that do not use the pipeline have none and are judged by the launcher alone.
        """
        known = self._known_health(run)
        if known.status == WorkerStatus.FAILED or not self._beats(run):
            return known
        if self._heartbeats is None:
            self._heartbeats = Heartbeats()
        silent = self._heartbeats.silent_for(run.run_id, run.tags.get(LAKE_TAG))
        if silent < SILENT_AFTER:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(
            WorkerStatus.FAILED,
            f"the run's heartbeat stopped {silent:.0f} seconds ago: its process was killed, or its machine is gone",
        )

    def _known_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return what the launcher itself knows of the run's worker."""
        if super().supports_check_run_worker_health:
            return super().check_run_worker_health(run)
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def _beats(self, run: dg.DagsterRun) -> bool:
        """Return whether one of the run's steps requests the pipeline, and with it the heartbeat."""
        if LAKE_TAG in run.tags:
            return True
        if run.job_snapshot_id is None:
            return False
        snapshot = self._instance.get_job_snapshot(run.job_snapshot_id)
        (mode,) = snapshot.mode_def_snaps
        ours = any(resource.description == PIPELINE_RESOURCE for resource in mode.resource_def_snaps)
        steps = snapshot.node_defs_snapshot.op_def_snaps
        return ours and any("pipeline" in step.required_resource_keys for step in steps)
