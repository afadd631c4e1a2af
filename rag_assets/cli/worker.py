"""The command that executes runs which Celery distributes."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import click

from rag_assets.settings import PipelineSettings
from rag_serving.requirements import needs_extra


@click.command()
@click.option(
    "--concurrency", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at once, one process each."
)
@click.option("--name", help="Unique name in Celery, where %h is the host (default: rag-PID@%h).")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Log messages of this level and above.",
)
def worker(concurrency: int, name: str | None, log_level: str) -> None:
    """Execute runs that Celery distributes, see the profile workers.

    Reads the broker from dagster.yaml in DAGSTER_HOME. SIGTERM lets active runs finish; a second one ends them.

    Example: rag-assets worker --concurrency 2
    """
    with needs_extra("celery", "rag-assets worker"):
        from rag_assets.runs.launchers.celery import celery_launcher, work
    from rag_assets.runs.instance import open_instance

    settings = PipelineSettings.from_env()
    with open_instance() as instance:
        launcher = celery_launcher(instance)
        # In another process: the threads of the S3 client do not survive that Celery forks its pool from this one.
        with ProcessPoolExecutor(1, get_context("spawn")) as another:
            another.submit(require_stores, settings).result()
        click.echo(f"waiting for runs at {launcher.broker_shown} (RAG_BROKER_URL)", err=True)
        work(launcher, concurrency, log_level, name)


def require_stores(settings: PipelineSettings) -> None:
    """Raise an error if the source or the lake cannot be read: now, instead of in each run."""
    from rag_assets.pipeline import Pipeline

    pipeline = Pipeline(settings)
    next(pipeline.source().pages(), None)
    pipeline.fingerprint()
