"""What commands print: progress bars, totals, and who ran them."""

from __future__ import annotations

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
    """Who is at the keyboard, for the history that others read."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def run_with_progress(
    instance: dg.DagsterInstance,
    settings: PipelineSettings,
    shards: Sequence[Shard],
    tags: dict[str, str],
    verbose: bool,
    jobs: int,
) -> BulkResult:
    """Index the shards in this process or its children, with a progress bar."""
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


def report_result(result: BulkResult) -> None:
    """Print the totals; raise an error that names the shards that failed."""
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


def watch_with_progress(instance: dg.DagsterInstance, backfill_id: str) -> None:
    """Follow a backfill of the daemon until it ends; raise an error that names the shards that failed."""
    from rag_assets.runs.backfill import watch_backfill

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
