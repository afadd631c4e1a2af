"""The sensor that requests runs for arrivals: a thin shell over `rag_assets.arrivals`."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from rag_assets.arrivals import pending
from rag_assets.arrivals.events.cursor import FeedCursor
from rag_assets.arrivals.events.feed import watched_source
from rag_assets.arrivals.events.s3_records import DecodedMessages, read_messages
from rag_assets.arrivals.listing import Cursor, Sweep, decide, published_listing_digests, sweep
from rag_assets.arrivals.pending import Decision, RunRequest, add_named
from rag_assets.defs.jobs import AssetJob
from rag_assets.pipeline import Pipeline
from rag_assets.runs.names import Names
from rag_assets.runs.status import active_shards, known_shards, runs_of
from rag_assets.runs.tags import OBJECTS_TAG
from rag_assets.settings import PipelineSettings
from rag_assets.sources.listing_digest import listed_objects

SENSOR = "s3_arrivals"


@dataclass(frozen=True)
class _Tick:
    """The result of one evaluation: the runs to request, the next cursor, and a summary for the log."""

    requests: Sequence[RunRequest]
    cursor: str
    summary: str


def build_arrivals_sensor(settings: PipelineSettings, names: Names, job: AssetJob) -> dg.SensorDefinition:
    """Return the sensor `s3_arrivals`, which lists the source or reads the configured feed."""
    listing = settings.arrivals == "listing"
    look = _list_source if listing else _read_feed
    what = (
        "Lists the source and requests a run of every shard whose listing differs from the published one."
        if listing
        else f"Reads events from {settings.arrivals} and requests a run of each shard that they name, limited to the "
        "named objects if they are few."
    )

    @dg.sensor(
        name=names.job(SENSOR),
        job=job,
        minimum_interval_seconds=settings.arrivals_interval,
        required_resource_keys={"pipeline"} if listing else {"pipeline", "arrivals_feed"},
        description=f"{what} New regions and departments become partitions automatically.",
    )
    def s3_arrivals(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        tick = look(context, settings, names)
        context.log.info(tick.summary)
        known = set(context.instance.get_dynamic_partitions(names.partition_set))
        new = sorted({request.shard.key for request in tick.requests} - known)
        return dg.SensorResult(
            run_requests=[_run_request(request, names) for request in tick.requests],
            skip_reason=None if tick.requests else tick.summary,
            cursor=tick.cursor,
            dynamic_partitions_requests=[names.partitions.build_add_request(new)] if new else [],
            asset_events=[_observation(request, names) for request in tick.requests],
        )

    return s3_arrivals


def _list_source(context: dg.SensorEvaluationContext, settings: PipelineSettings, names: Names) -> _Tick:
    pipeline: Pipeline = context.resources.pipeline
    cursor = Cursor.loads(context.cursor)
    # List first, so that the listing is older than every publish that it is compared with.
    source = pipeline.source()
    seen = sweep(source, start_after=cursor.resume_after, seconds=settings.arrivals_tick_seconds)
    active = active_shards(context.instance, names)
    entries = pipeline.catalog().snapshot().entries
    published = published_listing_digests(entries, pipeline.fingerprint(), source.uri(""))
    decision, after = decide(seen, published, active, cursor, now=time.time(), max_requests=settings.arrivals_max_runs)
    return _Tick(decision.requests, after.dumps(), _listing_summary(seen, decision))


def _read_feed(context: dg.SensorEvaluationContext, settings: PipelineSettings, names: Names) -> _Tick:
    feed = context.resources.arrivals_feed
    watched = watched_source(settings.source_uri)
    cursor = FeedCursor.loads(context.cursor, feed.name)
    delivery = feed.poll(cursor.position, seconds=settings.arrivals_tick_seconds)
    news = read_messages(delivery.bodies, watched)
    # Messages that expired unread may have named any shard.
    missed = known_shards(context.instance, names) if delivery.gap else []
    runs = runs_of(context.instance, names, cursor.pending)
    # Random: a tick that is repeated after a crash may receive other messages and must not reuse the run keys.
    tick = f"{time.time():.0f}-{secrets.token_hex(4)}"
    decision = pending.decide(
        add_named(cursor.pending, news.named, missed),
        succeeded=runs.succeeded,
        active=runs.active,
        now=time.time(),
        max_requests=settings.arrivals_max_runs,
        run_key=lambda shard, _: f"{shard.key}@{tick}",
    )
    if delivery.gap:
        context.log.warning(
            f"{delivery.gap}; listing every known shard instead (the schedule reconcile finds new shards)"
        )
    after = FeedCursor(feed.name, delivery.position, decision.pending)
    return _Tick(decision.requests, after.dumps(), _feed_summary(len(delivery.bodies), news, decision, delivery.note))


def _run_request(request: RunRequest, names: Names) -> dg.RunRequest:
    config: Mapping[str, Any] = {"ops": {names.op("raw_documents"): {"config": {"keys": list(request.keys)}}}}
    return dg.RunRequest(
        run_key=request.run_key,
        partition_key=request.shard.key,
        run_config=config if request.keys else {},
        tags={OBJECTS_TAG: str(listed_objects(request.digest))} if request.digest else {},
    )


def _observation(request: RunRequest, names: Names) -> dg.AssetObservation:
    if request.digest:
        metadata: dict[str, Any] = {"source_digest": request.digest}
    else:
        metadata = {"named_objects": len(request.keys), "whole_shard": not request.keys}
    return dg.AssetObservation(
        names.asset("source_objects"),
        partition=request.shard.key,
        metadata=metadata,
        tags={"dagster/data_version": request.digest} if request.digest else None,
    )


def _listing_summary(seen: Sweep, decision: Decision) -> str:
    dirty = len(decision.requests) + decision.waiting
    return (
        f"{seen.objects} objects in {len(seen.digests)} shards; {dirty} dirty, "
        f"{len(decision.requests)} requested, {decision.waiting} waiting"
        + (f"; left out: {seen.left_out}" if seen.left_out.counts else "")
        + ("; the sweep continues in the next tick" if seen.resume_after else "")
    )


def _feed_summary(messages: int, news: DecodedMessages, decision: Decision, note: str) -> str:
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
        + f"; {len(decision.requests)} shards requested, {decision.waiting} waiting"
        + (f"; {note}" if note else "")
    )
