"""The commands for published versions: history, rollback, release, retire, maintain."""

import shlex

import click

from rag_assets.cli.output import user_name
from rag_assets.settings import PipelineSettings
from rag_serving.cli.errors import NamedClickError
from rag_serving.lake.shards import Shard


@click.command()
@click.argument("shard", metavar="REGION/DEPARTMENT")
def history(shard: str) -> None:
    """Show the published versions of a shard.

    Versions that are marked as kept can be rolled back to. A version that was rolled back to is listed again.
    """
    from rag_assets.pipeline import Pipeline
    from rag_assets.publishing.retention import kept_versions
    from rag_serving.lake.catalog_entry import read_catalog_entry
    from rag_serving.lake.tables import SHARDS

    named = Shard.parse(shard)
    pipeline = Pipeline(PipelineSettings.from_env())
    found = read_catalog_entry(pipeline.lake().objects, named)
    table = pipeline.lake().open(SHARDS, named)
    if found is None or table is None:
        raise NamedClickError(f"{shard} is not published in {pipeline.settings.lake_uri}; see rag-assets status")
    entry, kept = found[0], kept_versions(table)
    for publication in (entry.current, *entry.history):
        what = "current" if publication is entry.current else "kept" if publication.version in kept else "removed"
        run, by = f"run {publication.run_id}", publication.published_by
        click.echo(
            f"version {publication.version:<6} {publication.published_at:%Y-%m-%d %H:%M:%S} UTC  {what:<8} "
            f"{publication.documents} documents, {publication.chunks} chunks, {publication.quarantined} quarantined  "
            + (f"by {run}" if by in ("", run) else f"rolled back to by {by}")
        )
    if entry.hold is not None:
        click.echo(f"held by {entry.hold.by} since {entry.hold.since:%Y-%m-%d %H:%M:%S} UTC")


@click.command()
@click.argument("shard", metavar="REGION/DEPARTMENT")
@click.option(
    "--to",
    type=click.IntRange(min=1),
    metavar="VERSION",
    help="A kept version, see history (default: the previous one).",
)
def rollback(shard: str, to: int | None) -> None:
    """Roll a shard back to an older published version.

    The shard stays on hold until it is released: runs continue to build it but publish nothing.

    Example: rag-assets rollback london/people --to 17
    """
    from rag_assets.pipeline import Pipeline
    from rag_assets.publishing.rollback import rollback as roll_back

    pipeline = Pipeline(PipelineSettings.from_env())
    with pipeline.writer(Shard.parse(shard), holder=f"rollback by {user_name()}") as writer:
        entry = roll_back(writer, by=user_name(), to=to)
    current = entry.current
    click.echo(
        f"{shard} is rolled back to version {current.version} ({current.documents} documents) and on hold: runs "
        f"publish nothing until rag-assets release {shlex.quote(shard)}"
    )


@click.command()
@click.argument("shard", metavar="REGION/DEPARTMENT")
def release(shard: str) -> None:
    """Let runs publish a shard on hold again."""
    from rag_assets.pipeline import Pipeline
    from rag_assets.publishing.rollback import release as let_go

    pipeline = Pipeline(PipelineSettings.from_env())
    with pipeline.writer(Shard.parse(shard), holder=f"release by {user_name()}") as writer:
        entry = let_go(writer)
    if entry is None:
        click.echo(f"{shard} is not on hold")
        return
    click.echo(f"{shard} is released; its next run publishes what was built (start one with rag-assets backfill)")


@click.command()
@click.argument("shard", metavar="REGION/DEPARTMENT")
def retire(shard: str) -> None:
    """Stop serving a shard whose documents are gone from the source, such as a department that was renamed.

    Its tables stay in the lake. Documents that appear in its folder later are indexed and published again.

    Example: rag-assets retire london/personnel
    """
    from rag_assets.pipeline import Pipeline
    from rag_assets.publishing.retire import retire as stop_serving
    from rag_serving.lake.tables import SHARDS

    pipeline = Pipeline(PipelineSettings.from_env())
    named = Shard.parse(shard)
    if pipeline.lake().open(SHARDS, named) is None:
        raise NamedClickError(f"the lake has no shard {shard}; see rag-assets status")
    with pipeline.writer(named, holder=f"retirement by {user_name()}") as writer:
        entry = stop_serving(writer, pipeline.source())
    click.echo(
        f"{shard} is retired: its {entry.current.documents} documents are no longer served"
        if entry is not None
        else f"{shard} was retired before, and is not served"
    )


@click.command()
def maintain() -> None:
    """Compact and clean up the tables of every published shard.

    Works in this process; shards with an active run are skipped.
    """
    from rag_assets.pipeline import Pipeline

    holder = f"maintenance by {user_name()}"
    pipeline = Pipeline(PipelineSettings.from_env())
    if not pipeline.catalog().snapshot().entries:
        click.echo(f"nothing is published in {pipeline.settings.lake_uri}; check RAG_LAKE_URI", err=True)
        return
    report = pipeline.maintain(holder, run_id=holder, log=click.echo)
    click.echo(
        f"{report.shards} shards, {report.tables} tables: {report.versions_removed} old versions removed, "
        f"{report.indexes_rebuilt} indexes rebuilt; {len(report.skipped)} shards skipped"
    )
    if report.failed:
        raise NamedClickError(f"{len(report.failed)} shards failed: {', '.join(sorted(report.failed))}")
