"""Open the source, the lake and the models of one deployment from its settings. No Dagster types.

Assets, sensors and commands use a `Pipeline`; the packages below it do the work.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from rag_assets.arrivals.shard_status import ShardStates, survey
from rag_assets.chunking.options import ChunkerOptions
from rag_assets.chunking.passage import Chunker
from rag_assets.evaluation.verdict import Quality
from rag_assets.extraction.sandbox.pool import ParserLimits, warm_parsers
from rag_assets.models.export import find_exported
from rag_assets.models.registry import warm_chunker, warm_embedder, warm_identity
from rag_assets.publishing.catalog_writes import reject_older_writers
from rag_assets.publishing.maintenance import MaintenanceReport, maintain_shards
from rag_assets.publishing.retention import Retention
from rag_assets.settings import PipelineSettings
from rag_assets.sources.base import Source
from rag_assets.sources.open import open_source
from rag_assets.stages.documents import IngestionLimits, Parse
from rag_assets.storage.heartbeat import forget_heartbeats
from rag_assets.storage.lake import Lake, Log, open_lake
from rag_assets.storage.lease import acquire_lease
from rag_assets.storage.shard_writer import ShardWriter
from rag_serving.lake.catalog import Catalog
from rag_serving.lake.embedders.base import Embedder, EmbedderIdentity
from rag_serving.lake.object_store import is_s3
from rag_serving.lake.shards import Shard

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class Pipeline:
    """The parts of one deployment. Tests and benchmarks replace single parts by overriding a method."""

    settings: PipelineSettings
    s3_client: "Callable[[], S3Client] | None" = None
    """Creates the client of an ``s3://`` source. None means boto3's default client."""

    def lake(self) -> Lake:
        """Open the lake of `RAG_LAKE_URI`."""
        return open_lake(self.settings.lake_uri)

    def catalog(self) -> Catalog:
        """Open the catalog of published shards."""
        return Catalog(self.lake().objects)

    def source(self) -> Source:
        """Open the source of `RAG_SOURCE_URI`."""
        uri = self.settings.source_uri
        make = self.s3_client
        client = make() if make is not None and uri is not None and is_s3(uri) else None
        return open_source(uri, client, ignore=self.settings.ignored_names)

    def survey(self) -> ShardStates:
        """List the whole source and compare it with the catalog."""
        return survey(self.source(), self.catalog().snapshot(), self.fingerprint())

    @contextmanager
    def writer(
        self, shard: Shard, *, holder: str, whole: bool = False, wait: float | None = None
    ) -> Generator[ShardWriter]:
        """Acquire the shard's lease and yield its only writer.

        Raises `ShardLocked` if another writer still holds the lease after `wait` seconds (None: `RAG_LEASE_WAIT`).
        """
        lake = self.lake()
        wait = self.settings.lease_wait if wait is None else wait
        with acquire_lease(lake.objects, shard, holder, seconds=self.settings.lease_seconds, wait=wait) as lease:
            if lease.taken_over:
                reject_older_writers(lake, shard, lease.epoch)
            yield ShardWriter(lake, shard, lease, whole=whole)

    def maintain(self, holder: str, *, run_id: str, log: Log) -> MaintenanceReport:
        """Maintain the tables of every published shard that is not locked, and forget the heartbeats of dead runs."""
        forget_heartbeats(self.lake().objects)
        return maintain_shards(
            sorted(self.catalog().snapshot().entries),
            lambda shard: self.writer(shard, holder=holder, wait=0),
            self.identity(),
            self.retention(),
            run_id=run_id,
            log=log,
            quality=self.quality(),
        )

    def parser(self) -> Parse:
        """Return the function that parses a document in a process with limited time and memory."""
        settings = self.settings
        limits = ParserLimits(
            settings.parse_seconds, settings.parse_memory, ocr=settings.ocr, ocr_languages=settings.ocr_languages
        )
        return warm_parsers(limits, self.settings.parse_workers).read

    def identity(self) -> EmbedderIdentity:
        """Return the identity of the configured embedding model, which is exported first if it is not in the lake."""
        return warm_identity(self.settings.lake_uri, self.settings.embedding_model)

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the configured embedding model, or None if it was never exported."""
        identity = find_exported(self.lake().objects, self.settings.embedding_model)
        return None if identity is None else identity.fingerprint

    def embedder(self) -> Embedder:
        """Return the embedder, which stays loaded as long as this process runs."""
        settings = self.settings
        return warm_embedder(
            settings.lake_uri, settings.embedding_model, settings.embedding_runtime, cores=settings.usable_cores
        )

    def chunker(self) -> Chunker:
        """Return the configured chunker for the embedding model."""
        options = ChunkerOptions(self.settings.chunker, self.settings.chunk_tokens, self.settings.chunk_context)
        return warm_chunker(self.settings.lake_uri, self.settings.embedding_model, options)

    def quality(self, *, accept_worse: bool = False) -> Quality:
        """Return how retrieval is measured, and the thresholds for publishing."""
        return Quality(
            embedder=self.embedder,
            source=None if self.settings.source_uri is None else self.source,
            max_drop=1.0 if accept_worse else self.settings.quality_max_drop,
            min_recall=0.0 if accept_worse else self.settings.quality_min_recall,
        )

    def retention(self) -> Retention:
        """Return which published versions stay readable."""
        return Retention(self.settings.keep_published, timedelta(seconds=self.settings.reader_pin_seconds))

    def limits(self, *, allow_mass_delete: bool) -> IngestionLimits:
        """Return the limits of one run of `raw_documents`."""
        return IngestionLimits(
            max_document_bytes=self.settings.max_document_bytes,
            max_delete_share=self.settings.max_delete_share,
            fetch_concurrency=self.settings.fetch_concurrency,
            allow_mass_delete=allow_mass_delete,
        )
