"""Arrivals from a Kafka topic that carries S3's event records.

Partitions are assigned manually and read from the offsets in the position, so there is no consumer group, rebalance or
committed offset. New partitions are read from their earliest message. If the brokers no longer have an offset (expired
by retention, topic recreated), this is reported as a gap, and the next poll starts at the earliest message.
"""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr, TypeAdapter

from rag_assets.arrivals.events.base import Delivery
from rag_assets.errors import FeedRefused, FeedUnavailable
from rag_serving.errors import SettingsError
from rag_serving.requirements import require_module

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message

MAX_MESSAGES = 10_000
MAX_BYTES = 32 * 2**20
_AT_ONCE = 500
_METADATA_SECONDS = 10.0
_QUIET_SECONDS = 5.0
"""A poll ends after this time without a message or the end of a partition: some partition has no leader."""
_DEFAULTS: dict[str, Any] = {
    "group.id": "rag-shards",  # required by the client, but never joined
    "client.id": "rag-shards",
    "log_level": 2,  # the error callback reports the rest
    "reconnect.backoff.ms": 500,
}
_FIXED: dict[str, Any] = {
    # The position depends on these, so RAG_KAFKA_CONFIG cannot override them.
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
}


def kafka_properties(config: SecretStr | None) -> dict[str, str | int | float | bool]:
    """Parse `RAG_KAFKA_CONFIG`; raise `SettingsError`, which never contains its values."""
    if config is None:
        return {}
    try:
        return TypeAdapter(dict[str, str | int | float | bool]).validate_json(config.get_secret_value())
    except ValueError:
        raise SettingsError(
            "RAG_KAFKA_CONFIG must be one JSON object of librdkafka properties, such as "
            '{"security.protocol": "SASL_SSL"}'
        ) from None


@dataclass
class _Read:
    """The messages and offsets of a poll so far."""

    offsets: dict[int, int]
    unfinished: set[int]
    gaps: set[int] = field(default_factory=set[int])
    bodies: list[bytes | None] = field(default_factory=list[bytes | None])
    size: int = 0


class KafkaFeed:
    """All partitions of one topic."""

    name = "kafka"

    def __init__(
        self,
        brokers: str | None,
        topic: str | None,
        config: SecretStr | None = None,
        *,
        max_messages: int = MAX_MESSAGES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._brokers = brokers
        self._topic = topic
        self._config = config
        self._max_messages = max_messages
        self._clock = clock

    def poll(self, position: Mapping[str, Any], *, seconds: float) -> Delivery:
        """Read from the offsets in the position, which has the topic and the next offset of each partition."""
        if self._brokers is None or self._topic is None:
            missing = "RAG_KAFKA_BROKERS" if self._brokers is None else "RAG_KAFKA_TOPIC"
            raise SettingsError(f"{missing} is not set; RAG_ARRIVALS=kafka needs the brokers and the topic to read")
        require_module("confluent_kafka", "kafka", "RAG_ARRIVALS=kafka")
        deadline = self._clock() + seconds
        stored = _offsets(position, self._topic)
        with self._consumer(self._brokers, self._topic) as consumer:
            read = _Read(stored, unfinished=_partitions(consumer, self._topic))
            self._read(consumer, self._topic, read, deadline)
        return Delivery(
            bodies=tuple(read.bodies),
            position={"topic": self._topic, "offsets": {str(n): read.offsets[n] for n in sorted(read.offsets)}},
            gap=f"messages of {self._topic} {sorted(read.gaps)} were gone before they were read" if read.gaps else "",
        )

    @contextmanager
    def _consumer(self, brokers: str, topic: str) -> "Generator[Consumer]":
        from confluent_kafka import Consumer, KafkaException

        said: list[str] = []  # reports of the client's threads explain the timeout that follows

        def note(error: "KafkaError") -> None:
            said.append(error.str())

        try:
            given = {**_DEFAULTS, **kafka_properties(self._config), "bootstrap.servers": brokers, **_FIXED}
            consumer = Consumer({**given, "error_cb": note})
        except (KafkaException, TypeError, ValueError):  # their messages contain the property's value
            raise SettingsError(
                "librdkafka rejects RAG_KAFKA_BROKERS or a property of RAG_KAFKA_CONFIG; see its CONFIGURATION.md"
            ) from None
        try:
            yield consumer
        except KafkaException as error:
            with suppress(KafkaException):
                consumer.poll(0)  # lets the client call `note`
            raise _failure(topic, error.args[0], said) from error
        finally:
            consumer.close()

    def _read(self, consumer: "Consumer", topic: str, read: _Read, deadline: float) -> None:
        """Read until the end of every partition, the deadline, or the limits of one poll."""
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        consumer.assign(
            [TopicPartition(topic, n, read.offsets.get(n, OFFSET_BEGINNING)) for n in sorted(read.unfinished)]
        )
        heard = self._clock()
        while read.unfinished and (now := self._clock()) < min(deadline, heard + _QUIET_SECONDS):
            room = self._max_messages - len(read.bodies)
            if room <= 0 or read.size >= MAX_BYTES:
                return
            messages = consumer.consume(min(room, _AT_ONCE), timeout=min(deadline - now, 0.2))
            for message in messages:
                _take(message, read)
            if messages:
                heard = self._clock()


def _partitions(consumer: "Consumer", topic: str) -> set[int]:
    from confluent_kafka import KafkaException

    described = consumer.list_topics(topic, timeout=_METADATA_SECONDS).topics[topic]
    if described.error is not None:
        raise KafkaException(described.error)
    return set(described.partitions)


def _take(message: "Message", read: _Read) -> None:
    from confluent_kafka import KafkaError, KafkaException

    number, offset, error = message.partition(), message.offset(), message.error()
    code = None if error is None else error.code()
    if number is None or code not in (None, KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET):  # pyright: ignore[reportPrivateUsage]
        raise KafkaException(error)
    if code == KafkaError._AUTO_OFFSET_RESET:  # pyright: ignore[reportPrivateUsage]
        read.unfinished.discard(number)
        read.gaps.add(number)
        read.offsets.pop(number, None)
    elif code is None:
        body = message.value()
        read.bodies.append(body)
        read.size += len(body or b"")
        read.offsets[number] = (offset or 0) + 1
    else:
        read.unfinished.discard(number)
        # The end may be after entries that are not messages, such as transaction markers.
        read.offsets[number] = max(read.offsets.get(number, 0), offset or 0)


def _offsets(position: Mapping[str, Any], topic: str) -> dict[int, int]:
    """Return the stored offsets; empty if they are invalid or of another topic."""
    if position.get("topic") != topic:
        return {}
    try:
        return {int(number): int(offset) for number, offset in position["offsets"].items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _failure(topic: str, error: "KafkaError", said: list[str]) -> FeedUnavailable:
    from confluent_kafka import KafkaError as Code

    refusals = (
        Code.UNKNOWN_TOPIC_OR_PART,
        Code.TOPIC_AUTHORIZATION_FAILED,
        Code.CLUSTER_AUTHORIZATION_FAILED,
        Code.SASL_AUTHENTICATION_FAILED,
        Code._AUTHENTICATION,  # pyright: ignore[reportPrivateUsage]
        Code._UNKNOWN_TOPIC,  # pyright: ignore[reportPrivateUsage]
    )
    kind = FeedRefused if error.code() in refusals else FeedUnavailable
    reasons = "; ".join(dict.fromkeys([error.str(), *said[:2]]))[:400]
    return kind(
        f"cannot read the topic {topic}: {reasons}; check RAG_KAFKA_BROKERS, RAG_KAFKA_TOPIC and RAG_KAFKA_CONFIG. "
        "The next tick continues from the same offsets"
    )
