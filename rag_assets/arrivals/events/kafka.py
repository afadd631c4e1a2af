"""Arrivals from a Kafka topic that carries S3's event records.

Partitions are assigned by hand and read from the offsets in the position, so there is no consumer group, no rebalance
and no committed offset: the position alone says what was read. A partition that the position does not know, of a topic
that grew or at first, is read from its earliest message. An offset that the brokers no longer have (retention overtook
it, the topic was made anew) is reported as a gap, and the partition read from its earliest message at the next poll.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr, TypeAdapter

from rag_assets.arrivals.events.base import Delivery
from rag_assets.errors import FeedRefused, FeedUnavailable
from rag_serving.errors import SettingsError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message

MAX_MESSAGES = 10_000
MAX_BYTES = 32 * 2**20
_AT_ONCE = 500
_METADATA_SECONDS = 10.0
_QUIET_SECONDS = 5.0
"""Without a message or an end of a partition for so long, a poll is over: some partition has no leader now."""
_DEFAULTS: dict[str, Any] = {
    "group.id": "rag-shards",  # demanded by the client, joined by nobody
    "client.id": "rag-shards",
    "log_level": 2,  # what the client prints below that reaches us through its error callback too
    "reconnect.backoff.ms": 500,
}
_FIXED: dict[str, Any] = {
    # What the position rests on; RAG_KAFKA_CONFIG cannot change it.
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
}


def kafka_properties(config: SecretStr | None) -> dict[str, str | int | float | bool]:
    """Further librdkafka properties from `RAG_KAFKA_CONFIG`; raises `SettingsError`, which never shows them."""
    if config is None:
        return {}
    problem = SettingsError(
        'RAG_KAFKA_CONFIG must be one JSON object of librdkafka properties, such as {"security.protocol": "SASL_SSL"}'
    )
    try:
        return TypeAdapter(dict[str, str | int | float | bool]).validate_json(config.get_secret_value())
    except ValueError:
        raise problem from None


@dataclass
class _Read:
    """What was read so far."""

    offsets: dict[int, int]
    unfinished: set[int]
    gaps: set[int] = field(default_factory=set[int])
    bodies: list[bytes | None] = field(default_factory=list[bytes | None])
    size: int = 0


class KafkaFeed:
    """One topic, all its partitions."""

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
        """Read on from the offsets. The position is the topic, and the next offset of each of its partitions."""
        if self._brokers is None or self._topic is None:
            missing = "RAG_KAFKA_BROKERS" if self._brokers is None else "RAG_KAFKA_TOPIC"
            raise SettingsError(f"{missing} is not set; RAG_ARRIVALS=kafka needs the brokers and the topic to read")
        if importlib.util.find_spec("confluent_kafka") is None:
            raise SettingsError("RAG_ARRIVALS=kafka needs confluent-kafka: pip install 'rag-shards[kafka]'")
        deadline = self._clock() + seconds
        stored = _offsets(position, self._topic)
        with self._consumer(self._brokers, self._topic) as consumer:
            read = _Read(dict(stored), unfinished=_partitions(consumer, self._topic))
            self._read(consumer, self._topic, read, deadline)
        return Delivery(
            bodies=tuple(read.bodies),
            position={"topic": self._topic, "offsets": {str(n): read.offsets[n] for n in sorted(read.offsets)}},
            gap=f"messages of {self._topic} {sorted(read.gaps)} were gone before they were read" if read.gaps else "",
        )

    @contextmanager
    def _consumer(self, brokers: str, topic: str) -> Generator[Consumer]:
        from confluent_kafka import Consumer, KafkaException

        said: list[str] = []  # what the client's threads report tells more than the timeout that follows

        def note(error: KafkaError) -> None:
            said.append(error.str())

        try:
            given = {**_DEFAULTS, **kafka_properties(self._config), "bootstrap.servers": brokers, **_FIXED}
            consumer = Consumer({**given, "error_cb": note})
        except (KafkaException, TypeError, ValueError):  # whose words quote the property's value
            raise SettingsError(
                "librdkafka refuses RAG_KAFKA_BROKERS or a property of RAG_KAFKA_CONFIG; see its CONFIGURATION.md"
            ) from None
        try:
            yield consumer
        except KafkaException as error:
            with suppress(KafkaException):
                consumer.poll(0)  # which is when the client calls `note`
            raise _failure(topic, error.args[0], said) from error
        finally:
            consumer.close()

    def _read(self, consumer: Consumer, topic: str, read: _Read, deadline: float) -> None:
        """Read until every partition's end, the time is over, or it is enough for one tick."""
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


def _partitions(consumer: Consumer, topic: str) -> set[int]:
    from confluent_kafka import KafkaException

    described = consumer.list_topics(topic, timeout=_METADATA_SECONDS).topics[topic]
    if described.error is not None:
        raise KafkaException(described.error)
    return set(described.partitions)


def _take(message: Message, read: _Read) -> None:
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
        # The end may lie past what carries no message, such as the marks of transactions.
        read.offsets[number] = max(read.offsets.get(number, 0), offset or 0)


def _offsets(position: Mapping[str, Any], topic: str) -> dict[int, int]:
    """The stored offsets; none where they are of another topic or no offsets."""
    if position.get("topic") != topic:
        return {}
    try:
        return {int(number): int(offset) for number, offset in position["offsets"].items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _failure(topic: str, error: KafkaError, said: list[str]) -> FeedUnavailable:
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
        "The next tick goes on from the same offsets"
    )
