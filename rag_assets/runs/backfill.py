"""Start and watch runs for the command line: daemon backfills, the model export and the company index."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg

from rag_assets.errors import OrchestrationError
from rag_assets.models.export import find_exported
from rag_assets.models.static_vectors import are_distilled
from rag_assets.runs.names import EXPORT_MODEL, INDEX_SHARD, REFRESH, Names
from rag_assets.runs.reporting import failure_reason, quiet_logging
from rag_assets.runs.tags import ACCEPT_WORSE_TAG, ALLOW_MASS_DELETE_TAG
from rag_assets.settings import PipelineSettings
from rag_assets.storage.lake import open_lake
from rag_serving.lake.shards import Shard

_BACKFILL_TAG = "dagster/backfill"
_LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on Error { message }
  }
}
"""


@contextmanager
def open_instance() -> Generator[dg.DagsterInstance]:
    """Open the instance of $DAGSTER_HOME; raise `OrchestrationError` if there is none."""
    from alembic.util import CommandError
    from dagster._core.errors import DagsterHomeNotSetError, DagsterInvariantViolationError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        instance = dg.DagsterInstance.get()
    except (DagsterHomeNotSetError, DagsterInvariantViolationError) as error:
        raise OrchestrationError(
            "DAGSTER_HOME is not set to an existing directory: create one, copy dagster.yaml into it, then "
            "`export DAGSTER_HOME=/absolute/path`"
        ) from error
    except (CommandError, SQLAlchemyError) as error:
        # If two processes open a new DAGSTER_HOME at once, both create its database and one fails.
        raise OrchestrationError(
            f"cannot open Dagster's database in DAGSTER_HOME ({type(error).__name__}); another process may be creating "
            "it: retry in a few seconds"
        ) from error
    with instance:
        yield instance


def require_daemon(instance: dg.DagsterInstance) -> None:
    """Raise `OrchestrationError` unless a daemon that launches backfills and runs sent a recent heartbeat."""
    statuses = instance.get_daemon_statuses()
    silent = [
        name for name in ("BACKFILL", "QUEUED_RUN_COORDINATOR") if name in statuses and not statuses[name].healthy
    ]
    if silent:
        raise OrchestrationError(
            f"no Dagster daemon is running for DAGSTER_HOME (no heartbeat: {', '.join(silent).lower()}). Start one "
            "with 'make dev', 'dg dev' or 'dagster-daemon run -w workspace.yaml' and the same DAGSTER_HOME, or index "
            "in this process with --here"
        )


def launch_backfill(
    instance: dg.DagsterInstance, names: Names, shards: Sequence[Shard], tags: Mapping[str, str]
) -> str:
    """Start a backfill of `index_shard` over those shards in the daemon, and return its id.

    The daemon retries crashed runs; `dagster job backfill` would submit the runs and exit.
    """
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import ModuleTarget
    from dagster_graphql.cli import execute_query

    require_daemon(instance)
    params = {
        "selector": {
            "partitionSetName": f"{names.job(INDEX_SHARD)}_partition_set",
            "repositorySelector": {"repositoryLocationName": names.location, "repositoryName": "__repository__"},
        },
        "partitionNames": [shard.key for shard in shards],
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
        "title": "rag-assets backfill",
    }
    target = ModuleTarget("rag_assets.definitions", None, None, names.location)
    with WorkspaceProcessContext(instance, target, code_server_log_level="ERROR") as workspace:
        answer = execute_query(workspace, _LAUNCH, {"params": params})
    result: dict[str, Any] = (answer.get("data") or {}).get("launchPartitionBackfill") or {}
    if result.get("__typename") != "LaunchBackfillSuccess":
        message = result.get("message") or "; ".join(str(error.get("message")) for error in answer.get("errors", []))
        raise OrchestrationError(f"Dagster refused the backfill: {message or result}")
    return result["backfillId"]


def model_is_exported(settings: PipelineSettings) -> bool:
    """Return whether the lake contains the configured embedding model and, if the chunker needs them, its vectors."""
    objects = open_lake(settings.lake_uri).objects
    identity = find_exported(objects, settings.embedding_model)
    return identity is not None and (settings.chunker != "semantic" or are_distilled(objects, identity))


def export_model_here(instance: dg.DagsterInstance, settings: PipelineSettings, definitions: dg.Definitions) -> None:
    """Materialize `embedding_model` and `boundary_vectors` in this process; raise `OrchestrationError` on failure."""
    problem = _run_job(instance, definitions, Names.of(settings).job(EXPORT_MODEL))
    if problem is not None:
        raise OrchestrationError(f"the embedding model was not exported: {problem}")


def refresh_company_index_here(
    instance: dg.DagsterInstance, settings: PipelineSettings, definitions: dg.Definitions
) -> str | None:
    """Materialize `company_index` in this process; return the reason on failure."""
    return _run_job(instance, definitions, Names.of(settings).job(REFRESH))


def _run_job(instance: dg.DagsterInstance, definitions: dg.Definitions, job: str) -> str | None:
    run = definitions.resolve_job_def(job).execute_in_process(
        instance=instance, raise_on_error=False, run_config=quiet_logging(verbose=False)
    )
    return None if run.success else failure_reason(run.all_events)


@dataclass(frozen=True)
class BackfillProgress:
    """The progress of a backfill: counts of shards, and the keys of those that failed."""

    total: int
    succeeded: int
    failed: tuple[str, ...]
    over: bool


def watch_backfill(
    instance: dg.DagsterInstance, backfill_id: str, *, poll_seconds: float = 2.0
) -> Iterator[BackfillProgress]:
    """Yield the backfill's progress until it has ended."""
    while True:
        backfill = instance.get_backfill(backfill_id)
        if backfill is None:
            raise OrchestrationError(f"backfill {backfill_id} no longer exists in this Dagster instance")
        latest: dict[str, dg.DagsterRun] = {}
        for run in instance.get_runs(filters=dg.RunsFilter(tags={_BACKFILL_TAG: backfill_id})):  # newest first
            latest.setdefault(run.tags.get("dagster/partition", run.run_id), run)
        total = len(backfill.partition_names or ()) or len(latest)
        succeeded = sum(run.status == dg.DagsterRunStatus.SUCCESS for run in latest.values())
        over = backfill.status.value not in ("REQUESTED", "CANCELING", "FAILING") and all(
            run.is_finished for run in latest.values()
        )
        failed = [key for key, run in latest.items() if run.is_finished and run.status != dg.DagsterRunStatus.SUCCESS]
        yield BackfillProgress(total, succeeded, tuple(sorted(failed)), over)
        if over:
            return
        time.sleep(poll_seconds)


def permission_tags(*, mass_delete: bool, worse_retrieval: bool) -> dict[str, str]:
    """Return the tags of runs that may delete most of a shard, or publish a version with lower scores."""
    allowed = {ALLOW_MASS_DELETE_TAG: mass_delete, ACCEPT_WORSE_TAG: worse_retrieval}
    return {tag: "true" for tag, allow in allowed.items() if allow}
