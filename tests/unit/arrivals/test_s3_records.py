"""Messages from S3, SNS, EventBridge and MinIO, and arbitrary other input."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_assets.arrivals.events.s3_records import (
    MAX_BODY_BYTES,
    DecodedMessages,
    NamedObjects,
    WatchedPrefix,
    read_messages,
)
from rag_serving.lake.shards import Shard

WATCHED = WatchedPrefix("company-docs", "incoming/")


def read_message(body: bytes | str | None, watched: WatchedPrefix) -> DecodedMessages:
    return read_messages([body], watched)


KEY = "Malmö/it & web/a+b/Årsrapport 100%.md"


def record(key: str, bucket: str = "company-docs", source: str = "aws:s3", event: str = "ObjectCreated:Put") -> Any:
    """A record whose key is encoded the way S3 encodes it."""
    stored = {"bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"}, "object": {"key": quote_plus(key, safe="/")}}
    return {"eventSource": source, "eventName": event, "s3": {"s3SchemaVersion": "1.0", **stored}}


def plain(*keys: str, **options: str) -> Any:
    return {"Records": [record(f"incoming/{key}", **options) for key in keys]}


SHAPES: Mapping[str, Any] = {
    "AWS": plain(KEY),
    "a bare record": record(f"incoming/{KEY}"),
    "SNS": {"Type": "Notification", "TopicArn": "arn:aws:sns:::t", "Message": json.dumps(plain(KEY))},
    "EventBridge": {
        "source": "aws.s3",
        "detail-type": "Object Created",
        "detail": {"bucket": {"name": "company-docs"}, "object": {"key": f"incoming/{KEY}", "size": 3}},
    },
    "MinIO": {
        "EventName": "s3:ObjectCreated:Put",
        "Key": f"company-docs/incoming/{KEY}",
        **plain(KEY, source="minio:s3"),
    },
    "MinIO without its records": {"EventName": "s3:ObjectCreated:Put", "Key": f"company-docs/incoming/{KEY}"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_message_format_names_the_same_document(shape: str) -> None:
    expected = DecodedMessages(named=(NamedObjects(Shard("Malmö", "it & web"), KEY),))
    text = json.dumps(SHAPES[shape])
    assert read_message(text, WATCHED) == expected
    assert read_message(text.encode(), WATCHED) == expected


@pytest.mark.parametrize("event", ["ObjectRemoved:DeleteMarkerCreated", "ObjectCreated:CompleteMultipartUpload", "?"])
def test_the_event_type_is_ignored(event: str) -> None:
    assert read_message(json.dumps(plain(KEY, event=event)), WATCHED) == read_message(json.dumps(plain(KEY)), WATCHED)


def test_encoded_slashes_in_keys_are_decoded() -> None:
    message = plain(KEY)
    message["Records"][0]["s3"]["object"]["key"] = quote_plus(f"incoming/{KEY}", safe="")
    assert [named.key for named in read_message(json.dumps(message), WATCHED).named] == [KEY]


def test_a_source_without_a_prefix_watches_the_whole_bucket() -> None:
    reading = read_message(json.dumps({"Records": [record("a/b/c.md")]}), WatchedPrefix("company-docs", ""))
    assert reading.named == (NamedObjects(Shard("a", "b"), "a/b/c.md"),)


def test_a_message_names_each_document_once() -> None:
    reading = read_message(json.dumps(plain("a/b/c.md", "a/b/d.md", "a/b/c.md")), WATCHED)
    assert [named.key for named in reading.named] == ["a/b/c.md", "a/b/d.md"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_s3_test_event_counts_as_a_test_and_not_as_foreign(wrapped: bool) -> None:
    event: Any = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "company-docs"}
    message = {"Type": "Notification", "Message": json.dumps(event)} if wrapped else event
    assert read_message(json.dumps(message), WATCHED) == DecodedMessages(tests=1)


@pytest.mark.parametrize(
    "key",
    [
        "elsewhere/a/b/c.md",
        "incoming/loose.md",
        "incoming/a/loose.md",
        "incoming/a/b/",
        "incoming/a/b/.hidden/c.md",
        "incoming/../b/c.md",
        "incoming/a/b/" + "x" * 1100,
        "incoming",
    ],
)
def test_keys_that_are_not_documents_count_as_outside(key: str) -> None:
    assert read_message(json.dumps({"Records": [record(key)]}), WATCHED) == DecodedMessages(outside=1)


def test_golden_questions_are_counted_separately_and_name_no_document() -> None:
    golden = json.dumps({"Records": [record("incoming/a/b/_eval/q.jsonl"), record("incoming/a/b/c.md")]})
    assert read_message(golden, WATCHED) == DecodedMessages((NamedObjects(Shard("a", "b"), "a/b/c.md"),), golden=1)
    assert read_messages([golden, golden], WATCHED).golden == 2
    elsewhere = json.dumps({"Records": [record("a/b/_eval/q.jsonl")]})
    assert read_message(elsewhere, WATCHED) == DecodedMessages(outside=1)


def test_a_key_that_is_not_valid_text_is_not_mistaken_for_another_key() -> None:
    message = plain(KEY)
    message["Records"][0]["s3"]["object"]["key"] = "incoming/a/b/%FF.md"
    assert read_message(json.dumps(message), WATCHED) == DecodedMessages(foreign=1)
    message["Records"][0]["s3"]["object"]["key"] = "incoming/a/b/\ud800.md"
    assert read_message(json.dumps(message), WATCHED) == DecodedMessages(outside=1)


def test_a_foreign_record_does_not_hide_other_records_of_its_message() -> None:
    records = [record("incoming/a/b/c.md", bucket="another"), 7, {"eventSource": "aws:ses"}, *plain(KEY)["Records"]]
    reading = read_message(json.dumps({"Records": records}), WATCHED)
    assert ([named.key for named in reading.named], reading.foreign) == ([KEY], 3)


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"\xff\xfe\x00",
        "no json",
        "null",
        "[]",
        "{}",
        '{"Records": []}',
        '{"Records": {}}',
        '{"Type": "Notification", "Message": 5}',
        '{"detail": []}',
        '{"EventName": "x", "Key": "bucket-alone"}',
        "[" * 100_000,
        '{"n": ' + "9" * 5000 + "}",
        b" " * (MAX_BODY_BYTES + 1),
    ],
)
def test_an_unrelated_message_is_foreign(body: bytes | str | None) -> None:
    assert read_messages([body], WATCHED) == DecodedMessages(foreign=1)


def test_several_messages_are_counted_together_and_repeated_keys_are_named_once() -> None:
    bodies = [json.dumps(plain(KEY)), json.dumps(plain(KEY, "loose.md")), '{"Event": "s3:TestEvent"}', "?", None]
    reading = read_messages(bodies, WATCHED)
    assert reading == DecodedMessages((NamedObjects(Shard("Malmö", "it & web"), KEY),), outside=1, foreign=2, tests=1)


names = st.sampled_from(
    "Records s3 bucket name object key eventSource detail source Type Message Event EventName Key".split()  # noqa: SIM905
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(names | st.text(), inner),
    max_leaves=30,
)


@given(anything)
def test_reading_any_json_never_raises(message: object) -> None:
    read_message(json.dumps(message), WATCHED)


@given(st.binary())
def test_reading_any_bytes_never_raises(body: bytes) -> None:
    read_messages([body], WATCHED)


@given(st.text(), st.text(), anything)
def test_reading_any_record_never_raises_and_counts_it_exactly_once(bucket: str, key: str, source: object) -> None:
    message = {"eventSource": source, "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}
    reading = read_message(json.dumps(message), WatchedPrefix(bucket, ""))
    assert len(reading.named) + reading.outside + reading.foreign + reading.golden == 1


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_key_of_a_shard_survives_s3_encoding(name: str) -> None:
    key = f"incoming/Malmö/it & web/x{name}x"
    reading = read_message(json.dumps({"Records": [record(key)]}), WATCHED)
    assert [named.key for named in reading.named] in ([key.removeprefix("incoming/")], [])
    assert len(reading.named) + reading.outside == 1


@pytest.mark.corpus
def test_sample_events_published_by_aws_and_minio_are_matched_by_bucket() -> None:
    data = os.environ.get("RAG_TEST_DATA")
    folder = Path(data, "events") if data else None
    if folder is None or not folder.is_dir():
        pytest.skip("needs event samples: set RAG_TEST_DATA to the folder that holds events/")

    def outside(name: str, bucket: str) -> int:
        # Their keys have no region and department, so they count as outside; another bucket's would be foreign.
        return read_message((folder / name).read_bytes(), WatchedPrefix(bucket, "")).outside

    assert outside("s3-event.json", "sourcebucket") == 1
    assert outside("s3-event-with-decoded.json", "sourcebucket") == 1
    assert outside("s3-event.json", "another") == 0
    assert sum(outside(f"minio/{path.name}", "images") for path in (folder / "minio").glob("*.json")) >= 4
