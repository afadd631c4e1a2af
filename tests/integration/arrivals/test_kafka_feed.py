"""Arrivals through a Kafka topic: on a real broker and, for features it lacks, on librdkafka's mock broker."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from pydantic import SecretStr

from rag_assets.arrivals.events.kafka import KafkaFeed
from rag_assets.arrivals.events.s3_records import WatchedPrefix, read_messages
from rag_assets.defs.build import build_definitions
from rag_assets.errors import FeedRefused, FeedUnavailable
from rag_serving.errors import SettingsError
from tests.pipelines import settings_for
from tests.servers import KafkaBroker

QUIET = {"log_level": 0}


@dataclass(frozen=True)
class Topic:
    """A topic, and a producer that waits until the broker has received each message."""

    brokers: str
    name: str
    producer: Producer

    def send(self, *values: bytes | None, partition: int = 0) -> None:
        for value in values:
            self.producer.produce(self.name, value, key=b"key", partition=partition)
        assert self.producer.flush(30) == 0

    def feed(self, **options: Any) -> KafkaFeed:
        return KafkaFeed(self.brokers, self.name, **options)

    def poll(self, position: Mapping[str, Any] | None = None, **options: Any) -> tuple[list[bytes], dict[str, int]]:
        delivery = self.feed(**options).poll(position or {}, seconds=20)
        assert delivery.gap == ""
        return sorted(body for body in delivery.bodies if isinstance(body, bytes)), delivery.position["offsets"]

    def at(self, **offsets: int) -> dict[str, Any]:
        """A position; `p0=3` is offset 3 of partition 0."""
        return {"topic": self.name, "offsets": {name[1:]: offset for name, offset in offsets.items()}}


NewTopics = Callable[..., Topic]


@pytest.fixture
def new_topic(kafka: KafkaBroker) -> NewTopics:
    def make(partitions: int = 1) -> Topic:
        name = f"arrivals-{uuid.uuid4().hex}"
        admin = AdminClient({"bootstrap.servers": kafka.address, **QUIET})
        for made in admin.create_topics([NewTopic(name, partitions, 1)]).values():
            made.result(30)
        return Topic(kafka.address, name, Producer({"bootstrap.servers": kafka.address, **QUIET}))

    return make


@pytest.fixture
def short_retention() -> Topic:
    """A topic of four partitions on librdkafka's mock broker, which retains about 5 MB of each."""
    producer = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, **QUIET})
    (broker,) = producer.list_topics(timeout=30).brokers.values()
    return Topic(f"{broker.host}:{broker.port}", "events", producer)


def record(key: str) -> bytes:
    stored = {"bucket": {"name": "docs"}, "object": {"key": f"incoming/{key}"}}
    return json.dumps(
        {"EventName": "s3:ObjectCreated:Put", "Key": f"docs/incoming/{key}", "Records": [{"s3": stored}]}
    ).encode()


def test_every_partition_is_read_from_its_start_and_then_from_its_offset(new_topic: NewTopics) -> None:
    topic = new_topic(partitions=2)
    topic.send(b"a", b"b", partition=0)
    topic.send(b"c", partition=1)
    bodies, offsets = topic.poll()
    assert (bodies, offsets) == ([b"a", b"b", b"c"], {"0": 2, "1": 1})
    assert topic.poll(topic.at(p0=2, p1=1)) == ([], offsets)
    topic.send(b"d", partition=1)
    assert topic.poll(topic.at(p0=2, p1=1)) == ([b"d"], {"0": 2, "1": 2})


def test_a_poll_from_the_same_position_returns_the_same_messages(new_topic: NewTopics) -> None:
    topic = new_topic()
    topic.send(b"a", b"b", b"c")
    assert topic.poll(topic.at(p0=1)) == topic.poll(topic.at(p0=1)) == ([b"b", b"c"], {"0": 3})


def test_a_partition_added_since_the_last_poll_is_read(new_topic: NewTopics) -> None:
    topic = new_topic(partitions=3)
    topic.send(b"old", partition=0)
    topic.send(b"new", partition=2)
    assert topic.poll(topic.at(p0=1, p1=0)) == ([b"new"], {"0": 1, "1": 0, "2": 1})


def test_an_empty_topic_returns_nothing_and_is_later_read_from_its_start(new_topic: NewTopics) -> None:
    topic = new_topic()
    bodies, offsets = topic.poll()
    assert bodies == []
    topic.send(b"first")
    assert topic.poll({"topic": topic.name, "offsets": offsets}) == ([b"first"], {"0": 1})


def test_a_message_without_a_value_is_returned_as_none(new_topic: NewTopics) -> None:
    topic = new_topic()
    topic.send(None, b"a")
    delivery = topic.feed().poll({}, seconds=20)
    assert delivery.bodies == (None, b"a")
    assert read_messages(delivery.bodies, WatchedPrefix("docs", "")).foreign == 2


def test_a_poll_reads_at_most_max_messages_and_the_next_one_continues(new_topic: NewTopics) -> None:
    topic = new_topic()
    topic.send(*(b"%02d" % number for number in range(25)))
    position: Mapping[str, Any] = {}
    read: list[list[bytes]] = []
    for _ in range(4):
        bodies, offsets = topic.poll(position, max_messages=10)
        read.append(bodies)
        position = {"topic": topic.name, "offsets": offsets}
    assert [len(bodies) for bodies in read] == [10, 10, 5, 0]
    assert sorted(body for bodies in read for body in bodies) == [b"%02d" % number for number in range(25)]


@pytest.mark.parametrize(
    "position", [{"topic": "another", "offsets": {"0": 1}}, {"handles": []}, {"topic": "", "offsets": {"x": None}}]
)
def test_a_position_of_another_topic_or_feed_restarts_from_the_beginning(
    new_topic: NewTopics, position: dict[str, Any]
) -> None:
    topic = new_topic()
    topic.send(b"a", b"b")
    named = {**position, "topic": topic.name} if position.get("topic") == "" else position
    assert topic.poll(named) == ([b"a", b"b"], {"0": 2})


def test_an_offset_expired_by_retention_is_a_gap_and_its_partition_restarts(short_retention: Topic) -> None:
    short_retention.send(b"a", b"b", b"c")
    short_retention.send(b"other", partition=1)
    for _ in range(9):
        short_retention.send(b"x" * 900_000)
    delivery = short_retention.feed().poll(short_retention.at(p0=1, p1=0, p2=0, p3=0), seconds=20)
    assert delivery.gap == "messages of events [0] were gone before they were read"
    assert (delivery.bodies, delivery.position["offsets"]) == ((b"other",), {"1": 1, "2": 0, "3": 0})
    after = short_retention.feed().poll(delivery.position, seconds=20)
    assert after.gap == ""
    assert after.position["offsets"] == {"0": 12, "1": 1, "2": 0, "3": 0}
    assert 0 < len(after.bodies) < 12


def test_an_offset_beyond_the_end_of_a_recreated_topic_is_a_gap(short_retention: Topic) -> None:
    short_retention.send(b"a")
    delivery = short_retention.feed().poll(short_retention.at(p0=1000, p1=0, p2=0, p3=0), seconds=20)
    assert delivery.gap == "messages of events [0] were gone before they were read"
    assert short_retention.feed().poll(delivery.position, seconds=20).bodies == (b"a",)


def test_a_topic_that_does_not_exist_is_named_in_the_error(kafka: KafkaBroker) -> None:
    with pytest.raises(FeedRefused, match=r"cannot read the topic nowhere: .*Unknown topic.*RAG_KAFKA_TOPIC"):
        KafkaFeed(kafka.address, "nowhere").poll({}, seconds=20)


def test_unreachable_brokers_raise_feed_unavailable_with_the_clients_error() -> None:
    with pytest.raises(FeedUnavailable, match=r"Connection refused.*RAG_KAFKA_BROKERS") as caught:
        KafkaFeed("127.0.0.1:1", "events").poll({}, seconds=20)
    assert not isinstance(caught.value, FeedRefused)


@pytest.mark.parametrize(
    ("brokers", "topic", "named"), [(None, "events", "RAG_KAFKA_BROKERS"), ("127.0.0.1:1", None, "RAG_KAFKA_TOPIC")]
)
def test_brokers_and_topic_must_be_set(brokers: str | None, topic: str | None, named: str) -> None:
    with pytest.raises(SettingsError, match=f"{named} is not set"):
        KafkaFeed(brokers, topic).poll({}, seconds=20)


def test_the_error_for_a_missing_kafka_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(SettingsError, match=r"pip install 'rag-shards\[kafka\]'"):
        KafkaFeed("127.0.0.1:1", "events").poll({}, seconds=20)


@pytest.mark.parametrize(
    "config", ["sasl.password=hunter2", '["hunter2"]', '{"sasl.password": ["hunter2"]}', '{"hunter2": "hunter2"}']
)
def test_the_error_for_invalid_client_properties_does_not_reveal_them(config: str) -> None:
    with pytest.raises(SettingsError, match="RAG_KAFKA_CONFIG") as caught:
        KafkaFeed("127.0.0.1:1", "events", SecretStr(config)).poll({}, seconds=20)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_client_properties_cannot_override_the_settings_that_offsets_depend_on(new_topic: NewTopics) -> None:
    topic = new_topic()
    topic.send(b"a")
    config = SecretStr('{"auto.offset.reset": "latest", "bootstrap.servers": "127.0.0.1:1", "client.id": "mine"}')
    assert topic.poll(config=config) == ([b"a"], {"0": 1})


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on disk: sensors reopen it by reference, which an in-memory instance does not have."""
    home = tmp_path / "dagster-home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as local:
        yield local


def test_the_sensor_reads_the_configured_topic_and_stores_offsets_with_hints(
    new_topic: NewTopics, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    topic = new_topic(partitions=2)
    settings = settings_for(
        "s3://docs/incoming",
        str(tmp_path / "lake"),
        arrivals="kafka",
        kafka_brokers=topic.brokers,
        kafka_topic=topic.name,
    )
    definitions = build_definitions(settings)
    resources = definitions.resources or {}

    def tick(cursor: str | None) -> tuple[list[list[str]], str]:
        with dg.build_sensor_context(
            instance=instance,
            instance_ref=instance.get_ref(),
            cursor=cursor,
            definitions=definitions,
            resources={name: resources[name] for name in ("pipeline", "arrivals_feed")},
        ) as context:
            found = definitions.resolve_sensor_def("s3_arrivals").evaluate_tick(context)
        for request in found.dynamic_partitions_requests or ():
            instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        runs = [run.run_config["ops"]["raw_documents"]["config"]["keys"] for run in found.run_requests or ()]
        return runs, found.cursor or ""

    topic.send(record("Oslo/people/b+c.md"), b"\xff", record("Oslo/people/a.md"))
    topic.send(record("Oslo/people/a.md"), b"{}", partition=1)
    runs, cursor = tick(None)
    assert runs == [["Oslo/people/a.md", "Oslo/people/b c.md"]]
    assert tick(None)[0] == runs  # like after a crash before the cursor was stored
    topic.send(record("Bergen/it/x.md"))
    runs, cursor = tick(cursor)
    assert runs == [["Bergen/it/x.md"]]
    assert json.loads(cursor)["position"] == {"topic": topic.name, "offsets": {"0": 4, "1": 2}}
    assert list(json.loads(cursor)["hints"]) == ["Oslo/people", "Bergen/it"]
