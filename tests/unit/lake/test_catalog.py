"""The catalog: entries, snapshots and their refresh, and routing by region and department."""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from rag_serving.errors import InvalidArgument, InvalidShardName, LakeCorrupt, LakeUnavailable, UnknownScope
from rag_serving.lake.catalog import Catalog, Snapshot
from rag_serving.lake.catalog_entry import (
    CATALOG,
    HISTORY_LENGTH,
    CatalogEntry,
    Publication,
    catalog_key,
    read_catalog_entry,
    read_entry,
)
from rag_serving.lake.object_store import ANY, ObjectEntry, StoredObject
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import TABLE_FORMAT

LONDON_PEOPLE, LONDON_LEGAL = Shard("london", "people"), Shard("london", "legal")
TOKYO_PEOPLE, MUNICH_LEGAL = Shard("東京", "people"), Shard("M\u00fcnchen", "legal")


class CountedObjects:
    """An in-memory object store that counts requests."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.gets: list[str] = []
        self.lists = 0
        self.down = False
        self.vanished: set[str] = set()
        """Keys that are listed but gone when they are fetched."""

    def get(self, key: str) -> StoredObject | None:
        self.gets.append(key)
        if key not in self.data or key in self.vanished:
            return None
        return StoredObject(self.data[key], _etag(self.data[key]))

    def put(self, key: str, data: bytes, *, expect: str = ANY) -> str:
        self.data[key] = data
        return _etag(data)

    def list(self, prefix: str) -> list[ObjectEntry]:
        self.lists += prefix == CATALOG  # the company index's records are listed each time, too
        if self.down:
            raise LakeUnavailable("the lake is down")
        found = [(key, data) for key, data in self.data.items() if key.startswith(prefix + "/")]
        return [ObjectEntry(key, _etag(data), len(data)) for key, data in found]

    def delete(self, key: str) -> None:
        self.data.pop(key, None)


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def publication(version: int = 1) -> Publication:
    return Publication(
        version=version,
        content_digest="content-digest",
        source_digest="source-digest",
        fingerprint="f" * 32,
        documents=3,
        chunks=9,
        quarantined=0,
        published_at=datetime(2026, 1, 1, tzinfo=UTC),
        run_id="run",
    )


def entry(shard: Shard, version: int = 1, **changes: Any) -> CatalogEntry:
    values: dict[str, Any] = {
        "format": 1,
        "region": shard.region,
        "department": shard.department,
        "table": shard.table_name,
        "epoch": 1,
        "current": publication(version),
    }
    return CatalogEntry(**{**values, **changes})


def publish(objects: CountedObjects, shard: Shard, version: int = 1) -> None:
    objects.put(catalog_key(shard), entry(shard, version).to_json())


@pytest.fixture
def objects() -> CountedObjects:
    return CountedObjects()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(objects: CountedObjects, clock: Clock) -> Catalog:
    return Catalog(objects, refresh_seconds=2.0, clock=clock)


def versions(snapshot: Snapshot) -> dict[str, int]:
    return {shard.key: found.current.version for shard, found in snapshot.entries.items()}


def test_an_entry_survives_a_round_trip() -> None:
    written = entry(TOKYO_PEOPLE, 7, history=(publication(6), publication(5)))
    assert read_entry(TOKYO_PEOPLE, written.to_json()) == written
    assert written.shard == TOKYO_PEOPLE


def test_unknown_fields_from_a_later_release_are_ignored() -> None:
    data = entry(LONDON_PEOPLE).to_json().replace(b'"epoch"', b'"added_later": {"x": 1}, "epoch"')
    assert read_entry(LONDON_PEOPLE, data) == entry(LONDON_PEOPLE)


def test_a_table_of_a_later_release_is_left_out_instead_of_misread(objects: CountedObjects, catalog: Catalog) -> None:
    later = entry(LONDON_PEOPLE).to_json().replace(b'"table_format": 1', b'"table_format": 99')
    objects.put(catalog_key(LONDON_PEOPLE), later)
    publish(objects, TOKYO_PEOPLE)
    snapshot = catalog.snapshot()
    assert versions(snapshot) == {TOKYO_PEOPLE.key: 1}
    (why,) = snapshot.broken.values()
    assert (
        f"published by a newer release (table format 99, this one reads {TABLE_FORMAT}); upgrade this installation"
        in why
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "malformed"),
        (b"not json", "malformed"),
        (b"[]", "malformed"),
        (b"{}", "region"),
        (entry(LONDON_PEOPLE).to_json().replace(b'"format": 1', b'"format": 2'), "format"),
        (entry(LONDON_PEOPLE).to_json().replace(b'"version": 1', b'"version": 0'), "current.version"),
        (entry(LONDON_PEOPLE).to_json().replace(b'"chunks": 9', b'"chunks": -1'), "current.chunks"),
        (entry(LONDON_PEOPLE).to_json().replace(b'"people"', b'"peo|ple"'), "peo|ple"),
        (entry(LONDON_LEGAL).to_json(), "describes 'london/legal'"),
        (entry(LONDON_PEOPLE, table="london.legal").to_json(), "describes 'london.legal'"),
        (
            entry(LONDON_PEOPLE).model_copy(update={"history": (publication(),) * (HISTORY_LENGTH + 1)}).to_json(),
            "history",
        ),
    ],
)
def test_an_invalid_entry_is_corrupt_and_the_error_names_the_field(data: bytes, reason: str) -> None:
    with pytest.raises(LakeCorrupt) as caught:
        read_entry(LONDON_PEOPLE, data)
    assert reason in str(caught.value)
    assert "london/people" in str(caught.value)
    assert "publish" in str(caught.value)


def test_an_entry_is_read_with_its_etag_and_is_none_before_the_first_publish(objects: CountedObjects) -> None:
    assert read_catalog_entry(objects, LONDON_PEOPLE) is None
    publish(objects, LONDON_PEOPLE, 4)
    found = read_catalog_entry(objects, LONDON_PEOPLE)
    assert found is not None
    assert (found[0].current.version, found[1]) == (4, _etag(objects.data[catalog_key(LONDON_PEOPLE)]))


def test_a_snapshot_contains_every_published_shard(objects: CountedObjects, catalog: Catalog) -> None:
    for number, shard in enumerate((LONDON_PEOPLE, TOKYO_PEOPLE, MUNICH_LEGAL), 1):
        publish(objects, shard, number)
    snapshot = catalog.snapshot()
    assert versions(snapshot) == {"london/people": 1, "東京/people": 2, "M\u00fcnchen/legal": 3}
    assert snapshot.broken == {}


def test_a_snapshot_of_an_empty_lake_is_empty(catalog: Catalog) -> None:
    assert catalog.snapshot() == Snapshot({}, {})


def test_nothing_is_contacted_before_the_first_snapshot(objects: CountedObjects, catalog: Catalog) -> None:
    assert catalog.cached() is None
    assert (objects.lists, objects.gets) == (0, [])


def test_a_snapshot_is_reused_for_the_refresh_interval(objects: CountedObjects, clock: Clock, catalog: Catalog) -> None:
    publish(objects, LONDON_PEOPLE, 1)
    first = catalog.snapshot()
    publish(objects, LONDON_PEOPLE, 2)
    clock.now += 1.9
    assert catalog.snapshot() is first
    assert catalog.cached() is first
    assert objects.lists == 1
    clock.now += 0.2
    assert catalog.cached() is None
    assert versions(catalog.snapshot()) == {"london/people": 2}
    assert versions(first) == {"london/people": 1}, "a question in flight keeps the snapshot it started with"


def test_only_changed_objects_are_fetched_again(objects: CountedObjects, clock: Clock, catalog: Catalog) -> None:
    for shard in (LONDON_PEOPLE, LONDON_LEGAL, TOKYO_PEOPLE):
        publish(objects, shard, 1)
    catalog.snapshot()
    assert Counter(objects.gets) == Counter(objects.data.keys())
    objects.gets.clear()
    clock.now += 3
    publish(objects, LONDON_LEGAL, 2)
    publish(objects, MUNICH_LEGAL, 1)
    assert versions(catalog.snapshot())["london/legal"] == 2
    assert sorted(objects.gets) == sorted([catalog_key(LONDON_LEGAL), catalog_key(MUNICH_LEGAL)])


def test_a_refresh_without_changes_fetches_nothing_and_keeps_the_snapshot(
    objects: CountedObjects, clock: Clock, catalog: Catalog
) -> None:
    publish(objects, LONDON_PEOPLE)
    objects.put(catalog_key(LONDON_LEGAL), b"broken")
    first = catalog.snapshot()
    objects.gets.clear()
    clock.now += 3
    assert catalog.snapshot() is first
    assert (objects.lists, objects.gets) == (2, [])
    assert catalog.cached() is first


def test_a_shard_whose_object_was_removed_leaves_the_snapshot(
    objects: CountedObjects, clock: Clock, catalog: Catalog
) -> None:
    publish(objects, LONDON_PEOPLE)
    publish(objects, LONDON_LEGAL)
    catalog.snapshot()
    objects.delete(catalog_key(LONDON_LEGAL))
    clock.now += 3
    assert versions(catalog.snapshot()) == {"london/people": 1}


def test_an_object_deleted_between_listing_and_fetch_is_left_out(objects: CountedObjects, catalog: Catalog) -> None:
    publish(objects, LONDON_PEOPLE)
    publish(objects, LONDON_LEGAL)
    objects.vanished.add(catalog_key(LONDON_LEGAL))
    snapshot = catalog.snapshot()
    assert (versions(snapshot), snapshot.broken) == ({"london/people": 1}, {})


def test_a_broken_object_is_left_out_and_reported_until_it_is_repaired(
    objects: CountedObjects, clock: Clock, catalog: Catalog
) -> None:
    publish(objects, LONDON_PEOPLE)
    objects.put(catalog_key(LONDON_LEGAL), b"{")
    objects.put("catalog/Not A Table.json", b"{}")
    objects.put("catalog/_6c.people.json", entry(Shard("l", "people")).to_json())
    snapshot = catalog.snapshot()
    assert versions(snapshot) == {"london/people": 1}
    assert snapshot.broken.keys() == {
        catalog_key(LONDON_LEGAL),
        "catalog/Not A Table.json",
        "catalog/_6c.people.json",
    }
    assert "london/legal" in snapshot.broken[catalog_key(LONDON_LEGAL)]
    publish(objects, LONDON_LEGAL, 2)
    clock.now += 3
    repaired = catalog.snapshot()
    assert versions(repaired) == {"london/people": 1, "london/legal": 2}
    assert catalog_key(LONDON_LEGAL) not in repaired.broken


def test_an_object_that_becomes_corrupt_removes_its_shard_from_the_snapshot(
    objects: CountedObjects, clock: Clock, catalog: Catalog
) -> None:
    publish(objects, LONDON_PEOPLE)
    catalog.snapshot()
    objects.put(catalog_key(LONDON_PEOPLE), b"{")
    clock.now += 3
    snapshot = catalog.snapshot()
    assert (snapshot.entries, snapshot.broken.keys()) == ({}, {catalog_key(LONDON_PEOPLE)})


def test_objects_other_than_catalog_json_files_are_ignored(objects: CountedObjects, catalog: Catalog) -> None:
    objects.put("catalog/README.txt", b"hello")
    objects.put("leases/london.people.json", b"{}")
    assert catalog.snapshot() == Snapshot({}, {})


def test_an_unavailable_lake_raises_and_the_next_call_tries_again(
    objects: CountedObjects, clock: Clock, catalog: Catalog
) -> None:
    publish(objects, LONDON_PEOPLE)
    catalog.snapshot()
    clock.now += 3
    objects.down = True
    for _ in range(2):
        with pytest.raises(LakeUnavailable):
            catalog.snapshot()
    objects.down = False
    assert versions(catalog.snapshot()) == {"london/people": 1}


def test_many_threads_share_one_refresh(objects: CountedObjects, catalog: Catalog) -> None:
    publish(objects, LONDON_PEOPLE)
    with ThreadPoolExecutor(8) as pool:
        snapshots = list(pool.map(lambda _: catalog.snapshot(), range(50)))
    assert all(snapshot is snapshots[0] for snapshot in snapshots)
    assert (objects.lists, len(objects.gets)) == (1, 1)


@pytest.fixture
def published() -> Snapshot:
    shards = (TOKYO_PEOPLE, LONDON_PEOPLE, MUNICH_LEGAL, LONDON_LEGAL)
    return Snapshot({shard: entry(shard) for shard in shards})


@pytest.mark.parametrize(
    ("regions", "departments", "expected"),
    [
        (None, None, ["M\u00fcnchen/legal", "london/legal", "london/people", "東京/people"]),
        (["london"], None, ["london/legal", "london/people"]),
        (None, ["people"], ["london/people", "東京/people"]),
        (["london"], ["people"], ["london/people"]),
        (["london", "東京"], ["people", "legal"], ["london/legal", "london/people", "東京/people"]),
        (["london", "london"], ["people"], ["london/people"]),
        (["Mu\u0308nchen"], None, ["M\u00fcnchen/legal"]),
        ((name for name in ["london"]), {"legal"}, ["london/legal"]),
    ],
)
def test_a_question_is_routed_to_the_published_shards_of_its_scope(
    published: Snapshot, regions: Any, departments: Any, expected: list[str]
) -> None:
    assert [found.shard.key for found in published.route(regions, departments)] == expected


@pytest.mark.parametrize(
    ("regions", "departments", "error", "words"),
    [
        (["londno"], None, UnknownScope, "region 'londno'; did you mean london"),
        (None, ["zzz"], UnknownScope, "department 'zzz'; list the shards with `rag-serving shards`"),
        (["London"], None, UnknownScope, "region 'London'; did you mean london"),
        (["東京"], ["legal"], UnknownScope, "together"),
        ([], None, InvalidArgument, "list of regions is empty"),
        (None, [], InvalidArgument, "list of departments is empty"),
        ("london", None, InvalidArgument, "write ['london']"),
        (["a|b"], None, InvalidShardName, "are allowed"),
        ([""], None, InvalidShardName, "empty"),
        ([None], None, InvalidShardName, "must be a string"),
    ],
)
def test_an_invalid_scope_is_rejected_with_a_suggestion(
    published: Snapshot, regions: Any, departments: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        published.route(regions, departments)
    assert words in str(caught.value)


def test_routing_in_an_empty_lake_suggests_a_backfill() -> None:
    with pytest.raises(UnknownScope, match="rag-assets backfill"):
        Snapshot({}).route(None, None)
