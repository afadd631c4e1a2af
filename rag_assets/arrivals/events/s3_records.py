"""From the body of a message to the objects that it names. Everything in it is untrusted, and nothing in it raises.

Read are S3's event records as AWS sends them (plain, through SNS, through EventBridge) and as MinIO does, in one
envelope or bare. Only bucket and key are looked at: what happened to the object, and in which order, is not for an
event to say.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote_plus

from rag_assets.sources.base import golden_shard_of, shard_of
from rag_serving.lake.shards import Shard

MAX_BODY_BYTES = 2 * 2**20  # SQS carries 1 MiB at most, a Kafka topic by default as much
_MAX_KEY_BYTES = 1024  # S3's own bound
_TEST_EVENT = "s3:TestEvent"


@dataclass(frozen=True, slots=True)
class WatchedPrefix:
    """The part of the store that a feed is read for."""

    bucket: str
    prefix: str
    """Empty, or ends with a slash."""


@dataclass(frozen=True, slots=True)
class NamedObjects:
    """An object that an event named; the key is relative to the source."""

    shard: Shard
    key: str


@dataclass(frozen=True, slots=True)
class DecodedMessages:
    """What one message came to."""

    named: tuple[NamedObjects, ...] = ()
    outside: int = 0
    """Keys of the bucket that belong to no document of any shard."""
    foreign: int = 0
    """Records of another bucket or of no S3 event; an unreadable message counts as one."""
    tests: int = 0
    """S3 sends one when notifications are set up."""
    golden: int = 0
    """Files of golden questions. They are read when a shard is published, so that nothing is to be done now."""


@dataclass(frozen=True, slots=True)
class _Mention:
    """Bucket and key as the event means them, decoded."""

    bucket: str
    key: str


_FOREIGN = DecodedMessages(foreign=1)


def read_message(body: bytes | str | None, watched: WatchedPrefix) -> DecodedMessages:
    """The documents that a message names. Never raises for what the message holds."""
    envelope = _parse(body)
    if _text(envelope, "Type") == "Notification":  # SNS wraps the event as text
        envelope = _parse(_text(envelope, "Message"))
    if _text(envelope, "Event") == _TEST_EVENT:
        return DecodedMessages(tests=1)
    mentions = list(_mentions(envelope))
    return _judge(mentions, watched) if mentions else _FOREIGN


def read_messages(bodies: Iterable[bytes | str | None], watched: WatchedPrefix) -> DecodedMessages:
    """Several messages as one; what they repeat is named once."""
    named: dict[NamedObjects, None] = {}
    outside = foreign = tests = golden = 0
    for body in bodies:
        reading = read_message(body, watched)
        named.update(dict.fromkeys(reading.named))
        outside, foreign, tests = outside + reading.outside, foreign + reading.foreign, tests + reading.tests
        golden += reading.golden
    return DecodedMessages(tuple(named), outside, foreign, tests, golden)


def _judge(mentions: Iterable[_Mention | None], watched: WatchedPrefix) -> DecodedMessages:
    named: dict[NamedObjects, None] = {}  # in order, each once
    outside = foreign = golden = 0
    for mention in mentions:
        if mention is None or mention.bucket != watched.bucket:
            foreign += 1
            continue
        key = mention.key.removeprefix(watched.prefix)
        watched_key = mention.key.startswith(watched.prefix) and _storable(mention.key)
        shard = shard_of(key) if watched_key else None
        if shard is not None:
            named[NamedObjects(shard, key)] = None
        elif watched_key and golden_shard_of(key) is not None:
            golden += 1
        else:
            outside += 1
    return DecodedMessages(tuple(named), outside, foreign, golden=golden)


def _mentions(envelope: object) -> Iterator[_Mention | None]:
    """One for each record of the envelope; None for a record that is no S3 event."""
    if not isinstance(envelope, dict):
        return
    fields = cast("dict[str, object]", envelope)
    records = fields.get("Records")
    if isinstance(records, list):
        yield from map(_of_record, cast("list[object]", records))
    elif "s3" in fields:
        yield _of_record(fields)
    elif "detail" in fields:
        yield _of_bridge(fields)
    elif "EventName" in fields:
        yield _of_minio(fields)


def _of_record(record: object) -> _Mention | None:
    bucket, key = _text(record, "s3", "bucket", "name"), _text(record, "s3", "object", "key")
    source = _text(record, "eventSource")
    if bucket is None or key is None or not (source is None or source.endswith(":s3")):
        return None
    try:
        return _Mention(bucket, unquote_plus(key, errors="strict"))
    except UnicodeDecodeError:
        return None


def _of_bridge(event: object) -> _Mention | None:
    """EventBridge, alone among them, sends keys as they are."""
    bucket, key = _text(event, "detail", "bucket", "name"), _text(event, "detail", "object", "key")
    if bucket is None or key is None or _text(event, "source") != "aws.s3":
        return None
    return _Mention(bucket, key)


def _of_minio(event: object) -> _Mention | None:
    """MinIO names ``bucket/key`` once more beside its records, as it is; some relays drop the records."""
    bucket, slash, key = (_text(event, "Key") or "").partition("/")
    return _Mention(bucket, key) if slash else None


def _parse(body: bytes | str | None) -> object:
    if body is None or len(body) > MAX_BODY_BYTES:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _text(value: object, *path: str) -> str | None:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = cast("dict[str, object]", value).get(name)
    return value if isinstance(value, str) else None


def _storable(key: str) -> bool:
    """Whether S3 could hold an object of that key at all; a lone surrogate, which JSON can spell, is no text."""
    try:
        return len(key.encode()) <= _MAX_KEY_BYTES
    except UnicodeEncodeError:
        return False
