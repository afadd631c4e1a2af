"""Output that commands share: progress bars, totals and the user's name."""

import getpass
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from rag_assets.settings import PipelineSettings
from rag_serving.cli.errors import NamedClickError
from rag_serving.lake.shards import Shard

if TYPE_CHECKING:
    import dagster as dg

    from rag_assets.runs.bulk import BulkResult


def user_name() -> str:
    """Return the user's name, for holders of leases and the history of shards."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def run_with_progress(
    instance: "dg.DagsterInstance",
    settings: PipelineSettings,
    shards: Sequence[Shard],
    tags: dict[str, str],
    verbose: bool,
    jobs: int,
) -> "BulkResult":
    """Index the shards in this process or its children and show a progress bar."""
    from rag_assets.defs.build import build_definitions
    from rag_assets.runs.bulk import run_here

    with _progress() as progress:
        task = progress.add_task("indexing", total=len(shards))

        def done(shard: Shard, reason: str | None) -> None:
            progress.advance(task)
            if reason is not None:
                progress.console.print(f"{shard.key} failed: {reason}", style="red", markup=False)

        return run_here(
            instance,
            settings,
            shards,
            tags=tags,
            verbose=verbose,
            at_once=jobs,
            build=build_definitions,
            done=done,
        )


def report_result(result: "BulkResult") -> None:
    """Print the totals and warnings; raise an error that lists the failed shards."""
    totals = result.totals
    documents = totals["added"] + totals["changed"]
    click.echo(
        f"{len(result.succeeded)} shards indexed in {result.seconds:.1f} s: {totals['added']} documents added, "
        f"{totals['changed']} changed, {totals['deleted']} deleted, {totals['unchanged']} unchanged, "
        f"{totals['newly_quarantined']} newly quarantined; {totals['embedded']} chunks embedded "
        f"({totals['tokens']} tokens), {totals['reused']} reused; "
        f"{documents / max(result.seconds, 1e-9):.1f} documents/s"
    )
    for shard, warnings in sorted(result.warnings.items()):
        click.echo(f"{shard.key}: {'; '.join(warnings)}", err=True)
    if result.failed:
        raise NamedClickError(
            f"{len(result.failed)} shards failed: {', '.join(shard.key for shard in sorted(result.failed))}; "
            "fix the cause, then run rag-assets backfill --failed --here"
        )


def watch_with_progress(instance: "dg.DagsterInstance", backfill_id: str) -> None:
    """Show the progress of the daemon's backfill until it ends; raise an error that lists the failed shards."""
    from rag_assets.runs.backfill import watch_backfill

    failed: tuple[str, ...] = ()
    with _progress() as progress:
        task = progress.add_task("backfill", total=None)
        try:
            for seen in watch_backfill(instance, backfill_id):
                failed = seen.failed
                progress.update(task, total=seen.total, completed=seen.succeeded + len(failed))
        except KeyboardInterrupt:
            click.echo(f"\nbackfill {backfill_id} continues in the daemon; cancel it in the UI", err=True)
            raise SystemExit(130) from None
    if failed:
        raise NamedClickError(
            f"{len(failed)} shards failed: {', '.join(failed)}; fix the cause, then run rag-assets backfill --failed"
        )
    click.echo("all shards are published")


def _progress() -> Any:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("shards"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
