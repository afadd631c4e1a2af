"""The asset graph, from arriving objects to published tables. Each asset processes what changed upstream.

source_objects → raw_documents → chunks → embeddings → shards → published are partitioned by shard; embedding_model and
boundary_vectors are built once. `@asset_template` lists the upstream assets; Dagster's UI shows the docstrings.
"""

import dataclasses
from typing import Any

import dagster as dg
import pyarrow as pa
from pydantic import Field

from rag_assets.defs.asset_template import asset_template
from rag_assets.defs.resources import PipelineParam
from rag_assets.evaluation.records import Evaluation
from rag_assets.extraction.registry import EXTRACTOR_VERSION
from rag_assets.models.export import ensure_exported
from rag_assets.models.static_vectors import ensure_distilled
from rag_assets.publishing.publish import publish
from rag_assets.runs.failures import named_failures
from rag_assets.runs.names import Names
from rag_assets.runs.tags import ACCEPT_WORSE_TAG, ALLOW_MASS_DELETE_TAG, flag
from rag_assets.stages.chunks import sync_chunks
from rag_assets.stages.document_state import document_name, quarantined_documents
from rag_assets.stages.documents import sync_documents
from rag_assets.stages.embeddings import sync_embeddings
from rag_assets.stages.search_table import sync_shard
from rag_assets.storage.schemas import CHUNK_SCHEMA, RAW_SCHEMA, embedding_schema
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.embedders.base import MODELS
from rag_serving.lake.tables import shard_schema

_PACKAGED_DIMENSIONS = 384  # shown in the UI only; the tables take the model's own


def build_source_objects(names: Names) -> dg.AssetSpec:
    """Return the external asset that the graph starts from."""
    return dg.AssetSpec(
        names.asset("source_objects"),
        description="Documents under region/department/ in the source bucket or folder, written by other systems. "
        "The sensor s3_arrivals and the schedule reconcile watch them.",
        partitions_def=names.partitions,
        group_name=names.group,
        owners=list(names.owners),
    )


@asset_template(
    partitioned=False,
    kinds={"python", "openvino"},
    code_version="1",
)
def embedding_model(context: dg.AssetExecutionContext, pipeline: PipelineParam) -> dg.MaterializeResult[Any]:
    """Export the embedding model into the lake.

    The export is an OpenVINO graph with pooling, the tokenizer, and a manifest that identifies the model. The pipeline
    and serving load the same files. Materialize this asset after changing RAG_EMBEDDING_MODEL; otherwise the run of the
    next shard exports the model.
    """
    with named_failures():
        export = ensure_exported(pipeline.lake().objects, pipeline.settings.embedding_model, force=True)
    context.log.info("exported %s as %s", export.identity.model, export.identity.fingerprint)
    return dg.MaterializeResult(
        metadata={
            "model": export.identity.model,
            "fingerprint": export.identity.fingerprint,
            "dimensions": export.identity.dimensions,
            "window_tokens": export.identity.window,
            "lowest_probe_cosine": export.lowest_cosine,
            "bytes": export.bytes,
            "uri": f"{pipeline.settings.lake_uri}/{MODELS}/{export.identity.fingerprint}",
        }
    )


@asset_template(
    "embedding_model",
    partitioned=False,
    kinds={"python", "numpy"},
    code_version="1",
)
def boundary_vectors(context: dg.AssetExecutionContext, pipeline: PipelineParam) -> dg.MaterializeResult[Any]:
    """Distil one static vector per token of the embedding model. The chunker uses them to detect changes of subject.

    Valid vectors are kept. If they are missing, the run of the next shard distils them.
    """
    with named_failures():
        distillation = ensure_distilled(pipeline.lake().objects, pipeline.identity())
    manifest = distillation.manifest
    context.log.info("%s of %s", "distilled" if distillation.created else "found", manifest.fingerprint)
    return dg.MaterializeResult(
        metadata={
            "created": distillation.created,
            "tokens": manifest.tokens,
            "dimensions": manifest.dimensions,
            "sha256": manifest.sha256,
            "bytes": distillation.bytes,
            "seconds": round(distillation.seconds, 3),
            "fingerprint": manifest.fingerprint,
            "uri": f"{pipeline.settings.lake_uri}/{MODELS}/{manifest.fingerprint}/{manifest.file}",
        }
    )


class DocumentsConfig(dg.Config):
    """Run configuration of `raw_documents`."""

    keys: list[str] = Field(
        default_factory=list[str],
        description="compare only these objects of the shard, as named by an event feed; empty: list the whole shard",
    )


def _columns(schema: pa.Schema) -> dict[str, Any]:
    fields: list[Any] = list(schema)
    columns = [dg.TableColumn(field.name, str(field.type)) for field in fields]
    return {"dagster/column_schema": dg.TableSchema(columns)}


def _metadata(report: Any, *, rows: int) -> dict[str, Any]:
    """Return a step's report as metadata; the UI shows `rows` as the partition's row count."""
    numbers = {name: value for name, value in dataclasses.asdict(report).items() if isinstance(value, int | float)}
    numbers["seconds"] = round(numbers["seconds"], 3)
    return {**numbers, "dagster/partition_row_count": rows}


@asset_template(
    "source_objects",
    kinds={"python", "lancedb"},
    code_version=EXTRACTOR_VERSION,
    metadata=_columns(RAW_SCHEMA),
)
def raw_documents(
    context: dg.AssetExecutionContext,
    pipeline: PipelineParam,
    shard_writer: dg.ResourceParam[ShardWriter],
    config: DocumentsConfig,
) -> dg.MaterializeResult[Any]:
    """Extract text and structure of the shard's documents.

    Only new and changed objects are fetched. Deleted ones are removed. Unreadable ones are quarantined with a reason.
    """
    allow = flag(context.run.tags, ALLOW_MASS_DELETE_TAG)
    with named_failures():
        report = sync_documents(
            shard_writer,
            pipeline.source(),
            pipeline.parser(),
            pipeline.limits(allow_mass_delete=allow),
            context.log.info,
            keys=config.keys,
        )
        refused = quarantined_documents(pipeline.lake(), shard_writer.shard)[:20]
    metadata = _metadata(report, rows=report.documents)
    metadata["quarantine_reasons"] = dg.JsonMetadataValue(report.quarantine_reasons)
    if report.left_out:
        metadata["left_out"] = dg.TextMetadataValue(report.left_out_examples)
    if refused:
        metadata["quarantine"] = dg.TableMetadataValue(
            records=[
                dg.TableRecord(
                    {
                        "document": document_name(row),
                        **{name: row[name] for name in ("reason", "detail", "attempts")},
                        "first_seen": row["first_seen"].isoformat(timespec="seconds"),
                        "last_seen": row["last_seen"].isoformat(timespec="seconds"),
                        "etag": row["etag"],
                    }
                )
                for row in refused
            ],
            schema=None,
        )
    return dg.MaterializeResult(metadata=metadata)


@asset_template(
    "raw_documents",
    all_partitions_of=("boundary_vectors",),
    kinds={"python", "lancedb"},
    code_version="2",
    metadata=_columns(CHUNK_SCHEMA),
)
def chunks(
    context: dg.AssetExecutionContext, pipeline: PipelineParam, shard_writer: dg.ResourceParam[ShardWriter]
) -> dg.MaterializeResult[Any]:
    """Cut changed documents into passages that fit the model's window, by structure and at changes of subject."""
    with named_failures():
        chunker = pipeline.chunker()
        report = sync_chunks(shard_writer, chunker, context.log.info)
    return dg.MaterializeResult(metadata={**_metadata(report, rows=report.chunks), "chunker": chunker.version})


@asset_template(
    "chunks",
    all_partitions_of=("embedding_model",),
    kinds={"openvino", "lancedb"},
    code_version="1",
    metadata=_columns(embedding_schema(_PACKAGED_DIMENSIONS)),
)
def embeddings(
    context: dg.AssetExecutionContext, pipeline: PipelineParam, shard_writer: dg.ResourceParam[ShardWriter]
) -> dg.MaterializeResult[Any]:
    """Embed each distinct passage that has no vector yet."""
    with named_failures():
        identity = pipeline.identity()
        report = sync_embeddings(shard_writer, identity, pipeline.embedder, context.log.info)
    metadata = _metadata(report, rows=report.vectors)
    metadata["tokens_per_second"] = round(report.tokens / max(report.seconds, 1e-9))
    return dg.MaterializeResult(metadata={**metadata, "fingerprint": identity.fingerprint})


@asset_template(
    "raw_documents",
    "chunks",
    "embeddings",
    kinds={"lancedb"},
    code_version="1",
    metadata=_columns(shard_schema(_PACKAGED_DIMENSIONS, "")),
)
def shards(
    context: dg.AssetExecutionContext, pipeline: PipelineParam, shard_writer: dg.ResourceParam[ShardWriter]
) -> dg.MaterializeResult[Any]:
    """Update the shard's search table (one commit per changed document) and its full-text and vector indexes."""
    with named_failures():
        identity = pipeline.identity()
        report = sync_shard(shard_writer, identity, pipeline.settings.vector_index_rows, context.log.info)
    metadata = _metadata(report, rows=report.rows)
    return dg.MaterializeResult(metadata={**metadata, "fingerprint": identity.fingerprint})


@asset_template(
    "shards",
    kinds={"lancedb", "json"},
    code_version="1",
)
def published(
    context: dg.AssetExecutionContext, pipeline: PipelineParam, shard_writer: dg.ResourceParam[ShardWriter]
) -> dg.MaterializeResult[Any]:
    """Make the new version of the table current in the shard's catalog object, if the blocking checks pass."""
    with named_failures():
        result = publish(
            shard_writer,
            pipeline.identity(),
            pipeline.retention(),
            run_id=context.run.run_id,
            quality=pipeline.quality(accept_worse=flag(context.run.tags, ACCEPT_WORSE_TAG)),
        )
    if result.held is not None:
        context.log.warning("not published: on hold by %s since %s", result.held.by, result.held.since)
    publication = result.publication
    return dg.MaterializeResult(
        metadata={
            "changed": result.changed,
            "content_changed": result.content_changed,
            "held_by": result.held.by if result.held is not None else "",
            "version": publication.version,
            "documents": publication.documents,
            "chunks": publication.chunks,
            "quarantined": publication.quarantined,
            "content_digest": publication.content_digest,
            "source_digest": publication.source_digest,
            "fingerprint": publication.fingerprint,
            "published_at": dg.TimestampMetadataValue(publication.published_at.timestamp()),
            "dagster/partition_row_count": publication.chunks,
            **quality_numbers(result.evaluation),
        }
    )


def quality_numbers(evaluation: Evaluation | None) -> dict[str, float]:
    """Return the scores of the evaluated version as metadata that the UI plots over time; empty if not measured."""
    if evaluation is None:
        return {}
    scores = {} if evaluation.head is None else dataclasses.asdict(evaluation.head.hybrid)
    recall = {} if evaluation.index_recall is None else {"index_recall": evaluation.index_recall}
    return {name: round(value, 4) for name, value in {**scores, **recall}.items()}


ASSETS = (embedding_model, boundary_vectors, raw_documents, chunks, embeddings, shards, published)
