"""Runs as Celery tasks, in warm worker processes on any number of machines."""

import os
from typing import Any

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher as UnjudgedLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from dagster_celery.tasks import (
    create_execute_job_task,  # pyright: ignore[reportUnknownVariableType]
    create_resume_job_task,  # pyright: ignore[reportUnknownVariableType]
)

from rag_assets.errors import OrchestrationError
from rag_assets.runs.dagster_api import POD_LAUNCHERS
from rag_assets.runs.instance import launcher_name
from rag_assets.runs.launchers.judged import JudgedByHeartbeat


class CeleryRunLauncher(JudgedByHeartbeat, UnjudgedLauncher):
    """dagster-celery's launcher; a lost worker's run is failed, and a lost result is not a lost run."""

    @property
    def broker_shown(self) -> str:
        """The broker's URL without its password."""
        app: Any = self.celery
        return app.connection_for_read().as_uri()

    def terminate(self, run_id: str) -> bool:
        """Cancel the run and return whether there was something to cancel.

        A queued task is revoked. A worker's process sees that its run is canceling and interrupts it; revoking the task
        would kill the process, and with it the model that it keeps loaded.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            return False
        self._instance.report_run_canceling(run)
        self.celery.control.revoke(run.tags[DAGSTER_CELERY_TASK_ID_TAG])
        return True

    def _known_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        if DAGSTER_CELERY_TASK_ID_TAG not in run.tags:  # started by `backfill --here`
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return super()._known_health(run)


def celery_launcher(instance: dg.DagsterInstance) -> CeleryRunLauncher:
    """Return the instance's launcher.

    Raises `OrchestrationError` if the instance launches runs in another way, or if Celery rejects the broker's URL.
    """
    name = launcher_name(instance)
    if name in POD_LAUNCHERS or not isinstance(instance.run_launcher, CeleryRunLauncher):
        raise OrchestrationError(
            f"dagster.yaml launches runs with {name}, which needs no workers; `rag-assets init --profile workers` "
            "writes one that does"
        )
    try:
        instance.run_launcher.celery.connection_for_read()
    except (KeyError, ValueError) as error:
        raise OrchestrationError(
            f"the broker's URL is not valid ({error.args[0]}); check RAG_BROKER_URL, for example redis://host:6379/0"
        ) from error
    return instance.run_launcher


def work(launcher: CeleryRunLauncher, concurrency: int, log_level: str, name: str | None = None) -> None:
    """Execute the runs that the launcher queues, `concurrency` at once, until a signal ends the worker.

    `name` is its name in Celery, where %h is the host. SIGTERM lets active runs finish.
    """
    app = launcher.celery
    create_execute_job_task(app)
    create_resume_job_task(app)
    # A worker that reserves a second run keeps it from one that is idle.
    app.conf.worker_disable_prefetch = True
    app.conf.worker_prefetch_multiplier = 1
    app.conf.worker_redirect_stdouts = False  # Celery would print each line of Dagster as a warning of its own
    app.worker_main(
        [
            "worker",
            "--pool=prefork",
            f"--hostname={name or f'rag-{os.getpid()}@%h'}",  # Celery's default is the same for all workers of a host
            f"--concurrency={concurrency}",
            f"--queues={launcher.default_queue}",
            f"--loglevel={log_level}",
        ]
    )
