"""Asset checks: the blocking ones stand between the shard's table and its publish, the quarantine one only warns."""

import warnings
from typing import Any

import dagster as dg

from rag_assets.defs.assets import raw_documents, shards
from rag_assets.defs.execution import named_failures
from rag_assets.defs.partitions import shard_partitions
from rag_assets.defs.resources import WHOLE_TAG, PipelineResource, flag
from rag_assets.ingestion import refused_documents
from rag_assets.publishing import Verdict, check_rows, check_vectors
from rag_assets.writing import unchecked
from rag_serving.shards import Shard


def _shard_check(**options: Any) -> Any:
    """A check of one shard. Dagster marks such checks as a preview, which is for us to know, not for every process."""

    def decorate(function: Any) -> dg.AssetChecksDefinition:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.PreviewWarning)
            return dg.asset_check(partitions_def=shard_partitions, **options)(function)

    return decorate


def _result(verdict: Verdict) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not verdict.problems,
        description="; ".join(verdict.problems) or "sound",
        metadata={"documents": verdict.documents, "chunks": verdict.chunks},
    )


@_shard_check(
    asset=shards,
    blocking=True,
    description="The table holds exactly the documents read and the chunks cut, each once.",
)
def rows_reconcile(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> dg.AssetCheckResult:
    lake, shard = pipeline.lake(), Shard.parse(context.partition_key)
    with named_failures():
        whole = flag(context.run.tags, WHOLE_TAG)
        return _result(check_rows(lake, shard, None if whole else unchecked(lake, shard)))


@_shard_check(
    asset=shards,
    blocking=True,
    description="Vectors are of the configured embedder and of unit length; the indexes cover the rows.",
)
def vectors_sound(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> dg.AssetCheckResult:
    with named_failures():
        identity = pipeline.identity()
        return _result(check_vectors(pipeline.lake(), Shard.parse(context.partition_key), identity))


@_shard_check(
    asset=raw_documents,
    description="No document of the shard is quarantined. Warns; the other documents are published all the same.",
)
def nothing_quarantined(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> dg.AssetCheckResult:
    with named_failures():
        refused = refused_documents(pipeline.lake(), Shard.parse(context.partition_key))
    return dg.AssetCheckResult(
        passed=not refused,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(refused)} quarantined" if refused else "every document was read",
        metadata={"quarantined": len(refused)},
    )


CHECKS = (rows_reconcile, vectors_sound, nothing_quarantined)
