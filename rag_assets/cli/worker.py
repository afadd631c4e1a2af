"""The command that executes runs which Celery distributes."""

import click

from rag_assets.settings import PipelineSettings
from rag_serving.requirements import needs_extra


@click.command()
@click.option(
    "--concurrency", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at once, one process each."
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Log messages of this level and above.",
)
def worker(concurrency: int, log_level: str) -> None:
    """Execute runs that Celery distributes, see the profile workers.

    Reads the broker from dagster.yaml in DAGSTER_HOME. SIGTERM lets active runs finish; a second one ends them.
    """
    with needs_extra("celery", "rag-assets worker"):
        from rag_assets.runs.launchers.celery import work
    from rag_assets.runs.backfill import open_instance

    PipelineSettings.from_env()  # reports invalid settings now instead of in each run
    with open_instance() as instance:
        work(instance, concurrency, log_level)
