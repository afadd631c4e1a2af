"""The command `rag-assets`; each group of commands is a module beside this one."""

import warnings

import click

from rag_assets.cli.backfill import backfill, status
from rag_assets.cli.quarantine import quarantine
from rag_assets.cli.versions import history, maintain, release, rollback
from rag_serving.cli.errors import NamedErrorGroup


@click.group(cls=NamedErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rag-shards")
def main() -> None:
    """Indexes the documents of RAG_SOURCE_URI into the lake RAG_LAKE_URI through Dagster."""
    # Dagster marks partitioned checks as a preview at every start; that is for us to know, not for every command.
    warnings.filterwarnings("ignore", module="dagster")
    warnings.filterwarnings("ignore", message=".*in preview.*")


for command in (backfill, status, quarantine, history, rollback, release, maintain):
    main.add_command(command)
