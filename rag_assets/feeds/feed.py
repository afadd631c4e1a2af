"""What a feed is, and which one the settings name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rag_assets.feeds.records import Watched
from rag_assets.settings import PipelineSettings
from rag_serving.errors import SettingsError
from rag_serving.objects import is_s3, split_s3

TICK_SECONDS = 60
"""Dagster's own bound of one tick."""
LEAST_VISIBILITY_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a feed brought, and where it then was."""

    bodies: tuple[bytes | str | None, ...]
    position: Mapping[str, Any]
    """Plain JSON. To be kept together with what the bodies said, and handed to the next `poll`."""
    gap: str = ""
    """Says what happened where messages were gone before they were read: any document may have changed."""
    note: str = ""
    """For the operator."""


class Feed(Protocol):
    """Messages that name objects. Built without any contact; only `poll` speaks to a server."""

    @property
    def name(self) -> str:
        """Which feed this is, as `RAG_ARRIVALS` names it."""
        ...

    def poll(self, position: Mapping[str, Any], *, seconds: float) -> Delivery:
        """Messages after `position` (empty at first), for about `seconds` at most.

        Whoever calls with a position has stored it: only then may the feed let go of what came before. Raises
        `FeedUnavailable`, and `SettingsError` for what is missing.
        """
        ...


def open_feed(settings: PipelineSettings) -> Feed:
    """The feed that `RAG_ARRIVALS` names, other than the listing."""
    if settings.arrivals == "sqs":
        from rag_assets.feeds.sqs import SqsFeed

        # A message must stay hidden until the tick after the one that received it has deleted it.
        tick = settings.arrivals_interval + TICK_SECONDS
        return SqsFeed(settings.sqs_queue_url, visibility_seconds=max(LEAST_VISIBILITY_SECONDS, 2 * tick))
    if settings.arrivals == "kafka":
        from rag_assets.feeds.kafka import KafkaFeed

        return KafkaFeed(settings.kafka_brokers, settings.kafka_topic, settings.kafka_config)
    raise SettingsError(f"RAG_ARRIVALS={settings.arrivals} reads no feed")


def watched_source(source_uri: str | None) -> Watched:
    """Bucket and prefix of the source; raises `SettingsError` where it has none, since events name buckets."""
    if source_uri is None or not is_s3(source_uri):
        raise SettingsError(
            "RAG_ARRIVALS=sqs and RAG_ARRIVALS=kafka read events of a bucket: set RAG_SOURCE_URI to "
            "s3://bucket/prefix, or use RAG_ARRIVALS=listing for a folder"
        )
    bucket, prefix = split_s3(source_uri)
    return Watched(bucket, f"{prefix}/" if prefix else "")
