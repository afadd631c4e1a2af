"""What runs over all shards at once: the upkeep of their tables, and the standing check that none is left behind."""

import dataclasses

import dagster as dg

from rag_assets.defs.jobs import AssetJob
from rag_assets.defs.resources import PipelineParam
from rag_assets.publishing.maintenance import maintain_shards
from rag_assets.runs.failures import named_failures, step_retries
from rag_assets.runs.names import MAINTAIN, WATCH, Names
from rag_assets.runs.status import failed_shards
from rag_assets.settings import PipelineSettings

_MOST_NAMED = 50


@dg.op(
    retry_policy=step_retries,
    description="Compacts the tables of every published shard, rebuilds worn indexes, and removes versions that no "
    "reader can be on any more. A shard that a run is on is left for the next time.",
)
def maintain_tables(context: dg.OpExecutionContext, pipeline: PipelineParam) -> None:
    with named_failures():
        report = maintain_shards(
            sorted(pipeline.catalog().snapshot().entries),
            lambda shard: pipeline.writer(shard, holder=f"maintenance, run {context.run_id}", wait=0),
            pipeline.identity(),
            run_id=context.run_id,
            keep=pipeline.settings.keep_published,
            pin_seconds=pipeline.settings.reader_pin_seconds,
            log=context.log.info,
            quality=pipeline.quality(),
        )
    context.add_output_metadata(dataclasses.asdict(report))
    if report.failed:
        raise dg.Failure(
            description=f"{len(report.failed)} shards failed: "
            + "; ".join(f"{key}: {why}" for key, why in sorted(report.failed.items())[:_MOST_NAMED]),
            allow_retries=False,
        )


def build_maintenance_job(names: Names) -> dg.JobDefinition:
    @dg.job(name=names.job(MAINTAIN), description="Maintain every shard's tables; see maintain_tables.")
    def maintain() -> None:
        maintain_tables()

    return maintain


def build_standing_check(names: Names) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=names.asset("source_objects"),
        description="No shard is left behind: none whose latest run failed, none that differs from the source or is "
        "held at an older version, none whose catalog object is broken. Names those that are.",
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
            or f"all {len(known)} shards are published as the source has them",
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
    return [
        dg.ScheduleDefinition(
            name=names.job("maintenance"),
            job=maintain,
            cron_schedule=settings.maintenance_cron,
            execution_timezone="UTC",
            description="Compacts and cleans up every shard's tables.",
        ),
        dg.ScheduleDefinition(
            name=names.job(WATCH),
            job=watch,
            cron_schedule=settings.watch_cron,
            execution_timezone="UTC",
            description="Evaluates no_shard_left_behind, which names shards that failed, lag behind or are held.",
        ),
    ]
