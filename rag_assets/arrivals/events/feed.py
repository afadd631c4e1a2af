"""Open the event feed of the settings; the protocol of feeds is in `base`."""

from rag_assets.arrivals.events.base import Feed
from rag_assets.arrivals.events.s3_records import WatchedPrefix
from rag_assets.settings import PipelineSettings
from rag_serving.errors import SettingsError
from rag_serving.lake.object_store import is_s3, split_s3

TICK_SECONDS = 60
"""Dagster's time limit for a tick."""
LEAST_VISIBILITY_SECONDS = 300


def open_feed(settings: PipelineSettings) -> Feed:
    """Create the feed of `RAG_ARRIVALS`."""
    if settings.arrivals == "sqs":
        from rag_assets.arrivals.events.sqs import SqsFeed

        # A message must stay invisible until the next tick deletes it.
        tick = settings.arrivals_interval + TICK_SECONDS
        return SqsFeed(settings.sqs_queue_url, visibility_seconds=max(LEAST_VISIBILITY_SECONDS, 2 * tick))
    if settings.arrivals == "kafka":
        from rag_assets.arrivals.events.kafka import KafkaFeed

        return KafkaFeed(settings.kafka_brokers, settings.kafka_topic, settings.kafka_config)
    raise SettingsError(f"RAG_ARRIVALS={settings.arrivals} does not use an event feed")


def watched_source(source_uri: str | None) -> WatchedPrefix:
    """Return bucket and prefix of the source; raise `SettingsError` for a folder, since events name buckets."""
    if source_uri is None or not is_s3(source_uri):
        raise SettingsError(
            "RAG_ARRIVALS=sqs and RAG_ARRIVALS=kafka read events of a bucket: set RAG_SOURCE_URI to "
            "s3://bucket/prefix, or use RAG_ARRIVALS=listing for a folder"
        )
    bucket, prefix = split_s3(source_uri, "RAG_SOURCE_URI")
    return WatchedPrefix(bucket, f"{prefix}/" if prefix else "")
