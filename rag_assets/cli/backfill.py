"""The commands that index shards and show their state."""

import random
import shlex
from typing import TYPE_CHECKING

import click

from rag_assets.cli.output import counted, report_result, run_with_progress, watch_with_progress
from rag_assets.runs.selection import Selection, select_shards
from rag_assets.settings import PipelineSettings
from rag_serving.lake.shards import Shard

if TYPE_CHECKING:
    import dagster as dg

    from rag_assets.arrivals.shard_status import ShardStates

_REFRESH_WAIT = 600.0
"""Seconds to wait while another machine refreshes the company index."""


@click.command()
@click.option("--region", "regions", multiple=True, help="Only this region; repeatable.")
@click.option("--department", "departments", multiple=True, help="Only this department; repeatable.")
@click.option("--all", "every", is_flag=True, help="Every shard.")
@click.option("--missing", is_flag=True, help="Shards that were never published.")
@click.option("--failed", is_flag=True, help="Shards whose latest run failed.")
@click.option("--here", is_flag=True, help="Index in this process, one run per shard, without a daemon.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 256),
    help="With --here: parallel processes (default: one for little work, else one per core).",
)
@click.option("--location", help="Code location of the daemon, if several have the pipeline.")
@click.option("--wait", is_flag=True, help="Wait for the daemon's backfill and show its progress.")
@click.option("--allow-mass-delete", is_flag=True, help="Allow runs to delete most or all documents of a shard.")
@click.option("--accept-worse-retrieval", is_flag=True, help="Publish even if golden questions score lower.")
@click.option("--dry-run", is_flag=True, help="Print the shards and stop.")
@click.option("-v", "--verbose", is_flag=True, help="With --here: print each step's log.")
def backfill(
    regions: tuple[str, ...],
    departments: tuple[str, ...],
    every: bool,
    missing: bool,
    failed: bool,
    here: bool,
    jobs: int | None,
    location: str | None,
    wait: bool,
    allow_mass_delete: bool,
    accept_worse_retrieval: bool,
    dry_run: bool,
    verbose: bool,
) -> None:
    """Index shards that differ from the source.

    --all, --missing and --failed select shards by state, --region and --department by name. The running Dagster daemon
    executes the backfill and retries crashed runs; with --here, this process and its children do. The daemon is that of
    DAGSTER_HOME, or of the web server at RAG_DAGSTER_URL.

    Example: rag-assets backfill --region london --missing --wait
    """
    from rag_assets.pipeline import Pipeline
    from rag_assets.runs import backfill as runs
    from rag_assets.sources.listing_digest import listed_objects, listing_digest

    if every + missing + failed > 1:
        raise click.UsageError("choose one of --all, --missing and --failed")
    settings = PipelineSettings.from_env()
    if not here:
        runs.require_shared_settings(settings)
    state = Pipeline(settings).survey()
    chosen = Selection.CHANGED
    if every or missing or failed:
        chosen = Selection.ALL if every else Selection.MISSING if missing else Selection.FAILED
    unpublished = _failed_shards(settings, state, here=here, location=location) if failed else set[Shard]()
    shards = select_shards(chosen, state.listed, state.published, unpublished, regions=regions, departments=departments)
    gone = list(state.listed.values()).count(listing_digest(()))
    click.echo(
        f"{settings.source_uri}: {counted(state.objects, 'object')} in {counted(len(state.listed) - gone, 'shard')}"
        f"{f', {gone} gone from the source' if gone else ''}; {len(shards)} selected ({chosen.value})"
    )
    if state.left_out.counts:
        click.echo(f"left out: {state.left_out}")
    if not state.objects:
        click.echo(
            "no document was found: put documents into folders region/department/ below the source, for example "
            "emea/hr/leave.md",
            err=True,
        )
    if dry_run or not shards:
        click.echo("\n".join(shard.key for shard in shards) if shards else "nothing to do")
        return
    tags = runs.permission_tags(mass_delete=allow_mass_delete, worse_retrieval=accept_worse_retrieval)
    # A large shard started last would run alone at the end. Random among those of about one size, so that several
    # machines on one lake begin with different shards.
    random.shuffle(shards)
    shards.sort(key=lambda shard: -listed_objects(state.listed.get(shard)).bit_length())
    if here:
        _index_here(settings, state, shards, tags, jobs=jobs, verbose=verbose)
    else:
        launch_in_daemon(settings, shards, tags, location=location, wait=wait)


def _failed_shards(settings: PipelineSettings, state: "ShardStates", *, here: bool, location: str | None) -> set[Shard]:
    from rag_assets.runs import backfill as runs
    from rag_assets.runs.names import Names
    from rag_assets.runs.status import failed_shards

    if settings.dagster_url is not None and not here:
        with runs.open_dagster(settings, location) as dagster:
            return dagster.failed_shards()
    with runs.open_instance() as instance:
        return failed_shards(instance, Names.of(settings), sorted(state.listed.keys() | state.published.keys()))


def _index_here(
    settings: PipelineSettings,
    state: "ShardStates",
    shards: list[Shard],
    tags: dict[str, str],
    *,
    jobs: int | None,
    verbose: bool,
) -> None:
    from rag_assets.arrivals.shard_status import OtherIndexers
    from rag_assets.defs.build import build_definitions
    from rag_assets.pipeline import Pipeline
    from rag_assets.runs import backfill as runs
    from rag_assets.runs.bulk import processes_for
    from rag_assets.sources.listing_digest import listed_objects

    with runs.open_instance() as instance:
        _export_model(instance, settings)
        objects = sum(listed_objects(state.listed.get(shard)) for shard in shards)
        jobs = jobs or processes_for(len(shards), objects, settings.usable_cores)
        pipeline = Pipeline(settings)
        others = OtherIndexers(pipeline.lake().objects, state, pipeline.fingerprint(), pipeline.source().uri(""))
        result = run_with_progress(instance, settings, shards, tags, verbose, jobs, others)
        problem = None
        if result.succeeded:
            patient = settings.model_copy(update={"lease_wait": max(settings.lease_wait, _REFRESH_WAIT)})
            problem = runs.refresh_company_index_here(instance, patient, build_definitions(patient))
    if problem is not None:
        click.echo(
            f"the company index is out of date ({problem}): questions over many shards are slower until "
            "company_index is materialized",
            err=True,
        )
    held = [f"{shard} (held by {state.held[shard]})" for shard in result.succeeded if shard in state.held]
    if held:
        click.echo(f"built but not published: {', '.join(held)}; see rag-assets release", err=True)
    report_result(result)


def launch_in_daemon(
    settings: PipelineSettings, shards: list[Shard], tags: dict[str, str], *, location: str | None, wait: bool
) -> None:
    """Start a backfill of the shards in the daemon, and watch it if `wait`; raise an error if it refuses or fails."""
    import dagster as dg

    from rag_assets.runs import backfill as runs

    with runs.open_dagster(settings, location) as dagster:
        dagster.require_shared_lake(settings.lake_uri)
        dagster.require_daemon()
        # A web server elsewhere has no record of an export in this process.
        with dg.DagsterInstance.ephemeral() if settings.dagster_url else runs.open_instance() as instance:
            _export_model(instance, settings)
        dagster.add_shards(shards)
        backfill_id = dagster.launch(shards, tags)
        click.echo(f"started backfill {backfill_id} of {counted(len(shards), 'shard')} in the daemon")
        click.echo("waiting for the daemon's first run; it looks for new backfills every half minute", err=True)
        try:
            if wait:
                watch_with_progress(dagster, backfill_id)
            else:
                runs.wait_for_start(dagster, backfill_id)
        except KeyboardInterrupt:
            click.echo(f"\nbackfill {backfill_id} continues in the daemon; cancel it in the UI", err=True)
            raise SystemExit(130) from None


def _export_model(instance: "dg.DagsterInstance", settings: PipelineSettings) -> None:
    from rag_assets.defs.build import build_definitions
    from rag_assets.runs import backfill as runs

    if not runs.model_is_exported(settings):
        click.echo(f"exporting the embedding model {settings.embedding_model} into the lake (once)")
        runs.export_model_here(instance, settings, build_definitions(settings))


@click.command()
def status() -> None:
    """List shards and their state.

    The state is published, changed, missing, gone from the source, to be indexed again, or on hold. Shards
    are to be indexed again after another embedding model, source or format.
    """
    from rag_assets.pipeline import Pipeline
    from rag_assets.sources.listing_digest import listing_digest

    state = Pipeline(PipelineSettings.from_env()).survey()
    empty = listing_digest(())
    for shard in sorted(state.listed.keys() | state.published.keys()):
        listed, published = state.listed.get(shard), state.published.get(shard)
        if listed == published:
            word = "published"
        elif published is None:
            word = "missing"
        elif not published:
            word = "to be indexed again"
        else:
            retire = f"gone from the source, still served until rag-assets retire {shlex.quote(shard.key)}"
            word = retire if listed == empty else "changed"
        if shard in state.held:
            word = "on hold" if word == "published" else f"{word}, on hold"
            word += (
                f" by {state.held[shard]}: serves an older version until rag-assets release {shlex.quote(shard.key)}"
            )
        without = state.left_out.of_shard(shard)
        click.echo(f"{shard.key:<50} {word}{f' ({without} left out)' if without else ''}")
    for key, why in sorted(state.broken.items()):
        click.echo(f"{key}: {why}", err=True)
    if state.left_out.counts:
        click.echo(f"left out: {state.left_out}", err=True)
