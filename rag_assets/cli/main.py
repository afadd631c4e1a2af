"""The command `rag-assets`; its subcommands are in the modules beside this one."""

import warnings

import click

from rag_assets.cli.backfill import backfill, status
from rag_assets.cli.evaluate import evaluate
from rag_assets.cli.init import init
from rag_assets.cli.quarantine import quarantine
from rag_assets.cli.versions import history, maintain, release, retire, rollback
from rag_assets.cli.worker import worker
from rag_serving.cli.errors import NamedErrorGroup
from rag_serving.requirements import require_posix


@click.group(
    "rag-assets", cls=NamedErrorGroup, extra="assets", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="rag-shards")
def main() -> None:
    """Index the documents of RAG_SOURCE_URI into the lake RAG_LAKE_URI with Dagster."""
    require_posix()
    # Dagster warns at every start that partitioned checks are a preview.
    warnings.filterwarnings("ignore", module="dagster")
    warnings.filterwarnings("ignore", message=".*in preview.*")


for command in (init, backfill, status, quarantine, evaluate, history, rollback, release, retire, maintain, worker):
    main.add_command(command)
