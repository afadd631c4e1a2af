"""Settings of the pipeline, read from `RAG_*` environment variables when definitions load or a command starts."""

from typing import Annotated

from pydantic import Field, SecretStr, StringConstraints

from rag_assets.options import (
    CHUNK_TOKENS,
    PACKAGED_MODEL,
    SMALLEST_WINDOW,
    ArrivalsName,
    ChunkerName,
    ContextName,
    ExecutorName,
    RuntimeName,
)
from rag_serving.settings import EnvironmentSettings, NonEmpty


class PipelineSettings(EnvironmentSettings):
    """What the assets, sensors and schedules need."""

    source_uri: NonEmpty | None = Field(None, description="folder or s3://bucket/prefix where documents arrive")
    embedding_model: NonEmpty = Field(
        PACKAGED_MODEL, description="sentence-transformers name, a model's folder, or litellm:NAME"
    )
    embedding_runtime: RuntimeName = Field("auto", description="what runs the model in the pipeline")
    chunker: ChunkerName = Field("semantic", description="how documents are cut into passages")
    chunk_tokens: int = Field(
        CHUNK_TOKENS, ge=SMALLEST_WINDOW, description="most tokens of a passage, special ones included"
    )
    chunk_context: ContextName = Field("none", description="what is embedded before a passage")
    asset_prefix: Annotated[str, StringConstraints(pattern=r"^\w+(/\w+)*$")] | None = Field(
        None,
        description="prefix of asset keys, jobs and partitions, as in eu or prod/eu, for several lakes",
    )
    partition_set: NonEmpty | None = Field(None, description="name of the partition set; unset: shard after the prefix")
    asset_group: NonEmpty = Field("index", description="group of the assets")
    asset_owners: NonEmpty = Field("team:search-platform", description="owners of the assets, with commas")
    code_location: NonEmpty = Field("rag_assets", description="name of the code location, for backfills by the daemon")
    executor: ExecutorName = Field("in_process", description="how the steps of one run are executed")
    reconcile_cron: Annotated[str, StringConstraints(min_length=9)] = Field(
        "0 2 * * *", description="when all shards are reconciled with the source, in UTC"
    )
    arrivals: ArrivalsName = Field("listing", description="how the sensor learns of arrivals")
    sqs_queue_url: NonEmpty | None = Field(None, description="SQS queue that the bucket notifies")
    kafka_brokers: NonEmpty | None = Field(None, description="host:port of Kafka brokers, with commas")
    kafka_topic: NonEmpty | None = Field(None, description="topic that carries the bucket's events")
    kafka_config: SecretStr | None = Field(None, description="further librdkafka properties, as one JSON object")
    arrivals_interval: int = Field(30, ge=1, description="least seconds between two looks at the source")
    arrivals_max_runs: int = Field(200, ge=1, le=5000, description="runs requested in one tick at most")
    arrivals_tick_seconds: float = Field(
        40.0, gt=0, le=55, description="time box of one sweep or poll; Dagster ends ticks at 60"
    )
    max_document_bytes: int = Field(256 * 2**20, ge=1, description="larger objects are quarantined unread")
    max_delete_share: float = Field(
        0.5, gt=0, le=1, description="share of a shard's documents a run may delete unasked"
    )
    fetch_concurrency: int = Field(8, ge=1, le=64, description="objects fetched at once")
    vector_index_rows: int = Field(2_000, ge=256, description="rows from which a shard gets a vector index")
    company_interval: int = Field(
        60, ge=1, description="least seconds between two looks at whether the company index is behind"
    )
    quality_max_drop: float = Field(
        0.05, ge=0, le=1, description="by how much a new version may answer the golden questions worse than the old"
    )
    quality_min_recall: float = Field(
        0.9, ge=0, le=1, description="share of the nearest passages that a vector index must find; 0 lets any pass"
    )
    keep_published: int = Field(5, ge=1, le=20, description="published versions of a shard that are tagged and kept")
    reader_pin_seconds: float = Field(
        3600.0, ge=60, description="seconds that a reader may go on with a version after its successor is published"
    )
    parse_workers: int = Field(2, ge=1, le=64, description="processes that parse documents, at most, in each run")
    parse_seconds: int = Field(
        120, ge=1, le=3600, description="seconds, of the clock and of CPU, to parse one document"
    )
    parse_memory: int = Field(
        1536 * 2**20, ge=512 * 2**20, description="bytes of address space of a process that parses"
    )
    maintenance_cron: Annotated[str, StringConstraints(min_length=9)] = Field(
        "30 4 * * *", description="when tables are compacted and old versions cleaned up, in UTC"
    )
    watch_cron: Annotated[str, StringConstraints(min_length=9)] = Field(
        "*/15 * * * *", description="when it is checked that no shard is left behind, in UTC"
    )
    lease_seconds: float = Field(30.0, ge=1, le=600, description="a dead writer's shard is free after this")
    lease_wait: float = Field(45.0, ge=0, le=3600, description="seconds to wait for another writer of the same shard")
