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

    from rag_assets.runs.bulk import BulkResult, Others
    from rag_assets.runs.dagster_api import DagsterApi


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
    others: "Others | None" = None,
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
            others=others,
        )


def counted(count: int, what: str) -> str:
    """Return a count with its noun: 1 shard, 2 shards."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def report_result(result: "BulkResult") -> None:
    """Print the totals and warnings; raise an error that lists the failed shards."""
    totals = result.totals
    documents = totals["added"] + totals["changed"]
    click.echo(
        f"{counted(len(result.succeeded), 'shard')} indexed in {result.seconds:.1f} s: "
        f"{counted(totals['added'], 'document')} added, "
        f"{totals['changed']} changed, {totals['deleted']} deleted, {totals['unchanged']} unchanged, "
        f"{totals['newly_quarantined']} newly quarantined; {totals['embedded']} chunks embedded "
        f"({totals['tokens']} tokens), {totals['reused']} reused; "
        f"{documents / max(result.seconds, 1e-9):.1f} documents/s"
    )
    if result.elsewhere:
        click.echo(f"{counted(len(result.elsewhere), 'shard')} indexed by other processes meanwhile")
    for shard, warnings in sorted(result.warnings.items()):
        click.echo(f"{shard.key}: {'; '.join(warnings)}", err=True)
    if result.failed:
        raise NamedClickError(
            f"{counted(len(result.failed), 'shard')} failed: {', '.join(sorted(map(str, result.failed)))}; fix the "
            "cause, then run rag-assets backfill --failed --here"
        )


def watch_with_progress(dagster: "DagsterApi", backfill_id: str) -> None:
    """Show the progress of the daemon's backfill until it ends; raise an error that lists what failed, and why."""
    from rag_assets.runs.backfill import watch_backfill

    with _progress() as progress:
        task = progress.add_task("backfill", total=None)
        seen = watch_backfill(
            dagster,
            backfill_id,
            lambda now: progress.update(
                task, total=now.total, completed=now.succeeded + len(now.failed) + len(now.terminated)
            ),
        )
    for shard, run_id in sorted(seen.failed.items()):
        click.echo(f"{shard} failed: {dagster.failure_reason(run_id)}", err=True)
    if seen.error is not None:
        raise NamedClickError(f"the daemon refused backfill {backfill_id}: {seen.error}")
    problems: list[str] = []
    if seen.failed:
        problems.append(
            f"{counted(len(seen.failed), 'shard')} failed: {', '.join(sorted(seen.failed))}; fix the cause, then run "
            "rag-assets backfill --failed"
        )
    if seen.terminated:
        problems.append(
            f"{counted(len(seen.terminated), 'run')} terminated: {', '.join(seen.terminated)}; run rag-assets backfill "
            "to continue"
        )
    if problems:
        raise NamedClickError("\n".join(problems))
    if seen.succeeded < seen.total:
        raise NamedClickError(
            f"backfill {backfill_id} was canceled after {seen.succeeded} of {counted(seen.total, 'shard')}"
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
        progress.TextColumn("elapsed,"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("left"),
        console=Console(stderr=True),
    )
