"""Work over all shards: the maintenance of their tables, and the check that no shard is left behind."""

import dataclasses

import dagster as dg

from rag_assets.defs.jobs import AssetJob
from rag_assets.defs.resources import PipelineParam
from rag_assets.runs.failures import named_failures, step_retries
from rag_assets.runs.names import MAINTAIN, WATCH, Names
from rag_assets.runs.status import failed_shards
from rag_assets.settings import PipelineSettings

_MOST_NAMED = 50
_WATCHED = (
    "Warns about shards whose latest run failed, that differ from the source, are on hold, or have an invalid catalog "
    "object."
)


@dg.op(retry_policy=step_retries)
def maintain_tables(context: dg.OpExecutionContext, pipeline: PipelineParam) -> None:
    """Compact the tables of every published shard, rebuild fragmented indexes, and remove versions without readers.

    Shards with an active run are skipped.
    """
    holder = f"maintenance, run {context.run_id}"
    with named_failures():
        report = pipeline.maintain(holder, run_id=context.run_id, log=context.log.info)
    context.add_output_metadata(dataclasses.asdict(report))
    if report.failed:
        raise dg.Failure(
            description=f"{len(report.failed)} shards failed: "
            + "; ".join(f"{key}: {why}" for key, why in sorted(report.failed.items())[:_MOST_NAMED]),
            allow_retries=False,
        )


def build_maintenance_job(names: Names) -> dg.JobDefinition:
    """Return the job `maintain`."""

    @dg.job(
        name=names.job(MAINTAIN),
        description="Compact the tables of every published shard, rebuild fragmented indexes, and remove versions that "
        "no reader can use. Shards with an active run are skipped.",
    )
    def maintain() -> None:
        maintain_tables()

    return maintain


def build_standing_check(names: Names) -> dg.AssetChecksDefinition:
    """Return the check `no_shard_left_behind`."""

    @dg.asset_check(
        asset=names.asset("source_objects"),
        description=_WATCHED,
    )
    def no_shard_left_behind(context: dg.AssetCheckExecutionContext, pipeline: PipelineParam) -> dg.AssetCheckResult:
        with named_failures():
            state = pipeline.survey()
        known = sorted(state.listed.keys() | state.published.keys())
        failed = failed_shards(context.instance, names, known)
        behind = [shard for shard in known if state.listed.get(shard) != state.published.get(shard)]
        named = {
            "failed": sorted(shard.key for shard in failed),
            "behind": [shard.key for shard in behind],
            "held": [shard.key for shard in sorted(state.held)],
            "broken": sorted(state.broken),
        }
        found = {what: keys for what, keys in named.items() if keys}
        return dg.AssetCheckResult(
            passed=not found,
            severity=dg.AssetCheckSeverity.ERROR if failed or state.broken else dg.AssetCheckSeverity.WARN,
            description="; ".join(
                f"{len(keys)} {what}: {', '.join(keys[:_MOST_NAMED])}" for what, keys in found.items()
            )
            or f"all {len(known)} shards are published and match the source",
            metadata={
                "shards": len(known),
                **{f"shards_{what}": len(keys) for what, keys in named.items()},
                **{what: dg.JsonMetadataValue(keys) for what, keys in named.items()},
            },
        )

    return no_shard_left_behind


def build_maintenance_schedules(
    settings: PipelineSettings, names: Names, maintain: dg.JobDefinition, watch: AssetJob
) -> list[dg.ScheduleDefinition]:
    """Return the schedules of the maintenance job and of the standing check."""
    return [
        dg.ScheduleDefinition(
            name=names.job("maintenance"),
            job=maintain,
            cron_schedule=settings.maintenance_cron,
            execution_timezone="UTC",
            description="Compacts the tables of every shard and removes versions that no reader can use.",
        ),
        dg.ScheduleDefinition(
            name=names.job(WATCH),
            job=watch,
            cron_schedule=settings.watch_cron,
            execution_timezone="UTC",
            description=_WATCHED,
        ),
    ]
