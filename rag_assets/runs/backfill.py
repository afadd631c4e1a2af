"""Start and watch runs for the command line: daemon backfills, the model export and the company index."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import dagster as dg

from rag_assets.errors import OrchestrationError
from rag_assets.models.export import find_exported
from rag_assets.models.static_vectors import are_distilled
from rag_assets.runs.dagster_api import DAEMON_SECONDS, DagsterApi, Progress, local_api, remote_api
from rag_assets.runs.instance import open_instance
from rag_assets.runs.names import EXPORT_MODEL, REFRESH, Names
from rag_assets.runs.reporting import failure_reason, quiet_logging
from rag_assets.runs.tags import ACCEPT_WORSE_TAG, ALLOW_MASS_DELETE_TAG
from rag_assets.settings import PipelineSettings
from rag_assets.storage.lake import open_lake
from rag_serving.errors import SettingsError


@contextmanager
def open_dagster(settings: PipelineSettings, location: str | None = None) -> Generator[DagsterApi]:
    """Yield the API of the web server at `RAG_DAGSTER_URL`, or on the instance of $DAGSTER_HOME."""
    names, location = Names.of(settings), location or settings.code_location
    if settings.dagster_url is not None:
        token = settings.dagster_token
        yield remote_api(settings.dagster_url, None if token is None else token.get_secret_value(), names, location)
        return
    with open_instance() as instance, local_api(instance, names, location) as api:
        yield api


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


def watch_backfill(
    api: DagsterApi, backfill_id: str, shown: Callable[[Progress], None], *, poll_seconds: float = 3.0
) -> Progress:
    """Call `shown` with the backfill's progress until it has ended, and return its last state.

    Raises `OrchestrationError` if the daemon dies meanwhile.
    """
    last, changed = None, time.monotonic()
    while True:
        progress = api.progress(backfill_id)
        if progress.over:
            shown(progress)
            return progress
        if progress != last:
            last, changed = progress, time.monotonic()
            shown(progress)
        elif time.monotonic() - changed > DAEMON_SECONDS:
            api.require_daemon()
            changed = time.monotonic()
        time.sleep(poll_seconds)


def wait_for_start(api: DagsterApi, backfill_id: str, *, seconds: float = DAEMON_SECONDS) -> None:
    """Wait until the daemon requested a run of the backfill; raise `OrchestrationError` if it refuses or does not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        progress = api.progress(backfill_id)
        if progress.error is not None:
            raise OrchestrationError(f"the daemon refused backfill {backfill_id}: {progress.error}")
        if progress.requested or progress.over:
            return
        time.sleep(1.0)
    api.require_daemon()
    raise OrchestrationError(
        f"the daemon did not start backfill {backfill_id} within {seconds:.0f} seconds. It stays requested: see the "
        "daemon's log, and cancel it in the UI if you do not want it to run later"
    )


def require_shared_settings(settings: PipelineSettings) -> None:
    """Raise `SettingsError` if a web server elsewhere is to index into a lake that was not named.

    The default is a folder here, with which the shards would be compared, and into which the model would be exported.
    """
    if settings.dagster_url is not None and "lake_uri" not in settings.model_fields_set:
        raise SettingsError(
            "RAG_LAKE_URI is not set; with RAG_DAGSTER_URL, set RAG_SOURCE_URI and RAG_LAKE_URI to the values that the "
            "Dagster there uses"
        )


def permission_tags(*, mass_delete: bool, worse_retrieval: bool) -> dict[str, str]:
    """Return the tags of runs that may delete most of a shard, or publish a version with lower scores."""
    allowed = {ALLOW_MASS_DELETE_TAG: mass_delete, ACCEPT_WORSE_TAG: worse_retrieval}
    return {tag: "true" for tag, allow in allowed.items() if allow}
