"""Resources: what the assets need from the outside, built from settings, replaceable in tests."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Self, cast

import dagster as dg
from dagster_aws.s3 import S3Resource

from rag_assets.chunking.options import ChunkerOptions
from rag_assets.chunking.passage import Chunker
from rag_assets.defs.run_tags import PARTITION_TAG, WHOLE_TAG, flag
from rag_assets.evaluation.verdict import Quality
from rag_assets.extraction.sandbox.pool import ParserLimits, warm_parsers
from rag_assets.models.export import find_exported
from rag_assets.models.registry import warm_chunker, warm_embedder, warm_identity
from rag_assets.options import ChunkerName, ContextName, RuntimeName
from rag_assets.publishing.catalog_writes import fence
from rag_assets.settings import PipelineSettings
from rag_assets.sources.base import Source
from rag_assets.sources.open import open_source
from rag_assets.stages.documents import IngestionLimits, Parse
from rag_assets.storage.lake import Lake, open_lake
from rag_assets.storage.lease import acquire_lease
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.catalog import Catalog
from rag_serving.lake.embedders.base import Embedder, EmbedderIdentity
from rag_serving.lake.object_store import is_s3
from rag_serving.lake.shards import Shard


class PipelineResource(dg.ConfigurableResource[None]):
    """The source, the lake and the embedding model that one deployment works with."""

    s3: S3Resource
    source_uri: str | None
    lake_uri: str
    embedding_model: str
    embedding_runtime: str
    chunker_name: str
    chunk_tokens: int
    chunk_context: str
    max_document_bytes: int
    max_delete_share: float
    fetch_concurrency: int
    vector_index_rows: int
    quality_max_drop: float
    quality_min_recall: float
    keep_published: int
    reader_pin_seconds: float
    parse_workers: int
    parse_seconds: int
    parse_memory: int
    lease_seconds: float
    lease_wait: float

    @classmethod
    def from_settings(cls, settings: PipelineSettings, **more: Any) -> Self:
        """The resource of these settings; `more` are the fields that a subclass adds."""
        names = PipelineResource.model_fields.keys() - {"s3", "chunker_name"}
        # Keys, region and endpoint come from the usual AWS_* variables, which boto3 reads itself.
        # Dagster's client retries with growing pauses and jitter; longer outages are for the steps' own retries.
        return cls(
            s3=S3Resource(max_attempts=5),
            chunker_name=settings.chunker,
            **{name: getattr(settings, name) for name in names},
            **more,
        )

    def lake(self) -> Lake:
        return open_lake(self.lake_uri)

    def catalog(self) -> Catalog:
        return Catalog(self.lake().objects)

    def source(self) -> Source:
        on_s3 = self.source_uri is not None and is_s3(self.source_uri)
        return open_source(self.source_uri, self.s3.get_client() if on_s3 else None)

    @contextmanager
    def writer(
        self, shard: Shard, *, holder: str, whole: bool = False, wait: float | None = None
    ) -> Generator[ShardWriter]:
        """The one writer of the shard for the length of the block; raises `ShardLocked`."""
        lake = self.lake()
        patience = self.lease_wait if wait is None else wait
        with acquire_lease(lake.objects, shard, holder, seconds=self.lease_seconds, wait=patience) as lease:
            if lease.taken_over:
                fence(lake, shard, lease.epoch)
            yield ShardWriter(lake, shard, lease, whole=whole)

    def read(self) -> Parse:
        """Reads documents, each in a limited process."""
        limits = ParserLimits(self.parse_seconds, self.parse_memory)
        return warm_parsers(limits, self.parse_workers).read

    def identity(self) -> EmbedderIdentity:
        return warm_identity(self.lake_uri, self.embedding_model)

    def fingerprint(self) -> str | None:
        """The embedder that new vectors are of; None before the model was first exported."""
        identity = find_exported(self.lake().objects, self.embedding_model)
        return None if identity is None else identity.fingerprint

    def embedder(self) -> Embedder:
        return warm_embedder(self.lake_uri, self.embedding_model, cast("RuntimeName", self.embedding_runtime))

    def chunker(self) -> Chunker:
        options = ChunkerOptions(
            cast("ChunkerName", self.chunker_name), self.chunk_tokens, cast("ContextName", self.chunk_context)
        )
        return warm_chunker(self.lake_uri, self.embedding_model, options)

    def quality(self, *, accept_worse: bool = False) -> Quality:
        """How a shard's retrieval is measured, and what it must come to."""
        return Quality(
            embedder=self.embedder,
            source=None if self.source_uri is None else self.source,
            max_drop=1.0 if accept_worse else self.quality_max_drop,
            min_recall=0.0 if accept_worse else self.quality_min_recall,
        )

    def limits(self, *, allow_mass_delete: bool) -> IngestionLimits:
        return IngestionLimits(
            max_document_bytes=self.max_document_bytes,
            max_delete_share=self.max_delete_share,
            fetch_concurrency=self.fetch_concurrency,
            allow_mass_delete=allow_mass_delete,
        )


@dg.resource(
    required_resource_keys={"pipeline"},
    description="Writes to the run's shard, under its lease, from the run's first step to its last (or in each step's "
    "process).",
)
def shard_writer(context: dg.InitResourceContext) -> Generator[ShardWriter]:
    pipeline: PipelineResource = context.resources.pipeline
    run = context.run
    key = run.tags.get(PARTITION_TAG) if run is not None else None
    if run is None or key is None:
        raise dg.DagsterInvariantViolationError(
            "a run of this asset is for one shard: choose one partition (region/department), or a backfill of several"
        )
    with pipeline.writer(Shard.parse(key), holder=f"run {run.run_id}", whole=flag(run.tags, WHOLE_TAG)) as writer:
        if writer.rolled_back and context.log is not None:
            context.log.warning("rolled back unfinished writes to %s", ", ".join(writer.rolled_back))
        yield writer
