"""Settings of the pipeline, read from `RAG_*` environment variables when definitions load or a command starts."""

from typing import Annotated

from pydantic import Field, SecretStr, StringConstraints

from rag_assets.options import (
    CHUNK_TOKENS,
    IGNORED,
    IMAGES,
    PACKAGED_MODEL,
    SMALLEST_WINDOW,
    ArrivalsName,
    ChunkerName,
    ContextName,
    RuntimeName,
)
from rag_serving.settings import EnvironmentSettings, NonEmpty

Cron = Annotated[str, StringConstraints(min_length=9)]


class PipelineSettings(EnvironmentSettings):
    """Settings of the assets, sensors, schedules and commands."""

    embedding_model: NonEmpty = Field(
        PACKAGED_MODEL, description="sentence-transformers name, model folder, or litellm:NAME"
    )
    embedding_runtime: RuntimeName = Field("auto", description="runtime of the embedding model in the pipeline")
    chunker: ChunkerName = Field("semantic", description="how documents are cut into passages")
    chunk_tokens: int = Field(
        CHUNK_TOKENS, ge=SMALLEST_WINDOW, description="maximum tokens of a passage, including special tokens"
    )
    chunk_context: ContextName = Field(
        "headings",
        description="what is embedded in front of each passage: the file's name, title and headings (headings), the "
        "sentences before it (neighbours), or nothing (none); later pieces of a table always have its header",
    )
    asset_prefix: Annotated[str, StringConstraints(pattern=r"^\w+(/\w+)*$")] | None = Field(
        None, description="prefix of asset keys, jobs and partitions (eu, prod/eu), so that lakes can share a Dagster"
    )
    partition_set: NonEmpty | None = Field(None, description="name of the partition set; unset: PREFIX_shard")
    asset_group: NonEmpty = Field("index", description="group of the assets")
    asset_owners: NonEmpty = Field("team:search-platform", description="owners of the assets, comma-separated")
    code_location: NonEmpty | None = Field(
        None, description="name of the code location that the daemon backfills; unset: the one that has the pipeline"
    )
    dagster_url: NonEmpty | None = Field(
        None, description="URL of the Dagster web server that backfills; unset: the instance of DAGSTER_HOME"
    )
    dagster_token: SecretStr | None = Field(None, description="token of a Dagster+ user or agent")
    reconcile_cron: Cron = Field("0 2 * * *", description="when every shard is reconciled with the source, in UTC")
    arrivals: ArrivalsName = Field("listing", description="how the sensor detects arrivals")
    sqs_queue_url: NonEmpty | None = Field(None, description="SQS queue that the bucket notifies")
    kafka_brokers: NonEmpty | None = Field(None, description="Kafka brokers as host:port, comma-separated")
    kafka_topic: NonEmpty | None = Field(None, description="topic that carries the bucket's events")
    kafka_config: SecretStr | None = Field(None, description="additional librdkafka properties as one JSON object")
    arrivals_interval: int = Field(30, ge=1, description="minimum seconds between evaluations of the sensor")
    arrivals_max_runs: int = Field(200, ge=1, le=5000, description="maximum runs requested per tick")
    arrivals_tick_seconds: float = Field(
        40.0, gt=0, le=55, description="seconds after which one sweep or poll stops; Dagster kills ticks at 60"
    )
    ignore: NonEmpty | None = Field(
        None,
        description="comma-separated patterns of names to leave out, such as drafts/*; `none`: none; unset: temporary "
        "files, locks, and images unless RAG_OCR is set",
    )
    max_document_bytes: int = Field(256 * 2**20, ge=1, description="larger objects are quarantined without a fetch")
    max_delete_share: float = Field(
        0.5, gt=0, le=1, description="share of a shard's documents that a run may delete without permission"
    )
    fetch_concurrency: int = Field(8, ge=1, le=64, description="objects fetched concurrently")
    vector_index_rows: int = Field(2_000, ge=256, description="minimum rows for a vector index")
    company_interval: int = Field(
        60, ge=1, description="minimum seconds between checks whether the company index is stale"
    )
    quality_max_drop: float = Field(
        0.05, ge=0, le=1, description="maximum drop of the golden-question scores against the published version"
    )
    quality_min_recall: float = Field(
        0.9, ge=0, le=1, description="minimum share of the nearest passages that a vector index finds; 0 disables"
    )
    keep_published: int = Field(5, ge=1, le=20, description="published versions to keep per shard")
    reader_pin_seconds: float = Field(
        3600.0, ge=60, description="seconds that readers may keep using a version after its successor is published"
    )
    parse_workers: int = Field(2, ge=1, le=64, description="maximum parser processes per run")
    parse_seconds: int = Field(120, ge=1, le=3600, description="limit of wall-clock and of CPU seconds per document")
    parse_memory: int = Field(
        1536 * 2**20, ge=512 * 2**20, description="limit of a parser process's address space, in bytes"
    )
    ocr: bool = Field(False, description="read images and scanned pages with Tesseract, which must be installed")
    ocr_languages: Annotated[str, StringConstraints(pattern=r"^[\w/]+(\+[\w/]+)*$")] = Field(
        "eng", description="languages of scanned text, as Tesseract names them (eng+deu)"
    )
    maintenance_cron: Cron = Field("30 4 * * *", description="when tables are compacted and cleaned up, in UTC")
    watch_cron: Cron = Field("*/15 * * * *", description="when no_shard_left_behind is evaluated, in UTC")
    lease_seconds: float = Field(30.0, ge=1, le=600, description="seconds until a dead writer's lease expires")
    lease_wait: float = Field(45.0, ge=0, le=3600, description="seconds to wait for another writer of the same shard")

    @property
    def ignored_names(self) -> tuple[str, ...]:
        """The patterns of `ignore`, or the default ones."""
        if self.ignore is None:
            return IGNORED if self.ocr else (*IGNORED, *IMAGES)
        patterns = (pattern.strip() for pattern in self.ignore.split(","))
        return () if self.ignore == "none" else tuple(pattern for pattern in patterns if pattern)
