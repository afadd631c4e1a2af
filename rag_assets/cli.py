"""The command `rag-assets`: backfills from the command line, and the state of every shard."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from rag_assets.backfills import Which, select_shards
from rag_assets.settings import PipelineSettings
from rag_serving.cli import NamedClickError, NamedErrorGroup
from rag_serving.shards import Shard

if TYPE_CHECKING:
    import dagster as dg

    from rag_assets.defs.launching import BulkResult


@click.group(cls=NamedErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rag-shards")
def main() -> None:
    """Indexes the documents of RAG_SOURCE_URI into the lake RAG_LAKE_URI through Dagster."""
    # Dagster marks partitioned checks as a preview at every start; that is for us to know, not for every command.
    warnings.filterwarnings("ignore", module="dagster")
    warnings.filterwarnings("ignore", message=".*in preview.*")


@main.command()
@click.option("--region", "regions", multiple=True, help="Only this region; may be repeated.")
@click.option("--department", "departments", multiple=True, help="Only this department; may be repeated.")
@click.option("--all", "which", flag_value=Which.ALL.value, help="Every shard.")
@click.option("--missing", "which", flag_value=Which.MISSING.value, help="Shards that were never published.")
@click.option("--failed", "which", flag_value=Which.FAILED.value, help="Shards whose latest run failed.")
@click.option("--here", is_flag=True, help="Index in this process, one run a shard, without a daemon.")
@click.option("--wait", is_flag=True, help="Wait for the daemon's backfill, with a progress bar.")
@click.option("--allow-mass-delete", is_flag=True, help="Let a run delete most or all of a shard's documents.")
@click.option("--dry-run", is_flag=True, help="Print the shards and stop.")
@click.option("-v", "--verbose", is_flag=True, help="With --here: print each step's log.")
def backfill(
    regions: tuple[str, ...],
    departments: tuple[str, ...],
    which: str | None,
    here: bool,
    wait: bool,
    allow_mass_delete: bool,
    dry_run: bool,
    verbose: bool,
) -> None:
    """Index shards: those that differ from the source, or --all, --missing, --failed of the regions and departments.

    The backfill is handed to the running Dagster daemon, which retries crashed runs. With --here this process does
    the work itself: one warm process, one Dagster run per shard, each under its lease.
    """
    from rag_assets.defs import launching
    from rag_assets.defs.partitions import add_shards
    from rag_assets.defs.resources import PipelineResource

    settings = PipelineSettings.from_env()
    with launching.open_instance() as instance:
        state = launching.survey(PipelineResource.from_settings(settings))
        chosen = Which(which) if which else Which.CHANGED
        known = sorted(state.listed.keys() | state.published.keys())
        failed = launching.failed_shards(instance, known) if chosen is Which.FAILED else set[Shard]()
        shards = select_shards(chosen, state.listed, state.published, failed, regions=regions, departments=departments)
        click.echo(
            f"{settings.source_uri}: {state.objects} objects in {len(state.listed)} shards; "
            f"{len(shards)} chosen ({chosen.value})"
        )
        if state.outside:
            examples = ", ".join(repr(key) for key in state.outside_examples)
            click.echo(f"{state.outside} keys outside region/department/ are left alone, such as {examples}")
        if dry_run or not shards:
            click.echo("\n".join(shard.key for shard in shards) if shards else "nothing to do")
            return
        tags = launching.mass_delete_tags(allow=allow_mass_delete)
        if not here:
            launching.require_daemon(instance)
        if not launching.model_is_exported(settings):
            click.echo(f"exporting the embedding model {settings.embedding_model} into the lake, once")
            launching.export_model_here(instance, settings)
        if here:
            _finish(_run_here(instance, settings, shards, tags, verbose))
            return
        add_shards(instance, shards)
        backfill_id = launching.launch_backfill(instance, shards, tags)
        click.echo(f"backfill {backfill_id} of {len(shards)} shards is with the daemon")
        if wait:
            _watch(instance, backfill_id)


@main.command()
def status() -> None:
    """Show every shard: published, changed since, missing, or gone from the source."""
    from rag_assets.arrivals import listing_digest
    from rag_assets.defs.launching import survey
    from rag_assets.defs.resources import PipelineResource

    state = survey(PipelineResource.from_settings(PipelineSettings.from_env()))
    empty = listing_digest(())
    for shard in sorted(state.listed.keys() | state.published.keys()):
        listed, published = state.listed.get(shard), state.published.get(shard)
        if listed == published:
            word = "published"
        elif published is None:
            word = "missing"
        else:
            word = "gone from the source" if listed == empty else "changed"
        click.echo(f"{shard.key:<50} {word}")
    if state.outside:
        click.echo(f"{state.outside} keys outside region/department/", err=True)


def _run_here(
    instance: dg.DagsterInstance,
    settings: PipelineSettings,
    shards: Sequence[Shard],
    tags: dict[str, str],
    verbose: bool,
) -> BulkResult:
    from rag_assets.defs.launching import run_here

    with _progress() as progress:
        task = progress.add_task("indexing", total=len(shards))

        def done(shard: Shard, reason: str | None) -> None:
            progress.advance(task)
            if reason is not None:
                progress.console.print(f"{shard.key} failed: {reason}", style="red", markup=False)

        return run_here(instance, settings, shards, tags=tags, verbose=verbose, done=done)


def _finish(result: BulkResult) -> None:
    totals = result.totals
    documents = totals.get("added", 0) + totals.get("changed", 0)
    click.echo(
        f"{len(result.succeeded)} shards indexed in {result.seconds:.1f} s: {totals.get('added', 0)} documents added, "
        f"{totals.get('changed', 0)} changed, {totals.get('deleted', 0)} deleted, {totals.get('unchanged', 0)} "
        f"unchanged, {totals.get('newly_quarantined', 0)} newly quarantined; {totals.get('embedded', 0)} chunks "
        f"embedded ({totals.get('tokens', 0)} tokens), {totals.get('reused', 0)} reused; "
        f"{documents / max(result.seconds, 1e-9):.1f} documents/s"
    )
    if result.failed:
        raise NamedClickError(
            f"{len(result.failed)} shards failed: {', '.join(shard.key for shard in sorted(result.failed))}; "
            "mend the cause, then run rag-assets backfill --failed"
        )


def _watch(instance: dg.DagsterInstance, backfill_id: str) -> None:
    from rag_assets.defs.launching import watch_backfill

    failed: tuple[str, ...] = ()
    with _progress() as progress:
        task = progress.add_task("backfill", total=None)
        try:
            for seen in watch_backfill(instance, backfill_id):
                failed = seen.failed
                progress.update(task, total=seen.total, completed=seen.succeeded + len(failed))
        except KeyboardInterrupt:
            click.echo(f"\nbackfill {backfill_id} goes on in the daemon; stop it in the UI", err=True)
            raise SystemExit(130) from None
    if failed:
        raise NamedClickError(f"{len(failed)} shards failed: {', '.join(failed)}; then: rag-assets backfill --failed")
    click.echo("all shards are published")


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


if __name__ == "__main__":
    sys.exit(main())
