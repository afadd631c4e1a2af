"""The sensor that turns arrivals into runs: a thin shell over `rag_assets.arrivals`."""

import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from rag_assets.arrivals.events.base import Feed
from rag_assets.arrivals.events.feed import watched_source
from rag_assets.arrivals.events.pending import Decision, FeedCursor, Request, merge
from rag_assets.arrivals.events.pending import decide as decide_hints
from rag_assets.arrivals.events.s3_records import DecodedMessages, read_messages
from rag_assets.arrivals.listing import Cursor, decide, published_listing_digests, sweep
from rag_assets.arrivals.listing import Request as ListedRequest
from rag_assets.defs.assets import source_objects
from rag_assets.defs.jobs import index_shard
from rag_assets.defs.partitions import shard_partitions
from rag_assets.defs.resources import PipelineResource
from rag_assets.defs.run_status import PARTITIONS, active_shards, known_shards, runs_of
from rag_assets.settings import PipelineSettings

SENSOR = "s3_arrivals"


def _new_partitions(
    instance: dg.DagsterInstance, requests: Iterable[ListedRequest | Request]
) -> list[dg.AddDynamicPartitionsRequest]:
    new = sorted({request.shard.key for request in requests} - set(instance.get_dynamic_partitions(PARTITIONS)))
    return [shard_partitions.build_add_request(new)] if new else []


def build_arrivals_sensor(settings: PipelineSettings) -> dg.SensorDefinition:
    """The sensor `s3_arrivals` of the settings' feed."""
    return _build_listing_sensor(settings) if settings.arrivals == "listing" else _build_feed_sensor(settings)


def _build_listing_sensor(settings: PipelineSettings) -> dg.SensorDefinition:
    @dg.sensor(
        name=SENSOR,
        job=index_shard,
        minimum_interval_seconds=settings.arrivals_interval,
        description="Lists the source, and asks for one run of every shard whose listing differs from the one that its "
        "published version was made from. New regions and departments become partitions by themselves.",
    )
    def s3_arrivals(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
        cursor = Cursor.loads(context.cursor)
        # The listing comes first: a run that ends meanwhile is then judged by a listing older than its publish.
        seen = sweep(pipeline.source(), start_after=cursor.resume_after, seconds=settings.arrivals_tick_seconds)
        active = active_shards(context.instance)
        snapshot = pipeline.catalog().snapshot()
        decision = decide(
            seen,
            published_listing_digests(snapshot.entries, pipeline.fingerprint()),
            active,
            cursor,
            now=time.time(),
            max_requests=settings.arrivals_max_runs,
        )
        summary = (
            f"{seen.objects} objects in {len(seen.digests)} shards; {decision.dirty} dirty, "
            f"{len(decision.requests)} asked for, {decision.waiting} waiting"
            + (
                f"; {seen.outside} keys outside region/department/, such as {seen.outside_examples}"
                if seen.outside
                else ""
            )
            + ("; the sweep goes on in the next tick" if seen.resume_after else "")
        )
        context.log.info(summary)
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(run_key=request.run_key, partition_key=request.shard.key) for request in decision.requests
            ],
            skip_reason=None if decision.requests else summary,
            cursor=decision.cursor.dumps(),
            dynamic_partitions_requests=_new_partitions(context.instance, decision.requests),
            asset_events=[
                dg.AssetObservation(
                    source_objects.key,
                    partition=request.shard.key,
                    metadata={"source_digest": request.digest},
                    tags={"dagster/data_version": request.digest},
                )
                for request in decision.requests
            ],
        )

    return s3_arrivals


def _build_feed_sensor(settings: PipelineSettings) -> dg.SensorDefinition:
    @dg.sensor(
        name=SENSOR,
        job=index_shard,
        minimum_interval_seconds=settings.arrivals_interval,
        description=f"Reads events of the source from {settings.arrivals}, and asks for a run of each shard that they "
        "name, of the named objects alone where they are few. New regions and departments become partitions by "
        "themselves.",
    )
    def s3_arrivals(
        context: dg.SensorEvaluationContext, pipeline: PipelineResource, arrivals_feed: dg.ResourceParam[Feed]
    ) -> dg.SensorResult:
        watched = watched_source(pipeline.source_uri)
        cursor = FeedCursor.loads(context.cursor, arrivals_feed.name)
        delivery = arrivals_feed.poll(cursor.position, seconds=settings.arrivals_tick_seconds)
        news = read_messages(delivery.bodies, watched)
        # Of messages that nobody can read any more we know only that they may have been about any shard.
        missed = known_shards(context.instance) if delivery.gap else []
        runs = runs_of(context.instance, cursor.hints)
        decision = decide_hints(
            merge(cursor.hints, news.named, missed),
            succeeded=runs.succeeded,
            active=runs.active,
            now=time.time(),
            max_requests=settings.arrivals_max_runs,
            tick=f"{time.time():.0f}-{secrets.token_hex(4)}",
        )
        if delivery.gap:
            context.log.warning(
                f"{delivery.gap}; every known shard is listed instead, and the schedule reconcile finds new ones"
            )
        summary = summary_of(len(delivery.bodies), news, decision, delivery.note)
        context.log.info(summary)
        return dg.SensorResult(
            run_requests=[_run_request(request) for request in decision.requests],
            skip_reason=None if decision.requests else summary,
            cursor=FeedCursor(arrivals_feed.name, delivery.position, decision.hints).dumps(),
            dynamic_partitions_requests=_new_partitions(context.instance, decision.requests),
            asset_events=[
                dg.AssetObservation(
                    source_objects.key,
                    partition=request.shard.key,
                    metadata={"named_objects": len(request.keys), "whole_shard": not request.keys},
                )
                for request in decision.requests
            ],
        )

    return s3_arrivals


def _run_request(request: Request) -> dg.RunRequest:
    config: Mapping[str, Any] = {"ops": {"raw_documents": {"config": {"keys": list(request.keys)}}}}
    return dg.RunRequest(
        run_key=request.run_key, partition_key=request.shard.key, run_config=config if request.keys else {}
    )


def summary_of(messages: int, news: DecodedMessages, decision: Decision, note: str) -> str:
    """One line for the operator."""
    counted = (
        (news.foreign, "foreign"),
        (news.tests, "test"),
        (news.outside, "of keys outside region/department/"),
        (news.golden, "of golden questions"),
    )
    apart = ", ".join(f"{count} {what}" for count, what in counted if count)
    return (
        f"{messages} messages named {len(news.named)} objects"
        + (f" ({apart})" if apart else "")
        + f"; {len(decision.requests)} shards asked for, {decision.waiting} waiting"
        + (f"; {note}" if note else "")
    )
