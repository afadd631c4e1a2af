"""Small lake objects, in a folder and on a real S3 server."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from rag_serving.errors import LakeUnavailable, SettingsError, WriteConflict
from rag_serving.lake.object_store import (
    ABSENT,
    FolderObjectStore,
    ObjectStore,
    folder_path,
    open_object_store,
    split_s3,
)

PROCESSES, THREADS, INCREMENTS = 3, 3, 8


@pytest.fixture
def objects(lake_uri: str) -> ObjectStore:
    return open_object_store(lake_uri)


def test_a_written_object_is_read_back_unchanged(objects: ObjectStore) -> None:
    data = bytes(range(256)) * 1000
    etag = objects.put("catalog/a.b.json", data)
    found = objects.get("catalog/a.b.json")
    assert found is not None
    assert (found.data, found.etag) == (data, etag)


def test_an_object_that_was_never_written_is_none(objects: ObjectStore) -> None:
    assert objects.get("catalog/nothing.json") is None
    objects.put("catalog/a.json", b"1")
    assert objects.get("catalog/a.json/nothing") is None


def test_an_empty_object_is_not_a_missing_one(objects: ObjectStore) -> None:
    objects.put("empty", b"")
    found = objects.get("empty")
    assert found is not None
    assert found.data == b""


def test_an_unconditional_write_replaces_the_object(objects: ObjectStore) -> None:
    objects.put("key", b"long ago")
    objects.put("key", b"now")
    found = objects.get("key")
    assert found is not None
    assert found.data == b"now"


def test_a_listing_returns_exactly_the_objects_below_a_prefix_with_their_etags(
    objects: ObjectStore,
) -> None:
    for key in ("catalog/a.json", "catalog/deep/b.json", "catalogue/c.json", "leases/d.json"):
        objects.put(key, key.encode())
    listed = {entry.key: entry for entry in objects.list("catalog")}
    assert listed.keys() == {"catalog/a.json", "catalog/deep/b.json"}
    for key, entry in listed.items():
        found = objects.get(key)
        assert found is not None
        assert (entry.etag, entry.size) == (found.etag, len(key))


def test_listing_an_empty_prefix_returns_nothing(objects: ObjectStore) -> None:
    assert objects.list("catalog") == []


def test_a_listing_continues_beyond_one_page_of_the_server(objects: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: objects.put(f"many/{n:04}.json", b"{}"), range(1010)))
    assert sorted(entry.key for entry in objects.list("many")) == [f"many/{n:04}.json" for n in range(1010)]


def test_deleting_an_object_is_idempotent(objects: ObjectStore) -> None:
    objects.put("dir/key", b"1")
    objects.delete("dir/key")
    assert objects.get("dir/key") is None
    assert objects.list("dir") == []
    objects.delete("dir/key")
    objects.delete("never/was")


def test_a_write_that_expects_no_object_succeeds_once(objects: ObjectStore) -> None:
    first = objects.put("leases/a.json", b"one", expect=ABSENT)
    with pytest.raises(WriteConflict, match=r"leases/a\.json"):
        objects.put("leases/a.json", b"two", expect=ABSENT)
    found = objects.get("leases/a.json")
    assert found is not None
    assert (found.data, found.etag) == (b"one", first)


def test_a_write_with_the_current_etag_succeeds_and_with_a_stale_one_conflicts(objects: ObjectStore) -> None:
    first = objects.put("key", b"one")
    second = objects.put("key", b"two", expect=first)
    assert second != first
    with pytest.raises(WriteConflict):
        objects.put("key", b"three", expect=first)
    found = objects.get("key")
    assert found is not None
    assert (found.data, found.etag) == (b"two", second)


def test_etags_from_reads_and_listings_work_in_conditional_writes(objects: ObjectStore) -> None:
    objects.put("dir/key", b"one")
    found = objects.get("dir/key")
    assert found is not None
    objects.put("dir/key", b"two", expect=found.etag)
    (entry,) = objects.list("dir")
    objects.put("dir/key", b"three", expect=entry.etag)


def test_a_write_that_expects_an_object_conflicts_if_it_was_deleted(objects: ObjectStore) -> None:
    etag = objects.put("key", b"one")
    objects.delete("key")
    with pytest.raises(WriteConflict):
        objects.put("key", b"two", expect=etag)
    assert objects.get("key") is None


def count_up(uri: str) -> None:
    """Increment the counter `INCREMENTS` times in each thread by conditional writes."""

    def increments() -> None:
        objects = open_object_store(uri)
        for _ in range(INCREMENTS):
            while True:
                found = objects.get("counter")
                number = int(found.data) if found else 0
                try:
                    objects.put("counter", b"%06d" % (number + 1), expect=found.etag if found else ABSENT)
                except WriteConflict:
                    continue
                break

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(increments) for _ in range(THREADS)]:
            future.result()


def test_processes_and_threads_racing_on_a_counter_lose_no_increment(lake_uri: str) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        list(pool.map(count_up, [lake_uri] * PROCESSES))
    found = open_object_store(lake_uri).get("counter")
    assert found is not None
    assert int(found.data) == PROCESSES * THREADS * INCREMENTS


def test_a_reader_never_sees_a_partial_write(objects: ObjectStore) -> None:
    sizes = (10, 200_000)
    objects.put("key", b"x" * sizes[0])

    def write() -> None:
        for n in range(40):
            objects.put("key", b"x" * sizes[n % 2])

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            found = objects.get("key")
            assert found is not None
            assert len(found.data) in sizes
        writing.result()


def test_etags_of_files_never_repeat_even_within_one_clock_tick(tmp_path: Path) -> None:
    objects = FolderObjectStore(tmp_path)
    etags = [objects.put("key", b"%04d" % n) for n in range(100)]
    assert len(set(etags)) == len(etags)


def test_a_folder_lists_neither_its_lock_nor_unfinished_writes(tmp_path: Path) -> None:
    objects = FolderObjectStore(tmp_path)
    objects.put("dir/key", b"1")
    (tmp_path / "dir" / ".write-left-by-a-killed-process").write_bytes(b"half")
    assert [entry.key for entry in objects.list("dir")] == ["dir/key"]


def test_the_next_write_overwrites_the_partial_file_of_a_killed_writer(tmp_path: Path) -> None:
    objects = FolderObjectStore(tmp_path)
    objects.put("dir/key", b"1")
    (tmp_path / "dir" / ".write-key").write_bytes(b"a longer half that was never finished")
    objects.put("dir/key", b"2")
    assert sorted(path.name for path in (tmp_path / "dir").iterdir()) == [".lock", "key"]
    assert (tmp_path / "dir" / "key").read_bytes() == b"2"


def test_a_lake_that_is_a_file_is_unavailable_rather_than_empty(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("not a folder")
    objects = FolderObjectStore(tmp_path / "lake")
    with pytest.raises(LakeUnavailable):
        objects.list("catalog")
    with pytest.raises(LakeUnavailable):
        objects.put("catalog/a.json", b"1")


Operation = Callable[[ObjectStore], object]

OPERATIONS: dict[str, Operation] = {
    "get": lambda objects: objects.get("key"),
    "list": lambda objects: objects.list("dir"),
    "put": lambda objects: objects.put("key", b"1"),
    "create": lambda objects: objects.put("key", b"1", expect=ABSENT),
    "update": lambda objects: objects.put("key", b"1", expect='"0123"'),
    "delete": lambda objects: objects.delete("key"),
}


def fails_quickly(objects: ObjectStore, operation: Operation, reason: str) -> str:
    started = time.monotonic()
    with pytest.raises(LakeUnavailable, match=reason) as caught:
        operation(objects)
    assert time.monotonic() - started < 60  # rather than after minutes of retries
    message = str(caught.value)
    assert "RAG_LAKE_URI" in message
    assert "\n" not in message
    return message


# SeaweedFS answers such an update with "precondition failed", which raises WriteConflict: not a success, either.
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "update"])
def test_a_missing_bucket_is_an_error_and_never_looks_empty(s3_environment: str, name: str) -> None:
    fails_quickly(open_object_store("s3://no-such-bucket-anywhere/lake"), OPERATIONS[name], "NoSuchBucket")


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_secret_fails_quickly_and_is_not_revealed(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    objects = open_object_store(f"s3://{s3_environment}/lake")
    assert "a-wrong-secret" not in fails_quickly(objects, OPERATIONS[name], "SignatureDoesNotMatch")


def test_an_unknown_access_key_fails_quickly(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    fails_quickly(open_object_store(f"s3://{s3_environment}/lake"), OPERATIONS["get"], "InvalidAccessKeyId")


@pytest.mark.parametrize("name", ["get", "list", "update"])
def test_an_unreachable_endpoint_fails_quickly(s3_environment: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fails_quickly(open_object_store(f"s3://{s3_environment}/lake"), OPERATIONS[name], "127.0.0.1:9")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///srv/my%20lake", "/srv/my lake"),
        ("/srv/lake", "/srv/lake"),
    ],
)
def test_a_folder_is_given_as_a_path_or_a_file_uri(uri: str, path: str) -> None:
    assert folder_path(uri) == Path(path)


def test_a_lake_that_is_a_file_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for use in (
        lambda: open_object_store(str(file)).list("catalog"),
        lambda: open_object_store(str(file)).put("a", b""),
    ):
        with pytest.raises(LakeUnavailable, match=rf"{file}.*check RAG_LAKE_URI"):
            use()


def test_an_unsupported_scheme_and_a_missing_bucket_name_are_settings_errors() -> None:
    for uri, scheme in (
        ("ftp://host/lake", "ftp://"),
        ("s3:/bucket", "s3:/"),
        ("s3:bucket", "s3:"),
        ("S3://b", "S3://"),
    ):
        with pytest.raises(SettingsError, match=f"RAG_LAKE_URI: {scheme} is not supported"):
            folder_path(uri)
    with pytest.raises(SettingsError, match="RAG_SOURCE_URI"):
        folder_path("https://host", "RAG_SOURCE_URI")
    assert folder_path("/srv/a:b") == Path("/srv/a:b")
    with pytest.raises(SettingsError, match="bucket"):
        split_s3("s3:///lake")
    assert split_s3("s3://bucket/some/prefix/") == ("bucket", "some/prefix")
