"""Parse S3's event records into the objects that they name. Messages are untrusted: no content raises.

Supported are the records of AWS (plain, through SNS, through EventBridge) and of MinIO, with or without an envelope.
Only bucket and key are used; the source itself tells what happened to the object.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote_plus

from rag_assets.sources.base import golden_shard_of, shard_of
from rag_serving.lake.shards import Shard

MAX_BODY_BYTES = 2 * 2**20  # SQS and, by default, Kafka limit messages to 1 MiB
_MAX_KEY_BYTES = 1024  # S3's limit
_TEST_EVENT = "s3:TestEvent"


@dataclass(frozen=True, slots=True)
class WatchedPrefix:
    """The part of the store that is the source."""

    bucket: str
    prefix: str
    """Empty or ending with a slash."""


@dataclass(frozen=True, slots=True)
class NamedObjects:
    """An object that an event names; the key is relative to the source."""

    shard: Shard
    key: str


@dataclass(frozen=True, slots=True)
class DecodedMessages:
    """The objects that messages name, each once, and counts of everything else."""

    named: tuple[NamedObjects, ...] = ()
    outside: int = 0
    """Keys of the bucket that are not documents."""
    foreign: int = 0
    """Records of another bucket or of another kind; an unreadable message counts as one."""
    tests: int = 0
    """Test events, which S3 sends when notifications are set up."""
    golden: int = 0
    """Files of golden questions; they are read when a shard is published."""


_Mention = tuple[str, str]
"""Bucket and decoded key of a record."""


def read_messages(bodies: Iterable[bytes | str | None], watched: WatchedPrefix) -> DecodedMessages:
    """Return the objects of the watched prefix that the messages name."""
    named: dict[NamedObjects, None] = {}  # ordered
    outside = foreign = tests = golden = 0
    for body in bodies:
        envelope = _parse(body)
        if _text(envelope, "Type") == "Notification":  # SNS wraps the event as text
            envelope = _parse(_text(envelope, "Message"))
        if _text(envelope, "Event") == _TEST_EVENT:
            tests += 1
            continue
        for mention in list(_mentions(envelope)) or [None]:
            if mention is None or mention[0] != watched.bucket:
                foreign += 1
                continue
            key = mention[1].removeprefix(watched.prefix)
            is_watched = mention[1].startswith(watched.prefix) and _storable(mention[1])
            shard = shard_of(key) if is_watched else None
            if shard is not None:
                named[NamedObjects(shard, key)] = None
            elif is_watched and golden_shard_of(key) is not None:
                golden += 1
            else:
                outside += 1
    return DecodedMessages(tuple(named), outside, foreign, tests, golden)


def _mentions(envelope: object) -> Iterator[_Mention | None]:
    """Yield one for each record of the envelope; None for a record that is not an S3 event."""
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
        return bucket, unquote_plus(key, errors="strict")
    except UnicodeDecodeError:
        return None


def _of_bridge(event: object) -> _Mention | None:
    """Read an event of EventBridge, which does not URL-encode keys."""
    bucket, key = _text(event, "detail", "bucket", "name"), _text(event, "detail", "object", "key")
    if bucket is None or key is None or _text(event, "source") != "aws.s3":
        return None
    return bucket, key


def _of_minio(event: object) -> _Mention | None:
    """Read MinIO's additional, unencoded ``bucket/key``; some relays drop the records."""
    bucket, slash, key = (_text(event, "Key") or "").partition("/")
    return (bucket, key) if slash else None


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
    """Return whether S3 could store an object with that key; JSON can contain lone surrogates, which UTF-8 cannot."""
    try:
        return len(key.encode()) <= _MAX_KEY_BYTES
    except UnicodeEncodeError:
        return False
