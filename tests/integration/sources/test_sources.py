"""Document sources: a folder and a bucket on a real S3 server must behave the same."""

from __future__ import annotations

import gzip
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import boto3
import pytest
from botocore.exceptions import ClientError

from rag_assets.arrivals.listing import sweep
from rag_assets.errors import SourceRefused, SourceUnavailable
from rag_assets.sources.base import (
    ObjectGone,
    ObjectUnreadable,
    Source,
    SourceObject,
    document_shard,
    golden_shard_of,
    has_documents,
    list_folder,
    shard_of,
)
from rag_assets.sources.folder import FolderSource
from rag_assets.sources.listing_digest import listing_digest
from rag_assets.sources.open import open_source
from rag_assets.sources.s3 import S3Source
from rag_serving.errors import SettingsError
from rag_serving.lake.shards import Shard
from tests.servers.roots import FolderRoot, SourceRoot

# In byte order; no folder here has a sibling whose name starts with the folder's (see `NESTED`).
KEYS = [
    "A/B/upper.md",
    "a/b/ leading space.md",
    "a/b/&<>'.md",
    "a/b/(draft) 100%.md",
    "a/b/1+1=2.md",
    "a/b/c d/e%20f.md",
    "a/b/x.md",
    "a/b/y/deep/er/z.txt",
    "köln/büro/übersicht.md",
    "日本/人事/就業 規則.md",
    "日本/人事/～.md",
    "日本/人事/😀.md",
]
# SeaweedFS lists folder by folder ("sub/" before "sub-2"); AWS and `FolderSource` sort whole keys by their bytes.
NESTED = ["a/b/sub-2.md", "a/b/sub.3.md", "a/b/sub/1.md", "a/b-c/x.md", "a/b.d/x.md", "a/b/z.md"]


def opened(root: SourceRoot) -> Source:
    # A separate session: the default one would keep the credentials of another test.
    client = None if isinstance(root, FolderRoot) else boto3.session.Session().client("s3")
    return open_source(root.uri, client)


def list_shard(source: Source, shard: Shard) -> list[SourceObject]:
    return [entry for entry in list_folder(source, shard) if document_shard(entry) == shard]


def listing(source: Source, prefix: str = "", *, start_after: str = "") -> list[SourceObject]:
    return [entry for page in source.pages(prefix, start_after=start_after) for entry in page]


def keys(source: Source, prefix: str = "", *, start_after: str = "") -> list[str]:
    return [entry.key for entry in listing(source, prefix, start_after=start_after)]


def test_a_folder_and_a_bucket_list_the_same_keys_in_the_same_order(source_root: SourceRoot) -> None:
    for key in reversed(KEYS):
        source_root.put(key, b"x")
    assert keys(opened(source_root)) == KEYS


def test_a_folder_lists_in_the_order_of_the_bytes_of_whole_keys(tmp_path: Path) -> None:
    root = FolderRoot(tmp_path)
    for key in [*KEYS, *NESTED]:
        root.put(key, b"x")
    assert keys(opened(root)) == sorted([*KEYS, *NESTED], key=str.encode)


def test_shards_are_found_without_listing_their_documents(source_root: SourceRoot) -> None:
    others = ["loose.md", "a/loose.md", "a/.hidden/x.md", ".hidden/b/x.md", "a/bad;name/x.md", "a/empty/.hidden.md"]
    for key in [*KEYS, *NESTED, *others]:
        source_root.put(key, b"x")
    source = opened(source_root)
    found = {shard.key for shard in source.shards()}
    assert found == {"A/B", "a/b", "a/b-c", "a/b.d", "a/empty", "köln/büro", "日本/人事"}
    assert [key for key in sorted(found) if not has_documents(source, Shard.parse(key))] == ["a/empty"]


def test_an_empty_source_has_no_shards(source_root: SourceRoot) -> None:
    assert list(opened(source_root).shards()) == []


def test_a_fetched_object_has_the_bytes_etag_and_time_of_its_listing(
    source_root: SourceRoot,
) -> None:
    source = opened(source_root)
    for key in KEYS:
        source_root.put(key, key.encode())
    for entry in listing(source):
        fetched = source.fetch(entry.key)
        assert fetched.data == entry.key.encode()
        assert (fetched.etag, len(fetched.data)) == (entry.etag, entry.size)
        # S3 gives an object's time with fractions in a listing, but in whole seconds in a header.
        assert abs(fetched.modified_at - entry.modified_at) < timedelta(seconds=1)
        assert abs(datetime.now(UTC) - entry.modified_at) < timedelta(minutes=2)


def test_a_listing_after_a_key_returns_exactly_the_keys_that_follow_it(source_root: SourceRoot) -> None:
    for key in [*KEYS, *NESTED]:
        source_root.put(key, b"x")
    source = opened(source_root)
    every = keys(source)
    for position, key in enumerate(every):
        assert keys(source, start_after=key) == every[position + 1 :]


def test_a_listing_after_a_deleted_key_returns_the_keys_that_follow_it(source_root: SourceRoot) -> None:
    for key in KEYS:
        source_root.put(key, b"x")
    source_root.delete("a/b/x.md")
    after = KEYS[KEYS.index("a/b/x.md") + 1 :]
    assert keys(opened(source_root), start_after="a/b/x.md") == after


@pytest.mark.parametrize("prefix", ["a/b/", "a/b/c", "日本/", "a/b/x.md", "nothing/here/", "a/b/x.md/"])
def test_a_prefix_returns_the_keys_that_start_with_it(source_root: SourceRoot, prefix: str) -> None:
    for key in KEYS:
        source_root.put(key, b"x")
    assert keys(opened(source_root), prefix) == [key for key in KEYS if key.startswith(prefix)]


def test_a_listing_longer_than_a_page_is_complete(source_root: SourceRoot) -> None:
    expected = [f"a/b/{number:04}.md" for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: source_root.put(key, b"x"), expected))
    source = opened(source_root)
    pages = [len(page) for page in source.pages()]
    assert len(pages) > 1
    assert max(pages) <= 1000
    assert keys(source) == expected
    assert keys(source, start_after="a/b/0990.md") == expected[991:]


def test_a_changed_object_gets_a_new_etag_and_an_unchanged_one_keeps_its_own(source_root: SourceRoot) -> None:
    source_root.put("a/b/changed.md", b"one")
    source_root.put("a/b/same.md", b"one")
    source = opened(source_root)
    before = {entry.key: entry.etag for entry in listing(source)}
    time.sleep(0.02)  # a file written twice within one clock tick keeps its time
    source_root.put("a/b/changed.md", b"two")
    after = {entry.key: entry.etag for entry in listing(source)}
    assert after["a/b/changed.md"] != before["a/b/changed.md"]
    assert after["a/b/same.md"] == before["a/b/same.md"]


def test_fetching_an_object_deleted_after_the_listing_raises_object_gone(source_root: SourceRoot) -> None:
    source_root.put("a/b/c.md", b"x")
    source_root.put("a/b/d.md", b"x")
    source = opened(source_root)
    assert len(listing(source)) == 2
    source_root.delete("a/b/c.md")
    with pytest.raises(ObjectGone, match=r"a/b/c\.md"):
        source.fetch("a/b/c.md")
    assert keys(source) == ["a/b/d.md"]


def test_the_listing_of_a_shard_contains_only_its_documents(source_root: SourceRoot) -> None:
    inside = ["a/b/deep/2.md", "a/b/x.md"]
    for key in [*inside, "a/b/.hidden", "a/b/.git/config", "a/bb/x.md", "a/loose.md", "top.md", "A/b/x.md"]:
        source_root.put(key, b"x")
    assert [entry.key for entry in list_shard(opened(source_root), Shard("a", "b"))] == inside


def test_a_sweep_computes_the_same_digest_for_a_shard_as_its_own_listing(source_root: SourceRoot) -> None:
    for key in [*KEYS, *NESTED, "a/b/.DS_Store", "a/b/m/.git/config", "top.md"]:
        source_root.put(key, key.encode())
    source = opened(source_root)
    seen = sweep(source, seconds=60)
    assert set(seen.digests) == {shard_of(key) for key in [*KEYS, *NESTED]}
    assert seen.objects == len(KEYS) + len(NESTED)
    assert (seen.left_out.total, seen.resume_after) == (3, "")
    for shard, digest in seen.digests.items():
        in_any_order = reversed(list_shard(source, shard))
        assert digest == listing_digest(in_any_order)


def test_folder_markers_of_the_s3_console_are_not_documents(s3_environment: str) -> None:
    client = boto3.session.Session().client("s3")
    for key in ("a/", "a/b/", "a/b/m/", "a/b/m/x.md", "a/b/z.md"):
        client.put_object(Bucket=s3_environment, Key=key, Body=b"")
    source = open_source(f"s3://{s3_environment}", client)
    shard = Shard("a", "b")
    documents = list_shard(source, shard)
    assert [entry.key for entry in documents] == ["a/b/m/x.md", "a/b/z.md"]
    assert sweep(source, seconds=60).digests == {shard: listing_digest(documents)}


def test_an_empty_source_lists_nothing(source_root: SourceRoot) -> None:
    assert keys(opened(source_root)) == []


def test_head_returns_the_same_as_the_listing(source_root: SourceRoot) -> None:
    for key in ("oslo/people/a.md", "oslo/people/a.md.d/b.md", "köln/büro/ä b+c%20.md"):
        source_root.put(key, key.encode())
    source = opened(source_root)
    for entry in listing(source):
        seen = source.head(entry.key)  # its time may be in whole seconds
        assert seen is not None
        assert (seen.key, seen.etag, seen.size) == (entry.key, entry.etag, entry.size)


@pytest.mark.parametrize("key", ["oslo/people/b.md", "oslo/people", "oslo/people/a.md/c.md", "nowhere/at/all.md"])
def test_head_of_a_missing_key_is_none(source_root: SourceRoot, key: str) -> None:
    source_root.put("oslo/people/a.md", b"x")
    assert opened(source_root).head(key) is None


def test_head_ignores_keys_behind_a_symlink_like_the_listing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.md").write_text("x")
    (tmp_path / "root" / "oslo").mkdir(parents=True)
    (tmp_path / "root" / "oslo" / "people").symlink_to(tmp_path / "elsewhere")
    source = FolderSource(tmp_path / "root")
    assert [entry.problem for entry in listing(source)] == ["symbolic link"]
    assert source.head("oslo/people/a.md") is None


@pytest.mark.parametrize(
    "key",
    ["oslo/people//a.md", "oslo/people/./a.md", "oslo//people/a.md", "oslo/people/a\0.md", "oslo/people/" + "a" * 999],
)
def test_a_file_in_a_folder_has_only_one_key(tmp_path: Path, key: str) -> None:
    FolderRoot(tmp_path).put("oslo/people/a.md", b"x")
    assert FolderSource(tmp_path).head(key) is None


def test_the_uri_of_an_object_locates_it_in_its_store(source_root: SourceRoot) -> None:
    source_root.put("köln/büro/a b.md", b"x")
    uri = opened(source_root).uri("köln/büro/a b.md")
    if isinstance(source_root, FolderRoot):
        assert Path(source_root.uri, "köln/büro/a b.md").as_uri() == uri
    else:
        assert uri.startswith(f"{source_root.uri}/k")
        assert uri.endswith("/a b.md")


def test_a_missing_folder_is_an_error_rather_than_empty(tmp_path: Path) -> None:
    source = open_source(str(tmp_path / "nowhere"))
    with pytest.raises(SourceRefused, match="RAG_SOURCE_URI"):
        listing(source)
    with pytest.raises(SourceRefused, match="RAG_SOURCE_URI"):
        list(source.shards())


def test_a_folder_that_vanishes_does_not_make_its_documents_look_deleted(tmp_path: Path) -> None:
    root = FolderRoot(tmp_path / "mounted")
    root.put("a/b/c.md", b"x")
    source = opened(root)
    assert keys(source) == ["a/b/c.md"]
    root.folder.rename(tmp_path / "unmounted")
    with pytest.raises(SourceUnavailable, match="RAG_SOURCE_URI"):
        source.fetch("a/b/c.md")


def test_a_document_whose_folder_became_a_file_is_gone(tmp_path: Path) -> None:
    root = FolderRoot(tmp_path)
    root.put("a/b/c", b"x")
    with pytest.raises(ObjectGone):
        opened(root).fetch("a/b/c/d.md")


def test_names_that_are_not_utf_8_are_named_and_left_out(tmp_path: Path) -> None:
    root = FolderRoot(tmp_path)
    root.put("a/b/good.md", b"x")
    folder = os.fsencode(tmp_path / "a" / "b")
    bad_folder = Path(os.fsdecode(folder + b"/caf\xe9"))
    bad_folder.mkdir()
    (bad_folder / "x.md").write_bytes(b"x")
    Path(os.fsdecode(folder + b"/r\xe9sum\xe9.md")).write_bytes(b"x")
    seen = sweep(opened(root), seconds=60)
    assert (seen.objects, seen.left_out.by_reason()) == (1, {"name in another encoding than UTF-8": 2})
    assert (
        str(seen.left_out) == r"2 names in another encoding than UTF-8, such as 'a/b/caf\\xe9', 'a/b/r\\xe9sum\\xe9.md'"
    )


def test_links_that_lead_out_of_their_shard_are_named_and_left_out(tmp_path: Path) -> None:
    root = FolderRoot(tmp_path / "source")
    root.put("a/b/good.md", b"x")
    root.put("a/secret/other.md", b"of another shard")
    (tmp_path / "secret.md").write_bytes(b"secret")
    links = {
        "outside.md": tmp_path / "secret.md",
        "of-another-shard.md": root.folder / "a/secret/other.md",
        "another-shard": root.folder / "a/secret",
        "above": root.folder,
        "itself": root.folder / "a/b/itself",
        "nowhere.md": root.folder / "a/b/nowhere-else.md",
    }
    for name, target in links.items():
        (root.folder / "a/b" / name).symlink_to(target)
    (root.folder / "a/linked").symlink_to(root.folder / "a/secret")
    source = opened(root)
    seen = sweep(source, seconds=60)
    assert (seen.objects, seen.left_out.by_reason()) == (2, {"symbolic link": 7})
    assert [source.head(f"a/b/{name}") for name in links] == [None] * len(links)
    assert listing(source, "a/linked/") == []


def test_links_within_a_shard_are_followed_without_going_round_in_circles(tmp_path: Path) -> None:
    root = FolderRoot(tmp_path / "source")
    root.put("a/b/one/x.md", b"x")
    root.put("a/b/two/y.md", b"y")
    (root.folder / "a/b/link.md").symlink_to("one/x.md")
    (root.folder / "a/b/one/to-two").symlink_to(root.folder / "a/b/two")
    (root.folder / "a/b/two/to-one").symlink_to(root.folder / "a/b/one")
    source = opened(root)
    documents = [entry.key for entry in list_shard(source, Shard("a", "b"))]
    assert documents == [
        *("a/b/link.md", "a/b/one/to-two/y.md", "a/b/one/x.md", "a/b/two/to-one/x.md", "a/b/two/y.md"),
    ]
    assert [source.fetch(key).data for key in documents] == [b"x", b"y", b"x", b"x", b"y"]
    assert source.head("a/b/one/to-two/y.md") is not None


def test_names_that_match_a_pattern_are_counted_and_left_out(source_root: SourceRoot) -> None:
    junk = ["a/b/~$Report.docx", "a/b/THUMBS.DB", "a/b/deep/x.tmp", "a/b/drafts/y.md", "a/b/drafts/deep/z.md"]
    for key in [*junk, "a/b/report.md", "a/b/deep/drafts/y.md", "a/b/_eval/q.tmp.jsonl", "drafts/b/report.md"]:
        source_root.put(key, b"x")
    client = None if isinstance(source_root, FolderRoot) else boto3.session.Session().client("s3")
    source = open_source(source_root.uri, client, ignore=("~$*", "Thumbs.db", "*.tmp", "drafts/*"))
    seen = sweep(source, seconds=60)
    assert (seen.objects, seen.left_out.by_reason()) == (3, {"ignored file": 5})
    assert source.head("a/b/deep/x.tmp") is None
    assert source.head("a/b/report.md") is not None
    assert not has_documents(open_source(source_root.uri, client, ignore=("*.md",)), Shard("drafts", "b"))


def test_an_object_that_s3_does_not_give_out_is_listed_and_unreadable_with_the_code(s3_environment: str) -> None:
    client = boto3.session.Session().client("s3")
    client.put_object(Bucket=s3_environment, Key="a/b/good.md", Body=b"x")
    client.put_object(
        Bucket=s3_environment,
        Key="a/b/of-a-customers-key.md",
        Body=b"x",
        SSECustomerAlgorithm="AES256",
        SSECustomerKey="k" * 32,
    )
    source = open_source(f"s3://{s3_environment}", client)
    assert keys(source) == ["a/b/good.md", "a/b/of-a-customers-key.md"]
    seen = source.head("a/b/of-a-customers-key.md")
    assert seen is not None
    assert seen.key == "a/b/of-a-customers-key.md"
    with pytest.raises(ObjectUnreadable, match=r"of-a-customers-key\.md: Invalid(Argument|Request) "):
        source.fetch("a/b/of-a-customers-key.md")
    assert source.fetch("a/b/good.md").data == b"x"


def test_an_object_with_gzip_as_its_content_encoding_is_decoded_and_compared_as_stored(s3_environment: str) -> None:
    client = boto3.session.Session().client("s3")
    stored = gzip.compress(b"<p>Gzip encoded page about pensions.</p>")
    for key, body in {"a/b/page.html": stored, "a/b/cut.html": stored[:-9], "a/b/plain.html": b"<p>Plain</p>"}.items():
        client.put_object(Bucket=s3_environment, Key=key, Body=body, ContentEncoding="gzip")
    source = open_source(f"s3://{s3_environment}", client)
    found = source.fetch("a/b/page.html")
    assert found.data == b"<p>Gzip encoded page about pensions.</p>"
    assert found.stored_bytes == len(stored)
    assert source.fetch("a/b/plain.html").data == b"<p>Plain</p>"
    with pytest.raises(ObjectUnreadable, match="is truncated"):
        source.fetch("a/b/cut.html")


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("AccessDenied", 403, ObjectUnreadable),
        ("InvalidObjectState", 403, ObjectUnreadable),
        ("KMS.DisabledException", 400, ObjectUnreadable),
        ("KMS.NotFoundException", 400, ObjectUnreadable),
        ("Teapot", 418, ObjectUnreadable),
        ("InternalError", 500, ObjectUnreadable),
        ("NoSuchKey", 404, ObjectGone),
        ("SlowDown", 503, SourceUnavailable),
        ("KMS.ThrottlingException", 400, SourceUnavailable),
        ("ExpiredToken", 400, SourceRefused),
        ("NoSuchBucket", 404, SourceRefused),
    ],
)
def test_an_error_of_one_object_is_told_apart_from_one_of_the_bucket(
    code: str, status: int, expected: type[Exception]
) -> None:
    answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    client = Mock(spec=["get_object", "get_paginator"])
    client.get_object.side_effect = ClientError(answer, "GetObject")
    client.get_paginator.return_value.paginate.return_value = [{"Contents": []}]
    with pytest.raises(expected, match=code if expected is not ObjectGone else "a/b/x"):
        S3Source(client, "bucket", "").fetch("a/b/x.md")


def test_an_error_of_one_object_is_one_of_the_bucket_if_that_does_not_answer() -> None:
    refused = {"Error": {"Code": "AccessDenied", "Message": "no"}}
    client = Mock(spec=["get_object", "get_paginator"])
    client.get_object.side_effect = ClientError(refused, "GetObject")
    client.get_paginator.return_value.paginate.side_effect = ClientError(refused, "ListObjectsV2")
    with pytest.raises(SourceRefused, match="cannot list"):
        S3Source(client, "bucket", "").fetch("a/b/x.md")


def test_a_missing_bucket_raises_source_refused_with_the_reason(s3_environment: str) -> None:
    source = open_source("s3://no-such-bucket-anywhere/docs", boto3.session.Session().client("s3"))
    with pytest.raises(SourceRefused, match="NoSuchBucket"):
        listing(source)
    with pytest.raises(SourceRefused, match="NoSuchBucket"):
        list(source.shards())
    with pytest.raises(SourceRefused, match="NoSuchBucket"):
        source.fetch("a/b/c.md")


@pytest.mark.parametrize(
    ("variable", "reason"),
    [("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId")],
)
def test_wrong_credentials_fail_quickly_and_are_not_revealed(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch, variable: str, reason: str
) -> None:
    monkeypatch.setenv(variable, "a-wrong-value")
    source = open_source(f"s3://{s3_environment}", boto3.session.Session().client("s3"))
    started = time.monotonic()
    with pytest.raises(SourceRefused, match=reason) as caught:
        listing(source)
    with pytest.raises(SourceRefused, match=reason):
        source.fetch("a/b/c.md")
    assert time.monotonic() - started < 10
    assert "AWS_" in str(caught.value)
    assert "a-wrong-value" not in str(caught.value)


def test_missing_credentials_make_every_call_raise_source_refused(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    source = open_source(f"s3://{s3_environment}", boto3.session.Session().client("s3"))
    for call in (lambda: listing(source), lambda: source.head("a/b/c.md"), lambda: source.fetch("a/b/c.md")):
        with pytest.raises(SourceRefused, match="credentials"):
            call()


def test_an_unreachable_endpoint_is_unavailable_but_not_refused(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    source = open_source(f"s3://{s3_environment}", boto3.session.Session().client("s3"))
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:9") as caught:
        listing(source)
    assert not isinstance(caught.value, SourceRefused)


def test_an_unset_source_is_a_settings_error_that_names_the_variable() -> None:
    with pytest.raises(SettingsError, match="RAG_SOURCE_URI"):
        open_source(None)


def test_every_document_of_the_sample_corpus_is_in_a_shard(corpus: Path) -> None:
    seen = sweep(FolderSource(corpus), seconds=60)
    assert Shard("lisbon", "people") in seen.digests
    assert seen.left_out.total == 0


@pytest.mark.parametrize(
    ("key", "shard"),
    [
        ("a/b/c.md", Shard("a", "b")),
        ("a/b/c/d/e.md", Shard("a", "b")),
        ("New York/R&D (labs)/x", Shard("New York", "R&D (labs)")),
        ("東京/人事/x", Shard("東京", "人事")),
        ("", None),
        ("/", None),
        ("c.md", None),
        ("a/c.md", None),
        ("a/b/", None),
        ("a/b/c/", None),
        ("/a/b/c.md", None),
        ("a//c.md", None),
        ("a/b/_eval/q.jsonl", None),
        ("a/b/_eval/notes.md", None),
        ("a/b/_eval", Shard("a", "b")),
        ("a/b/_evaluation/c.md", Shard("a", "b")),
        ("a/b/c/_eval/d.md", Shard("a", "b")),
        ("_eval/b/c.md", Shard("_eval", "b")),
        ("a/b/.DS_Store", None),
        ("a/b/.git/config", None),
        (".trash/b/c.md", None),
        ("a/.b/c.md", None),
        ("a/../c.md", None),
        ("a/b|c/d.md", None),
        ("a\n/b/d.md", None),
    ],
)
def test_a_key_belongs_to_the_shard_of_its_first_two_folders_or_to_none(key: str, shard: Shard | None) -> None:
    assert shard_of(key) == shard


@pytest.mark.parametrize(
    ("key", "shard"),
    [
        ("a/b/_eval/q.jsonl", Shard("a", "b")),
        ("a/b/_eval/sub/q.jsonl", Shard("a", "b")),
        ("a/b/_eval/", Shard("a", "b")),
        ("a/b/_eval", None),
        ("a/b/c/_eval/q.jsonl", None),
        ("a/b/_eval/.hidden", None),
        ("a/b|c/_eval/q.jsonl", None),
        ("a/b/c.md", None),
    ],
)
def test_golden_questions_are_in_the_eval_folder_of_a_shard(key: str, shard: Shard | None) -> None:
    assert golden_shard_of(key) == shard
