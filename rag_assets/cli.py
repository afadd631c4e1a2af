"""The command `rag-assets`: backfills from the command line, and the state of every shard."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from rag_assets.backfills import Which, select_shards
from rag_assets.extraction import QuarantineReason
from rag_assets.settings import PipelineSettings
from rag_serving.cli import NamedClickError, NamedErrorGroup
from rag_serving.shards import Shard

if TYPE_CHECKING:
    import dagster as dg

    from rag_assets.defs.bulk import BulkResult


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
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 256),
    help="With --here: processes that index at once (default: one for little work, else one a core).",
)
@click.option("--wait", is_flag=True, help="Wait for the daemon's backfill, with a progress bar.")
@click.option("--allow-mass-delete", is_flag=True, help="Let a run delete most or all of a shard's documents.")
@click.option("--accept-worse-retrieval", is_flag=True, help="Publish even what answers golden questions worse.")
@click.option("--dry-run", is_flag=True, help="Print the shards and stop.")
@click.option("-v", "--verbose", is_flag=True, help="With --here: print each step's log.")
def backfill(
    regions: tuple[str, ...],
    departments: tuple[str, ...],
    which: str | None,
    here: bool,
    jobs: int | None,
    wait: bool,
    allow_mass_delete: bool,
    accept_worse_retrieval: bool,
    dry_run: bool,
    verbose: bool,
) -> None:
    """Index shards: those that differ from the source, or --all, --missing, --failed of the regions and departments.

    The backfill is handed to the running Dagster daemon, which retries crashed runs. With --here this process does
    the work itself: a few warm processes, one Dagster run per shard, each under its lease.
    """
    from rag_assets.arrivals import listed_objects
    from rag_assets.defs import launching
    from rag_assets.defs import state as state_of
    from rag_assets.defs.bulk import processes_for
    from rag_assets.defs.partitions import add_shards
    from rag_assets.defs.resources import PipelineResource

    settings = PipelineSettings.from_env()
    with launching.open_instance() as instance:
        state = state_of.survey(PipelineResource.from_settings(settings))
        chosen = Which(which) if which else Which.CHANGED
        known = sorted(state.listed.keys() | state.published.keys())
        failed = state_of.failed_shards(instance, known) if chosen is Which.FAILED else set[Shard]()
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
        tags = launching.permission_tags(mass_delete=allow_mass_delete, worse_retrieval=accept_worse_retrieval)
        if not here:
            launching.require_daemon(instance)
        if not launching.model_is_exported(settings):
            click.echo(f"exporting the embedding model {settings.embedding_model} into the lake, once")
            launching.export_model_here(instance, settings)
        if here:
            sizes = {shard: listed_objects(state.listed.get(shard)) for shard in shards}
            shards.sort(key=lambda shard: -sizes[shard])  # a large one last would end alone
            jobs = jobs or processes_for(len(shards), sum(sizes.values()))
            result = _run_here(instance, settings, shards, tags, verbose, jobs)
            problem = launching.refresh_company_index_here(instance, settings) if result.succeeded else None
            if problem is not None:
                click.echo(
                    f"the company index is behind ({problem}); questions over many shards are answered all the same, "
                    "if slower. Materialize company_index",
                    err=True,
                )
            _finish(result)
            return
        add_shards(instance, shards)
        backfill_id = launching.launch_backfill(instance, shards, tags)
        click.echo(f"backfill {backfill_id} of {len(shards)} shards is with the daemon")
        if wait:
            _watch(instance, backfill_id)


@main.command()
def status() -> None:
    """Show every shard: published, changed since, missing, gone from the source, or of another embedding model."""
    from rag_assets.arrivals import listing_digest
    from rag_assets.defs.resources import PipelineResource
    from rag_assets.defs.state import survey

    state = survey(PipelineResource.from_settings(PipelineSettings.from_env()))
    empty = listing_digest(())
    for shard in sorted(state.listed.keys() | state.published.keys()):
        listed, published = state.listed.get(shard), state.published.get(shard)
        if listed == published:
            word = "published"
        elif published is None:
            word = "missing"
        elif not published:
            word = "of another embedding model"
        else:
            word = "gone from the source" if listed == empty else "changed"
        if shard in state.held:
            word += f", held by {state.held[shard]}"
        click.echo(f"{shard.key:<50} {word}")
    for key, why in sorted(state.broken.items()):
        click.echo(f"{key}: {why}", err=True)
    if state.outside:
        click.echo(f"{state.outside} keys outside region/department/", err=True)


@main.group()
def quarantine() -> None:
    """Documents that could not be read: which, why, and how to have them tried again."""


def _quarantined(keys: Sequence[str]) -> list[tuple[Shard, dict[str, Any]]]:
    from rag_assets.defs.resources import PipelineResource
    from rag_assets.ingestion import refused_documents

    pipeline = PipelineResource.from_settings(PipelineSettings.from_env())
    shards = [Shard.parse(key) for key in keys] or sorted(pipeline.catalog().snapshot().entries)
    return [(shard, row) for shard in shards for row in refused_documents(pipeline.lake(), shard)]


def _name_of(row: dict[str, Any]) -> str:
    return row["key"] + (f"#{row['part']}" if row["part"] else "")


@quarantine.command("list")
@click.argument("shards", nargs=-1, metavar="[REGION/DEPARTMENT]...")
@click.option("--reason", type=click.Choice([reason.value for reason in QuarantineReason]), help="Only this reason.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def list_quarantined(shards: tuple[str, ...], reason: str | None, as_json: bool) -> None:
    """List the quarantined documents of those shards, or of all published ones."""
    rows = [row for _, row in _quarantined(shards) if reason in (None, row["reason"])]
    for row in rows:
        if as_json:
            click.echo(json.dumps(row, default=str, ensure_ascii=False))
        else:
            click.echo(f"{row['reason']:<17} {row['attempts']:>3}x  {_name_of(row)}")
    if not as_json:
        click.echo(f"{len(rows)} quarantined", err=True)


@quarantine.command("show")
@click.argument("key")
def show_quarantined(key: str) -> None:
    """Show all that is known of one quarantined document; KEY is its key in the source."""
    for name, value in _one_quarantined(key)[1].items():
        if name not in ("doc_id", "object_id"):
            click.echo(f"{name:<11} {value}")


@quarantine.command("retry")
@click.argument("keys", nargs=-1)
@click.option("--shard", "shards", multiple=True, metavar="REGION/DEPARTMENT", help="All of this shard's.")
@click.option("--reason", type=click.Choice([reason.value for reason in QuarantineReason]), help="Only this reason.")
@click.option("--here", is_flag=True, help="Try them again now, in this process, without a daemon.")
def retry_quarantined(keys: tuple[str, ...], shards: tuple[str, ...], reason: str | None, here: bool) -> None:
    """Have documents tried again: those KEYS, or all of a shard. The next run of their shards does it."""
    from rag_assets.defs import launching
    from rag_assets.defs.partitions import add_shards
    from rag_assets.defs.resources import PipelineResource
    from rag_assets.ingestion import retry_documents

    if not keys and not shards:
        raise click.UsageError("name the keys to try again, or a --shard")
    chosen = [_one_quarantined(key) for key in keys] + (_quarantined(shards) if shards else [])
    by_shard: dict[Shard, set[str]] = {}
    for shard, row in chosen:
        if reason in (None, row["reason"]):
            by_shard.setdefault(shard, set()).add(row["object_id"])
    if not by_shard:
        click.echo("nothing to do")
        return
    settings = PipelineSettings.from_env()
    pipeline = PipelineResource.from_settings(settings)
    with launching.open_instance() as instance:
        if not here:
            launching.require_daemon(instance)
        for shard, object_ids in sorted(by_shard.items()):
            with pipeline.writer(shard, holder=f"quarantine retry by {_who()}") as writer:
                retry_documents(writer, sorted(object_ids))
        count = sum(map(len, by_shard.values()))
        click.echo(f"{count} documents of {len(by_shard)} shards will be tried again")
        if here:
            _finish(_run_here(instance, settings, sorted(by_shard), {}, verbose=False, jobs=1))
            return
        add_shards(instance, by_shard)
        backfill_id = launching.launch_backfill(instance, sorted(by_shard), {})
        click.echo(f"backfill {backfill_id} of {len(by_shard)} shards is with the daemon")


def _one_quarantined(key: str) -> tuple[Shard, dict[str, Any]]:
    from rag_assets.sources import shard_of

    shard = shard_of(key.partition("#")[0])
    if shard is None:
        raise NamedClickError(f"{key!r} is no key of a document: region/department/name")
    for _, row in _quarantined([shard.key]):
        if _name_of(row) == key:
            return shard, row
    raise NamedClickError(f"{key} is not quarantined; see rag-assets quarantine list {shard.key}")


@main.command()
@click.argument("shard", metavar="REGION/DEPARTMENT")
def history(shard: str) -> None:
    """Show what was published of a shard: when, by whom, with how many documents; the versions to go back to."""
    from rag_assets.defs.resources import PipelineResource
    from rag_assets.publishing import kept_versions
    from rag_serving.catalog import read_catalog_entry
    from rag_serving.tables import SHARDS

    named = Shard.parse(shard)
    pipeline = PipelineResource.from_settings(PipelineSettings.from_env())
    found = read_catalog_entry(pipeline.lake().objects, named)
    table = pipeline.lake().open(SHARDS, named)
    if found is None or table is None:
        raise NamedClickError(f"{shard} was never published")
    entry, kept = found[0], kept_versions(table)
    for publication in (entry.current, *entry.history):
        what = "current" if publication is entry.current else "kept" if publication.version in kept else "removed"
        click.echo(
            f"version {publication.version:<6} {publication.published_at:%Y-%m-%d %H:%M:%S} UTC  {what:<8} "
            f"{publication.documents} documents, {publication.chunks} chunks, {publication.quarantined} quarantined  "
            f"by {publication.published_by}"
        )
    if entry.hold is not None:
        click.echo(f"held by {entry.hold.by} since {entry.hold.since:%Y-%m-%d %H:%M:%S} UTC")


@main.command()
@click.argument("shard", metavar="REGION/DEPARTMENT")
@click.option("--to", type=int, metavar="VERSION", help="The version to go back to (see history); else the last one.")
def rollback(shard: str, to: int | None) -> None:
    """Send readers of a shard back to an older published version, and hold it there until it is released."""
    from rag_assets.defs.resources import PipelineResource
    from rag_assets.publishing import rollback as roll_back

    pipeline = PipelineResource.from_settings(PipelineSettings.from_env())
    with pipeline.writer(Shard.parse(shard), holder=f"rollback by {_who()}") as writer:
        entry = roll_back(writer, by=_who(), to=to)
    current = entry.current
    click.echo(
        f"{shard} is at version {current.version} again ({current.documents} documents), and held there: runs go on "
        f"building, and publish after rag-assets release {shlex.quote(shard)}"
    )


@main.command()
@click.argument("shard", metavar="REGION/DEPARTMENT")
def release(shard: str) -> None:
    """Let runs publish a held shard again."""
    from rag_assets.defs.resources import PipelineResource
    from rag_assets.publishing import release as let_go

    pipeline = PipelineResource.from_settings(PipelineSettings.from_env())
    with pipeline.writer(Shard.parse(shard), holder=f"release by {_who()}") as writer:
        entry = let_go(writer)
    if entry is None:
        click.echo(f"{shard} is not held")
        return
    click.echo(f"{shard} is released; its next run publishes what was built (or: rag-assets backfill)")


@main.command()
def maintain() -> None:
    """Compact and clean up the tables of every published shard now, in this process."""
    from rag_assets.defs.resources import PipelineResource
    from rag_assets.maintenance import maintain_shards

    pipeline = PipelineResource.from_settings(PipelineSettings.from_env())
    report = maintain_shards(
        sorted(pipeline.catalog().snapshot().entries),
        lambda shard: pipeline.writer(shard, holder=f"maintenance by {_who()}", wait=0),
        pipeline.identity(),
        run_id=f"maintenance by {_who()}",
        keep=pipeline.keep_published,
        pin_seconds=pipeline.reader_pin_seconds,
        log=click.echo,
        quality=pipeline.quality(),
    )
    click.echo(
        f"{report.shards} shards, {report.tables} tables: {report.versions_removed} old versions removed, "
        f"{report.indexes_rebuilt} indexes rebuilt; {len(report.skipped)} shards were busy"
    )
    if report.failed:
        raise NamedClickError(f"{len(report.failed)} shards failed: {', '.join(sorted(report.failed))}")


def _who() -> str:
    """Who is at the keyboard, for the history that others read."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def _run_here(
    instance: dg.DagsterInstance,
    settings: PipelineSettings,
    shards: Sequence[Shard],
    tags: dict[str, str],
    verbose: bool,
    jobs: int,
) -> BulkResult:
    from rag_assets.defs.bulk import run_here

    with _progress() as progress:
        task = progress.add_task("indexing", total=len(shards))

        def done(shard: Shard, reason: str | None) -> None:
            progress.advance(task)
            if reason is not None:
                progress.console.print(f"{shard.key} failed: {reason}", style="red", markup=False)

        return run_here(instance, settings, shards, tags=tags, verbose=verbose, at_once=jobs, done=done)


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
