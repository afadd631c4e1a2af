"""Resources: what the assets need from the outside, built from settings, replaceable in tests."""

from __future__ import annotations

from collections.abc import Generator

import dagster as dg
from dagster_aws.s3 import S3Resource

from rag_assets.chunking import Chunker
from rag_assets.embedding import warm_chunker, warm_embedder, warm_identity
from rag_assets.ingestion import IngestionLimits
from rag_assets.lake import Lake
from rag_assets.lease import Lease, hold
from rag_assets.settings import PipelineSettings
from rag_assets.sources import Source, open_source
from rag_serving.catalog import Catalog
from rag_serving.embedding import EmbedderIdentity, OpenVinoEmbedder
from rag_serving.objects import is_s3
from rag_serving.shards import Shard

PARTITION_TAG = "dagster/partition"
ALLOW_MASS_DELETE_TAG = "rag/allow_mass_delete"


class PipelineResource(dg.ConfigurableResource[None]):
    """The source, the lake and the embedding model that one deployment works with."""

    s3: S3Resource
    source_uri: str | None
    lake_uri: str
    embedding_model: str
    max_document_bytes: int
    max_delete_share: float
    fetch_concurrency: int
    vector_index_rows: int
    keep_published: int
    lease_seconds: float
    lease_wait: float

    @classmethod
    def from_settings(cls, settings: PipelineSettings) -> PipelineResource:
        # Keys, region and endpoint come from the usual AWS_* variables, which boto3 reads itself.
        names = cls.model_fields.keys() - {"s3"}
        return cls(s3=S3Resource(), **{name: getattr(settings, name) for name in names})

    def lake(self) -> Lake:
        return Lake(self.lake_uri)

    def catalog(self) -> Catalog:
        return Catalog(self.lake().objects)

    def source(self) -> Source:
        on_s3 = self.source_uri is not None and is_s3(self.source_uri)
        return open_source(self.source_uri, self.s3.get_client() if on_s3 else None)

    def identity(self) -> EmbedderIdentity:
        return warm_identity(self.lake_uri, self.embedding_model)

    def embedder(self) -> OpenVinoEmbedder:
        return warm_embedder(self.lake_uri, self.embedding_model)

    def chunker(self) -> Chunker:
        return warm_chunker(self.lake_uri, self.embedding_model)

    def limits(self, *, allow_mass_delete: bool) -> IngestionLimits:
        return IngestionLimits(
            max_document_bytes=self.max_document_bytes,
            max_delete_share=self.max_delete_share,
            fetch_concurrency=self.fetch_concurrency,
            allow_mass_delete=allow_mass_delete,
        )


@dg.resource(
    required_resource_keys={"pipeline"},
    description="The lease of the run's shard, held from the run's first step to its last (or by each step's process).",
)
def shard_lease(context: dg.InitResourceContext) -> Generator[Lease]:
    pipeline: PipelineResource = context.resources.pipeline
    run = context.run
    key = run.tags.get(PARTITION_TAG) if run is not None else None
    if run is None or key is None:
        raise dg.DagsterInvariantViolationError(
            "a run of this asset is for one shard: choose one partition (region/department), or a backfill of several"
        )
    with hold(
        pipeline.lake().objects,
        Shard.parse(key),
        run.run_id,
        seconds=pipeline.lease_seconds,
        wait=pipeline.lease_wait,
    ) as lease:
        yield lease
