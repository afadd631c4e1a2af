"""Asset checks: those that fail prevent a publish; `nothing_quarantined` and `languages_read` only warn."""

import dataclasses
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import dagster as dg

from rag_assets.defs.assets import quality_numbers
from rag_assets.defs.resources import PipelineParam
from rag_assets.evaluation.evaluate import Assessment, assess
from rag_assets.evaluation.records import Evaluation
from rag_assets.pipeline import Pipeline
from rag_assets.publishing.checks import CheckResult, check_coverage, check_languages, check_rows, check_vectors
from rag_assets.runs.failures import named_failures, step_retries
from rag_assets.runs.names import Names
from rag_assets.runs.tags import ACCEPT_WORSE_TAG, WHOLE_TAG, flag
from rag_assets.stages.document_state import quarantined_documents
from rag_assets.storage.lake import Lake
from rag_assets.storage.shard_writer import dirty_documents
from rag_serving.lake.shards import Shard

_MOST_SHOWN = 20
_MOST_INVALID_SHOWN = 50


def _result(verdict: CheckResult) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not verdict.problems,
        description="; ".join(verdict.problems) or "sound",
        metadata={"documents": verdict.documents, "chunks": verdict.chunks},
    )


def _looked_at(context: dg.AssetCheckExecutionContext, lake: Lake, shard: Shard) -> Sequence[str] | None:
    """Return the ids of the documents to check; None for all."""
    return None if flag(context.run.tags, WHOLE_TAG) else dirty_documents(lake, shard)


def passages_cover_documents(context: dg.AssetCheckExecutionContext, pipeline: PipelineParam) -> dg.AssetCheckResult:
    """Fails unless the passages of each document come from its current version and cover all of its text."""
    lake, shard = pipeline.lake(), Shard.parse(context.partition_key)
    with named_failures():
        return _result(check_coverage(lake, shard, _looked_at(context, lake, shard)))


def _languages_read(pipeline: Pipeline, shard: Shard) -> dg.AssetCheckResult:
    languages, problem = check_languages(pipeline.lake(), shard, pipeline.identity())
    return dg.AssetCheckResult(
        passed=problem is None,
        severity=dg.AssetCheckSeverity.WARN,
        description=problem or "the embedding model reads the languages of the documents",
        metadata={"chunks_by_language": languages},
    )


def _retrieval_holds(context: dg.AssetCheckExecutionContext, pipeline: PipelineParam) -> dg.AssetCheckResult:
    # A user who executes the checks alone wants figures even if this version was measured before.
    alone = not context.job_def.asset_layer.executable_asset_keys
    return _assessed(
        assess(
            pipeline.lake(),
            Shard.parse(context.partition_key),
            pipeline.identity(),
            pipeline.quality(accept_worse=flag(context.run.tags, ACCEPT_WORSE_TAG)),
            run_id=context.run.run_id,
            again=alone or flag(context.run.tags, WHOLE_TAG),
        )
    )


def table_is_sound(context: dg.AssetCheckExecutionContext, pipeline: PipelineParam) -> Iterator[dg.AssetCheckResult]:
    """Run the selected checks of the search table."""
    chosen = {key.name: key.asset_key for key in context.selected_asset_check_keys}
    lake, shard = pipeline.lake(), Shard.parse(context.partition_key)
    with named_failures():
        looked_at = _looked_at(context, lake, shard)
        checks: dict[str, Callable[[], dg.AssetCheckResult]] = {
            "rows_reconcile": lambda: _result(check_rows(lake, shard, looked_at)),
            "vectors_sound": lambda: _result(
                check_vectors(lake, shard, pipeline.identity(), pipeline.embedder, looked_at)
            ),
            "retrieval_holds": lambda: _retrieval_holds(context, pipeline),
            "languages_read": lambda: _languages_read(pipeline, shard),
        }
        # Run all of them before yielding the first: a retried step would report it twice.
        found = {name: check() for name, check in checks.items() if name in chosen}
    for name, result in found.items():
        yield result._replace(asset_key=chosen[name], check_name=name)


def _assessed(found: Assessment) -> dg.AssetCheckResult:
    evaluation = found.evaluation
    said = [*found.problems, *found.warnings]
    if found.gone:
        said.append(f"{len(found.gone)} documents of golden questions are no longer in the source")
    if evaluation is None:
        said.append(f"not measured: {found.reason}")
    elif evaluation.head is None:
        said.append("no golden questions were asked")
    else:
        scores = evaluation.head.hybrid
        said.append(
            f"{evaluation.questions} golden questions: hit@10 {scores.hit_at_10:.3f}, nDCG@10 {scores.ndcg_at_10:.3f}"
        )
    metadata: dict[str, Any] = {"measured": evaluation is not None, **quality_numbers(evaluation)}
    if evaluation is not None:
        metadata |= {"questions": evaluation.questions, "questions_gone": evaluation.gone}
        for prefix, scores in (
            ("vector", evaluation.head and evaluation.head.vector),
            ("text", evaluation.head and evaluation.head.text),
            ("published", evaluation.published and evaluation.published.hybrid),
        ):
            if scores is not None:
                metadata |= {f"{prefix}_{name}": round(value, 4) for name, value in dataclasses.asdict(scores).items()}
    if found.history:
        metadata["history"] = _history(found.history[:_MOST_SHOWN])
    if found.golden.invalid:
        lines = [dg.TableRecord(dataclasses.asdict(at)) for at in found.golden.invalid[:_MOST_INVALID_SHOWN]]
        metadata["invalid_lines"] = dg.TableMetadataValue(lines, schema=None)
    for name, values in (
        ("documents_gone", found.gone),
        ("questions_missed", found.missed),
        ("questions_lost", found.lost),
    ):
        if values:
            metadata[name] = dg.JsonMetadataValue(list(values[:_MOST_INVALID_SHOWN]))
    return dg.AssetCheckResult(
        passed=not found.problems and not found.warnings,
        severity=dg.AssetCheckSeverity.ERROR if found.problems else dg.AssetCheckSeverity.WARN,
        description="; ".join(said),
        metadata=metadata,
    )


def _history(evaluations: Sequence[Evaluation]) -> dg.TableMetadataValue:
    numbers = ("hit_at_1", "hit_at_10", "mrr_at_10", "ndcg_at_10", "index_recall")
    records = [
        dg.TableRecord(
            {
                "at": evaluation.at.isoformat(timespec="seconds"),
                "version": evaluation.version,
                "compared_with": evaluation.compared_with,
                "questions": evaluation.questions,
                **{name: quality_numbers(evaluation).get(name) for name in numbers},
            }
        )
        for evaluation in evaluations
    ]
    types = {"at": "string", **dict.fromkeys(("version", "compared_with", "questions"), "int")}
    schema = dg.TableSchema.from_name_type_dict({**types, **dict.fromkeys(numbers, "float")})
    return dg.TableMetadataValue(records=records, schema=schema)


def nothing_quarantined(context: dg.AssetCheckExecutionContext, pipeline: PipelineParam) -> dg.AssetCheckResult:
    """Warns if documents are quarantined. The others are published anyway."""
    shard = Shard.parse(context.partition_key)
    with named_failures():
        refused = quarantined_documents(pipeline.lake(), shard)
    many = f"{len(refused)} documents are" if len(refused) > 1 else "1 document is"
    return dg.AssetCheckResult(
        passed=not refused,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{many} quarantined; see rag-assets quarantine list {shlex.quote(shard.key)}"
        if refused
        else "every document was read",
        metadata={"quarantined": len(refused)},
    )


def build_asset_checks(names: Names) -> list[dg.AssetChecksDefinition]:
    """Return the checks of a shard's assets."""

    def spec(name: str, description: str, *, blocking: bool = True) -> dg.AssetCheckSpec:
        return dg.AssetCheckSpec(
            name,
            asset=names.asset("shards"),
            blocking=blocking,
            partitions_def=names.partitions,
            description=description,
        )

    with warnings.catch_warnings():
        # Dagster warns in every process that partitioned checks are a preview.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        shard_check = partial(dg.asset_check, partitions_def=names.partitions, retry_policy=step_retries)
        return [
            shard_check(asset=names.asset("raw_documents"))(nothing_quarantined),
            shard_check(asset=names.asset("chunks"), blocking=True)(passages_cover_documents),
            # One step for all of them: for an unchanged shard, Dagster's steps are nearly all of the cost.
            dg.multi_asset_check(
                name=names.op("table_is_sound"),
                specs=[
                    spec(
                        "rows_reconcile",
                        "Fails unless the table holds exactly the current documents and chunks, each once.",
                    ),
                    spec(
                        "vectors_sound",
                        "Fails unless vectors come from the configured embedder, have unit length and (in a sample of "
                        "new rows) match their texts, and the indexes cover the rows.",
                    ),
                    spec(
                        "retrieval_holds",
                        "Fails if the new version answers the golden questions (region/department/_eval/*.jsonl) worse "
                        "than the published one, its vector index misses the required recall, or documents are not "
                        "found by their own title, file name or code.",
                    ),
                    spec(
                        "languages_read",
                        "Warns if most passages are in languages that the embedding model does not read.",
                        blocking=False,
                    ),
                ],
                can_subset=True,
                retry_policy=step_retries,
            )(table_is_sound),
        ]
