"""The commands that index shards and show their state."""

import click

from rag_assets.cli.output import report_result, run_with_progress, watch_with_progress
from rag_assets.runs.selection import Selection, select_shards
from rag_assets.settings import PipelineSettings
from rag_serving.lake.shards import Shard


@click.command()
@click.option("--region", "regions", multiple=True, help="Only this region; repeatable.")
@click.option("--department", "departments", multiple=True, help="Only this department; repeatable.")
@click.option("--all", "which", flag_value=Selection.ALL.value, help="Every shard.")
@click.option("--missing", "which", flag_value=Selection.MISSING.value, help="Shards that were never published.")
@click.option("--failed", "which", flag_value=Selection.FAILED.value, help="Shards whose latest run failed.")
@click.option("--here", is_flag=True, help="Index in this process, one run per shard, without a daemon.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 256),
    help="With --here: parallel processes (default: one for little work, else one per core).",
)
@click.option("--wait", is_flag=True, help="Wait for the daemon's backfill and show its progress.")
@click.option("--allow-mass-delete", is_flag=True, help="Allow runs to delete most or all documents of a shard.")
@click.option("--accept-worse-retrieval", is_flag=True, help="Publish even if golden questions score lower.")
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
    """Index shards that differ from the source.

    --all, --missing and --failed select shards by state, --region and --department by name. The running Dagster daemon
    executes the backfill and retries crashed runs; with --here, this process and its children do.

    Example: rag-assets backfill --region london --missing --wait
    """
    from rag_assets.defs.build import build_definitions
    from rag_assets.pipeline import Pipeline
    from rag_assets.runs import backfill as runs
    from rag_assets.runs.bulk import processes_for
    from rag_assets.runs.names import Names
    from rag_assets.runs.status import failed_shards
    from rag_assets.sources.listing_digest import listed_objects

    settings = PipelineSettings.from_env()
    names = Names.of(settings)
    with runs.open_instance() as instance:
        state = Pipeline(settings).survey()
        chosen = Selection(which) if which else Selection.CHANGED
        known = sorted(state.listed.keys() | state.published.keys())
        failed = failed_shards(instance, names, known) if chosen is Selection.FAILED else set[Shard]()
        shards = select_shards(chosen, state.listed, state.published, failed, regions=regions, departments=departments)
        click.echo(
            f"{settings.source_uri}: {state.objects} objects in {len(state.listed)} shards; "
            f"{len(shards)} selected ({chosen.value})"
        )
        if state.outside:
            examples = ", ".join(repr(key) for key in state.outside_examples)
            click.echo(f"ignoring {state.outside} keys outside region/department/, such as {examples}")
        if dry_run or not shards:
            click.echo("\n".join(shard.key for shard in shards) if shards else "nothing to do")
            return
        tags = runs.permission_tags(mass_delete=allow_mass_delete, worse_retrieval=accept_worse_retrieval)
        if not here:
            runs.require_daemon(instance)
        if not runs.model_is_exported(settings):
            click.echo(f"exporting the embedding model {settings.embedding_model} into the lake (once)")
            runs.export_model_here(instance, settings, build_definitions(settings))
        if here:
            sizes = {shard: listed_objects(state.listed.get(shard)) for shard in shards}
            shards.sort(key=lambda shard: -sizes[shard])  # a large shard started last would run alone at the end
            jobs = jobs or processes_for(len(shards), sum(sizes.values()))
            result = run_with_progress(instance, settings, shards, tags, verbose, jobs)
            problem = None
            if result.succeeded:
                problem = runs.refresh_company_index_here(instance, settings, build_definitions(settings))
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
            return
        names.add_shards(instance, shards)
        backfill_id = runs.launch_backfill(instance, names, shards, tags)
        click.echo(f"started backfill {backfill_id} of {len(shards)} shards in the daemon")
        if wait:
            watch_with_progress(instance, backfill_id)


@click.command()
def status() -> None:
    """List shards and their state.

    The state is published, changed, missing, gone from the source, or of another embedding model.
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
