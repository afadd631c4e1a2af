"""Arrivals through a bucket that notifies an SQS queue, on moto, from uploading an object to what readers see."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import boto3
import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from rag_assets.arrivals.events.base import Delivery, Feed
from rag_assets.arrivals.events.s3_records import WatchedPrefix, read_messages
from rag_assets.arrivals.events.sqs import SqsFeed
from rag_assets.defs.build import build_definitions
from rag_assets.errors import FeedRefused, FeedUnavailable
from rag_assets.pipeline import Pipeline
from rag_assets.settings import PipelineSettings
from rag_assets.sources.base import FetchedObject, Source, SourceObject
from rag_serving.errors import SettingsError
from tests.pipelines import failure_of, published_rows, run_shard, seed_model, settings_for
from tests.servers import AwsServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient


@dataclass(frozen=True)
class Mailbox:
    """A bucket that notifies a queue."""

    s3: S3Client
    sqs: SQSClient
    bucket: str
    queue_url: str

    @property
    def watched(self) -> WatchedPrefix:
        return WatchedPrefix(self.bucket, "incoming/")

    def put(self, key: str, data: bytes = b"text") -> None:
        self.s3.put_object(Bucket=self.bucket, Key=f"incoming/{key}", Body=data)

    def delete(self, key: str) -> None:
        self.s3.delete_object(Bucket=self.bucket, Key=f"incoming/{key}")

    def send(self, body: str) -> None:
        self.sqs.send_message(QueueUrl=self.queue_url, MessageBody=body)

    def messages(self, queue_url: str = "") -> int:
        """Count the messages in the queue, including hidden ones."""
        names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=queue_url or self.queue_url, AttributeNames=names)
        return sum(int(value) for value in found.get("Attributes", {}).values())

    def redeliver(self, position: Mapping[str, Any]) -> None:
        """Make the messages visible immediately, as the end of the visibility timeout would."""
        for handle in position["handles"]:
            self.sqs.change_message_visibility(QueueUrl=self.queue_url, ReceiptHandle=handle, VisibilityTimeout=0)

    def feed(self, **options: Any) -> SqsFeed:
        return SqsFeed(self.queue_url, **{"visibility_seconds": 300, "wait_seconds": 1, **options})

    def keys(self, feed: SqsFeed, position: Mapping[str, Any] | None = None) -> tuple[list[str], Mapping[str, Any]]:
        delivery = feed.poll(position or {}, seconds=20)
        return sorted(named.key for named in read_messages(delivery.bodies, self.watched).named), delivery.position


def a_queue(sqs: SQSClient, attributes: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Create a queue and return its URL and ARN."""
    url = sqs.create_queue(QueueName=f"arrivals-{uuid.uuid4().hex}", Attributes=dict(attributes or {}))["QueueUrl"]  # pyright: ignore[reportArgumentType]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    return url, arn


@pytest.fixture
def mailbox(aws_environment: AwsServer) -> Mailbox:
    session = boto3.session.Session()
    s3, sqs = session.client("s3"), session.client("sqs")
    bucket = f"docs-{uuid.uuid4().hex}"
    region: Any = {"LocationConstraint": aws_environment.region}
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=region)
    url, arn = a_queue(sqs)
    rule: Any = {
        "QueueArn": arn,
        "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
        "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "incoming/"}]}},
    }
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={"QueueConfigurations": [rule]})
    box = Mailbox(s3, sqs, bucket, url)
    # Configuring notifications sends a test event, like on AWS.
    bodies = box.feed().poll({}, seconds=20).bodies
    assert read_messages(bodies, box.watched).tests == len(bodies)
    sqs.purge_queue(QueueUrl=url)
    return box


def test_every_key_arrives_unchanged_after_an_upload_and_a_deletion(mailbox: Mailbox) -> None:
    keys = [
        "Malmö/it & web/a+b c/Årsrapport 100%.md",
        "Oslo/people/plain.md",
        "日本/人事/就業 規則.md",
        "Oslo/people/a%20b&c=d?.md",
    ]
    for key in keys:
        mailbox.put(key)
    found, position = mailbox.keys(mailbox.feed())
    assert found == sorted(keys)
    mailbox.delete(keys[0])
    found, _ = mailbox.keys(mailbox.feed(), position)
    assert found == [keys[0]]


def test_keys_outside_the_notification_prefix_never_arrive(mailbox: Mailbox) -> None:
    mailbox.s3.put_object(Bucket=mailbox.bucket, Key="elsewhere/Oslo/people/x.md", Body=b"text")
    assert mailbox.feed().poll({}, seconds=20).bodies == ()


def test_a_message_is_deleted_by_the_poll_after_the_one_that_received_it(mailbox: Mailbox) -> None:
    for number in range(25):
        mailbox.put(f"Oslo/people/{number}.md")
    feed = mailbox.feed()
    delivery = feed.poll({}, seconds=20)
    assert (len(delivery.bodies), mailbox.messages()) == (25, 25)
    after = feed.poll(delivery.position, seconds=20)
    assert (after.bodies, after.note, mailbox.messages()) == ((), "", 0)


def test_a_message_is_redelivered_if_its_tick_was_lost(mailbox: Mailbox) -> None:
    mailbox.put("Oslo/people/x.md")
    lost = mailbox.feed().poll({}, seconds=20)
    mailbox.redeliver(lost.position)
    assert mailbox.keys(mailbox.feed())[0] == ["Oslo/people/x.md"]


def test_the_feeds_visibility_timeout_overrides_the_queues(mailbox: Mailbox) -> None:
    mailbox.sqs.set_queue_attributes(QueueUrl=mailbox.queue_url, Attributes={"VisibilityTimeout": "0"})
    mailbox.put("Oslo/people/x.md")
    assert len(mailbox.feed().poll({}, seconds=20).bodies) == 1


def test_an_invalid_receipt_handle_is_reported_and_dropped(mailbox: Mailbox) -> None:
    mailbox.put("Oslo/people/x.md")
    feed = mailbox.feed()
    position = feed.poll({}, seconds=20).position
    good = list(position["handles"])
    delivery = feed.poll({"handles": ["never given out", *good]}, seconds=20)
    assert delivery.note == "1 messages could not be deleted and will be delivered again"
    assert (delivery.position, mailbox.messages()) == ({"handles": []}, 0)


@pytest.mark.parametrize("position", [{"handles": 7}, {"handles": [7]}, {"offsets": {}}])
def test_a_position_without_valid_handles_deletes_nothing(mailbox: Mailbox, position: dict[str, Any]) -> None:
    mailbox.put("Oslo/people/x.md")
    assert len(mailbox.feed().poll(position, seconds=20).bodies) == 1


def test_a_poll_receives_at_most_max_messages_and_the_next_one_continues(mailbox: Mailbox) -> None:
    for number in range(15):
        mailbox.put(f"Oslo/people/{number:02}.md")
    feed = mailbox.feed(max_messages=12)
    first, position = mailbox.keys(feed)
    second, _ = mailbox.keys(feed, position)
    assert (len(first), len(second)) == (12, 3)
    assert len({*first, *second}) == 15


def test_a_slow_response_does_not_delay_messages_already_received(mailbox: Mailbox) -> None:
    for number in range(3):
        mailbox.put(f"Oslo/people/{number}.md")
    ticks = iter([0.0, 0.0, 0.0, 99.0])  # the poll starts, and its first response arrives late
    delivery = mailbox.feed(clock=lambda: next(ticks)).poll({}, seconds=100)
    assert len(delivery.bodies) == 3


def test_a_message_that_is_never_deleted_ends_in_the_dead_letter_queue(mailbox: Mailbox) -> None:
    dead_url, dead_arn = a_queue(mailbox.sqs)
    policy = json.dumps({"deadLetterTargetArn": dead_arn, "maxReceiveCount": "2"})
    mailbox.sqs.set_queue_attributes(QueueUrl=mailbox.queue_url, Attributes={"RedrivePolicy": policy})
    mailbox.put("Oslo/people/x.md")
    feed = mailbox.feed()
    for _ in range(3):
        mailbox.redeliver(feed.poll({}, seconds=20).position)
    assert (mailbox.messages(), mailbox.messages(dead_url)) == (0, 1)


def test_a_queue_that_does_not_exist_raises_feed_refused_with_the_reason(mailbox: Mailbox) -> None:
    feed = SqsFeed(mailbox.queue_url + "-gone", visibility_seconds=300)
    with pytest.raises(FeedRefused, match=r"cannot read the queue of RAG_SQS_QUEUE_URL: .*NonExistentQueue"):
        feed.poll({}, seconds=20)


def test_the_error_for_an_unreachable_sqs_endpoint_names_the_setting(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:1")
    with pytest.raises(FeedUnavailable, match="AWS_ENDPOINT_URL_SQS") as caught:
        mailbox.feed().poll({}, seconds=20)
    assert not isinstance(caught.value, FeedRefused)


def test_a_missing_region_or_missing_credentials_are_named_in_the_error(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(FeedRefused, match="region"):
        mailbox.feed().poll({}, seconds=20)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(FeedRefused, match="credentials"):
        mailbox.feed().poll({}, seconds=20)


def test_an_unset_queue_url_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="RAG_SQS_QUEUE_URL is not set"):
        SqsFeed(None, visibility_seconds=300).poll({}, seconds=20)


class RecordingSource:
    """A source that records its requests to the store."""

    def __init__(self, source: Source, asked: list[str]) -> None:
        self._source = source
        self._asked = asked

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        self._asked.append(f"LIST {prefix}")
        yield from self._source.pages(prefix, start_after=start_after)

    def head(self, key: str) -> SourceObject | None:
        self._asked.append(f"HEAD {key}")
        return self._source.head(key)

    def fetch(self, key: str) -> FetchedObject:
        self._asked.append(f"GET {key}")
        return self._source.fetch(key)

    def uri(self, key: str) -> str:
        return self._source.uri(key)


class RecordingPipeline(Pipeline):
    """A pipeline with a recording source; the class keeps the record because Dagster copies resources."""

    asked: ClassVar[list[str]] = []

    def source(self) -> Source:
        return RecordingSource(super().source(), self.asked)


@dataclass
class Deployment:
    """The sensor over the queue, and a stand-in for the daemon that executes its run requests in this process."""

    mailbox: Mailbox
    settings: PipelineSettings
    instance: dg.DagsterInstance
    cursor: str | None = None

    def tick(self, feed: Feed | None = None) -> SensorExecutionData:
        definitions = build_definitions(self.settings, {"arrivals_feed": feed or self.mailbox.feed()})
        resources = definitions.resources or {}
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            cursor=self.cursor,
            definitions=definitions,
            resources={name: resources[name] for name in ("pipeline", "arrivals_feed")},
        ) as context:
            found = definitions.resolve_sensor_def("s3_arrivals").evaluate_tick(context)
        self.cursor = found.cursor
        return found

    def run(self, request: dg.RunRequest) -> list[str]:
        """Execute the run and return its requests to the store."""
        RecordingPipeline.asked.clear()
        result = run_shard(
            self.instance,
            self.settings,
            request.partition_key or "",
            {"dagster/run_key": request.run_key or ""},
            RecordingPipeline(self.settings),
            run_config=request.run_config,
        )
        assert result.success, failure_of(result)
        return list(RecordingPipeline.asked)

    def texts(self, key: str) -> dict[str, str]:
        return {row["source"].rpartition("/")[2]: row["text"] for row in published_rows(self.settings.lake_uri, key)}


@pytest.fixture
def deployment(mailbox: Mailbox, model_lake: str, tmp_path: Path) -> Iterator[Deployment]:
    lake = str(tmp_path / "lake")
    seed_model(model_lake, lake)
    settings = settings_for(f"s3://{mailbox.bucket}/incoming", lake, arrivals="sqs", sqs_queue_url=mailbox.queue_url)
    home = tmp_path / "dagster-home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield Deployment(mailbox, settings, instance)


def keys_of(request: dg.RunRequest) -> list[str]:
    return request.run_config["ops"]["raw_documents"]["config"]["keys"]


def test_a_changed_document_is_read_without_listing_its_shard(deployment: Deployment) -> None:
    mailbox = deployment.mailbox
    for name in ("a", "b", "c"):
        mailbox.put(f"Malmö/it & web/{name} +.md", f"This is page {name}.".encode())
    (first,) = deployment.tick().run_requests or ()
    # A new shard's first run lists it, whatever the feed names. Golden questions, a few objects in their own folder,
    # are listed whenever there is something to publish.
    questions = "LIST Malmö/it & web/_eval/"
    assert sorted(deployment.run(first)) == [
        *(f"GET Malmö/it & web/{name} +.md" for name in "abc"),
        "LIST Malmö/it & web/",
        questions,
    ]

    mailbox.put("Malmö/it & web/b +.md", b"Page b was rewritten.")
    (second,) = deployment.tick().run_requests or ()
    assert deployment.run(second) == ["HEAD Malmö/it & web/b +.md", "GET Malmö/it & web/b +.md", questions]
    assert deployment.texts("Malmö/it & web") == {
        "a +.md": "This is page a.",
        "b +.md": "Page b was rewritten.",
        "c +.md": "This is page c.",
    }

    mailbox.delete("Malmö/it & web/c +.md")
    (third,) = deployment.tick().run_requests or ()
    assert deployment.run(third) == ["HEAD Malmö/it & web/c +.md", questions]
    assert deployment.texts("Malmö/it & web").keys() == {"a +.md", "b +.md"}

    quiet = deployment.tick()
    assert (quiet.run_requests, mailbox.messages()) == ([], 0)
    assert json.loads(quiet.cursor or "")["hints"] == {}


def test_duplicate_late_or_false_events_change_nothing_for_readers(deployment: Deployment) -> None:
    mailbox = deployment.mailbox
    mailbox.put("Oslo/people/a.md", b"The first version.")
    mailbox.put("Oslo/people/b.md", b"Another page.")
    (first,) = deployment.tick().run_requests or ()
    deployment.run(first)
    before = published_rows(deployment.settings.lake_uri, "Oslo/people")

    stale: Any = {"eventName": "ObjectRemoved:Delete", "s3": {"bucket": {"name": mailbox.bucket}}}
    for key in ("Oslo/people/a.md", "Oslo/people/a.md", "Oslo/people/never-there.md"):
        stale["s3"]["object"] = {"key": f"incoming/{key}", "eTag": "another", "sequencer": "00"}
        mailbox.send(json.dumps({"Records": [stale]}))
    mailbox.send("not an S3 event")
    (second,) = deployment.tick().run_requests or ()
    assert deployment.run(second) == ["HEAD Oslo/people/a.md", "HEAD Oslo/people/never-there.md"]
    assert published_rows(deployment.settings.lake_uri, "Oslo/people") == before
    deployment.tick()
    assert mailbox.messages() == 0  # the foreign message is deleted, too


class DyingFeed(SqsFeed):
    """A feed whose process dies after receiving messages."""

    def poll(self, position: Mapping[str, Any], *, seconds: float) -> Delivery:
        raise Died(super().poll(position, seconds=seconds).position)


class Died(Exception):
    """A dead tick; its argument is the lost position."""


def test_a_tick_that_dies_loses_no_message(deployment: Deployment) -> None:
    mailbox = deployment.mailbox
    dying = DyingFeed(mailbox.queue_url, visibility_seconds=300, wait_seconds=1)
    mailbox.put("Oslo/people/a.md")
    with pytest.raises(Died) as died:
        deployment.tick(dying)
    mailbox.redeliver(died.value.args[0])
    (first,) = deployment.tick().run_requests or ()
    assert keys_of(first) == ["Oslo/people/a.md"]

    mailbox.put("Oslo/people/b.md")
    with pytest.raises(Died) as died:
        deployment.tick(dying)  # it deletes the first message, whose hint is stored
    mailbox.redeliver(died.value.args[0])
    assert mailbox.messages() == 1
    deployment.run(first)
    (second,) = deployment.tick().run_requests or ()
    assert keys_of(second) == ["Oslo/people/b.md"]
