"""From documents to what readers see: folder and S3 sources, folder and S3 lakes, through Dagster."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_assets.defs.build import build_definitions
from rag_assets.errors import ExportError
from rag_assets.models.export import ensure_exported
from rag_assets.options import PACKAGED_MODEL
from rag_assets.runs.bulk import run_here
from rag_assets.runs.tags import ALLOW_MASS_DELETE_TAG, WHOLE_TAG
from rag_assets.storage.schemas import QUARANTINE, RAW_DOCUMENTS
from rag_serving.errors import LakeCorrupt
from rag_serving.lake.embedders.base import MANIFEST, MODELS
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.shards import Shard
from tests.documents import extract
from tests.pipelines import (
    assert_same_tables,
    failure_of,
    metadata_of,
    publication,
    published_rows,
    run_shard,
    seed_model,
    settings_for,
    stage_rows,
)
from tests.servers.roots import BucketRoot, FolderRoot, SourceRoot
from tests.shard_harness import Bench, new_shard, on_folders, watched

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NOTHING = {"raw_documents": None, "quarantine": None, "chunks": None, "embeddings": None, "shards": None}
BINARY = bytes(range(256))


@pytest.fixture
def lake_uri(request: pytest.FixtureRequest, lakes: Callable[[str], str]) -> str:
    kind: str = request.param
    if kind == "s3":
        request.getfixturevalue("s3_environment")
    return lakes(kind)


@pytest.mark.parametrize("lake_uri", ["folder", "s3"], indirect=True)
def test_a_first_run_publishes_the_source_and_a_second_one_writes_nothing(
    source_root: SourceRoot, lake_uri: str, instance: dg.DagsterInstance, corpus: Path
) -> None:
    bench = Bench(source_root, lake_uri, new_shard(), instance)
    originals: dict[str, bytes] = {}
    for file in (
        "lisbon/engineering/buoy-firmware-release.pdf",
        "lisbon/engineering/error-codes.html",
        "lisbon/engineering/on-call-policy.md",
        "lisbon/finance/month-end-close.docx",
        "lisbon/finance/supplier payment terms.txt",
        "nagoya/people/tsukin-teate-ja.md",
        "lisbon/finance/ledger-export.bin",
    ):
        name = file.rpartition("/")[2]
        originals[name] = (corpus / file).read_bytes()
        bench.put(name, originals[name])
    bench.put("deep/er/guia-de-férias.md", (corpus / "lisbon/people/guia-de-férias.md").read_bytes())
    originals["guia-de-férias.md"] = (corpus / "lisbon/people/guia-de-férias.md").read_bytes()

    result = bench.attempt()
    assert result.success, failure_of(result)
    said = metadata_of(result)
    assert (said["raw_documents"]["added"], said["raw_documents"]["quarantined"]) == (7, 1)
    (refused,) = stage_rows(bench.lake, QUARANTINE, bench.shard)
    assert (refused["key"], refused["reason"]) == (f"{bench.shard}/ledger-export.bin", "unsupported_type")
    warned = {
        event.asset_check_evaluation_data.check_name: event.asset_check_evaluation_data.passed
        for event in result.all_events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
    }
    assert warned == {
        "nothing_quarantined": False,
        "passages_cover_documents": True,
        "rows_reconcile": True,
        "vectors_sound": True,
        "retrieval_holds": True,
        "languages_read": True,
    }

    rows = published_rows(bench.lake, bench.shard)
    assert len({row["chunk_id"] for row in rows}) == len(rows)
    raw = {row["doc_id"]: row for row in stage_rows(bench.lake, RAW_DOCUMENTS, bench.shard)}
    assert {row["doc_id"] for row in rows} == raw.keys()
    for row in rows:
        document = raw[row["doc_id"]]
        assert row["text"] == document["text"][row["start"] : row["end"]]
        assert 0 < row["tokens"] <= 256
        assert (row["region"], row["department"]) == tuple(bench.shard.split("/"))
        assert (row["etag"], row["source"], row["title"]) == (document["etag"], document["source"], document["title"])
    for document in raw.values():
        name = document["key"].rpartition("/")[2]
        assert document["text"] == extract(originals[name], document["key"]).text
        of_it = sorted((row for row in rows if row["doc_id"] == document["doc_id"]), key=lambda row: row["ordinal"])
        assert [row["ordinal"] for row in of_it] == list(range(len(of_it)))
        covered = {place for row in of_it for place in range(row["start"], row["end"])}
        lost = [place for place, letter in enumerate(document["text"]) if letter.isalnum() and place not in covered]
        assert not lost, f"{name}: {document['text'][lost[0] : lost[0] + 80]!r} is in no chunk"
    sources = {row["source"] for row in rows}
    assert all(uri.startswith(("file:///", "s3://")) for uri in sources)

    before = bench.state()
    noted, pipeline = watched(bench)
    again = bench.run(pipeline)
    assert noted.fetched == []
    assert bench.state() == before
    assert (again["raw_documents"]["unchanged"], again["embeddings"]["embedded"]) == (8, 0)
    assert again["published"]["changed"] is False


def test_added_changed_deleted_and_moved_documents_are_published_embedding_only_new_text(bench: Bench) -> None:
    for name in ("kept.md", "changed.md", "deleted.md", "before.md"):
        bench.put(name, f"# {name.partition('.')[0]}\n\nThis is about {name}.\n")
    assert bench.run()["embeddings"]["embedded"] == 4
    first = publication(bench.lake, bench.shard)

    bench.put("added.md", "# Added\n\nAnother page.\n")
    bench.put("changed.md", "# Changed\n\nIt now says something else.\n")
    bench.delete("deleted.md")
    bench.delete("before.md")
    bench.put("folder/before.md", "# before\n\nThis is about before.md.\n")
    noted, pipeline = watched(bench)
    said = bench.run(pipeline)
    raw = said["raw_documents"]
    assert [raw[name] for name in ("added", "changed", "deleted", "unchanged")] == [2, 1, 2, 1]
    assert {key.rpartition("/")[2] for key in noted.fetched} == {"added.md", "changed.md", "before.md"}
    # The moved text is already embedded; under another name it would not be, because vectors see the name.
    assert (said["embeddings"]["embedded"], said["embeddings"]["reused"]) == (2, 1)
    texts = bench.texts()
    assert texts.keys() == {"kept.md", "changed.md", "added.md", "before.md"}
    assert "something else" in texts["changed.md"]
    second = publication(bench.lake, bench.shard)
    assert first is not None
    assert second is not None
    assert second.content_digest != first.content_digest
    whole = bench.run(tags={WHOLE_TAG: "true"})
    # Two vectors are no longer used by any chunk.
    assert (whole["embeddings"]["dropped"], whole["embeddings"]["vectors"]) == (2, 4)


def test_a_shortened_document_leaves_no_rows_of_its_longer_version(bench: Bench) -> None:
    bench.put("page.md", "".join(f"# Part {n}\n\n{f'Words about part {n}. ' * 60}\n\n" for n in range(6)))
    bench.run()
    assert len(published_rows(bench.lake, bench.shard)) > 3
    bench.put("page.md", "# Part 0\n\nShort.\n")
    bench.run()
    (row,) = published_rows(bench.lake, bench.shard)
    assert row["text"].endswith("Short.")


def test_a_touched_document_with_unchanged_text_embeds_nothing_and_keeps_the_digest(bench: Bench) -> None:
    bench.put("page.md", "# Page\n\nThe canteen opens at eight.\n")
    bench.run()
    before = publication(bench.lake, bench.shard)
    # Different bytes and etag but the same text: a trailing line break is not content.
    bench.put("page.md", "# Page\n\nThe canteen opens at eight.\n\n")
    said = bench.run()
    after = publication(bench.lake, bench.shard)
    assert (said["raw_documents"]["changed"], said["embeddings"]["embedded"]) == (1, 0)
    assert said["chunks"]["chunks_written"] == 0
    assert said["published"]["content_changed"] is False
    assert before is not None
    assert after is not None
    assert after.content_digest == before.content_digest
    assert after.source_digest != before.source_digest


@on_folders
def test_identical_passages_are_embedded_once(bench: Bench) -> None:
    for name in ("a/canteen.txt", "b/canteen.txt", "c/canteen.txt"):
        bench.put(name, "The canteen opens at eight.")
    bench.put("d.txt", "Parking is free.")
    said = bench.run()
    assert (said["chunks"]["chunks"], said["embeddings"]["embedded"]) == (4, 2)
    vectors = {tuple(row["vector"]) for row in published_rows(bench.lake, bench.shard)}
    assert len(vectors) == 2


def test_a_passage_is_embedded_with_the_name_of_its_file(bench: Bench) -> None:
    bench.put("canteen.txt", "It opens at eight.")
    bench.put("parking.txt", "It opens at eight.")
    assert bench.run()["embeddings"]["embedded"] == 2


def test_a_document_that_becomes_unreadable_keeps_its_last_good_version_until_it_recovers(bench: Bench) -> None:
    bench.put("page.txt", "The first version.")
    bench.put("other.txt", "Another page.")
    bench.run()
    bench.put("page.txt", BINARY)
    said = bench.run()
    assert (said["raw_documents"]["stale"], said["raw_documents"]["newly_quarantined"]) == (1, 1)
    assert bench.texts() == {"page.txt": "The first version.", "other.txt": "Another page."}
    marked = {row["text"]: row["stale"] for row in published_rows(bench.lake, bench.shard)}
    assert marked == {"The first version.": True, "Another page.": False}

    noted, pipeline = watched(bench)
    said = bench.run(pipeline)
    assert noted.fetched == []
    assert (said["raw_documents"]["stale"], said["published"]["changed"]) == (1, False)

    bench.put("page.txt", "The second version.")
    said = bench.run()
    assert (said["raw_documents"]["stale"], said["raw_documents"]["quarantined"]) == (0, 0)
    assert stage_rows(bench.lake, QUARANTINE, bench.shard) == []
    assert bench.texts()["page.txt"] == "The second version."
    assert not any(row["stale"] for row in published_rows(bench.lake, bench.shard))


@on_folders
def test_an_object_whose_fetch_failed_is_retried_even_if_unchanged(bench: Bench) -> None:
    bench.put("page.txt", "Readable at last.")
    bench.put("other.txt", "Another page.")
    noted, pipeline = watched(bench)
    noted.unreadable.add("page.txt")
    bench.run(pipeline)
    (refused,) = stage_rows(bench.lake, QUARANTINE, bench.shard)
    assert (refused["reason"], refused["attempts"]) == ("fetch_failed", 1)
    bench.run(pipeline)
    (refused,) = stage_rows(bench.lake, QUARANTINE, bench.shard)
    assert refused["attempts"] == 2
    noted.unreadable.clear()
    bench.run(pipeline)
    assert stage_rows(bench.lake, QUARANTINE, bench.shard) == []
    assert bench.texts() == {"page.txt": "Readable at last.", "other.txt": "Another page."}


@on_folders
def test_an_object_that_vanishes_between_listing_and_fetch_is_skipped(bench: Bench) -> None:
    bench.put("page.txt", "Here.")
    bench.put("other.txt", "Gone by then.")
    noted, pipeline = watched(bench)
    noted.vanished.add("other.txt")
    bench.run(pipeline)
    assert bench.texts() == {"page.txt": "Here."}
    assert stage_rows(bench.lake, QUARANTINE, bench.shard) == []
    bench.run()
    assert bench.texts().keys() == {"page.txt", "other.txt"}


@on_folders
def test_a_document_over_the_size_limit_is_quarantined_without_being_fetched(bench: Bench) -> None:
    bench.put("huge.txt", "x" * 2000)
    bench.put("page.txt", "Here.")
    noted, _ = watched(bench)
    pipeline = noted(settings_for(bench.source.uri, bench.lake, max_document_bytes=1000))
    bench.run(pipeline)
    assert noted.fetched == [f"{bench.shard}/page.txt"]
    (refused,) = stage_rows(bench.lake, QUARANTINE, bench.shard)
    assert (refused["reason"], refused["detail"]) == ("too_large", "2000 bytes; RAG_MAX_DOCUMENT_BYTES is 1000")


@on_folders
def test_a_shard_with_only_unreadable_documents_is_published_empty(bench: Bench) -> None:
    bench.put("photo.bin", BINARY)
    bench.run()
    assert published_rows(bench.lake, bench.shard) == []
    current = publication(bench.lake, bench.shard)
    assert current is not None
    assert (current.documents, current.quarantined) == (0, 1)


@pytest.mark.parametrize("left", [0, 4])
def test_a_mass_delete_is_refused_until_it_is_allowed(bench: Bench, left: int) -> None:
    for number in range(12):
        bench.put(f"{number:02}.txt", f"Page {number}.")
    bench.run()
    before = bench.state()
    for number in range(left, 12):
        bench.delete(f"{number:02}.txt")
    refused = bench.attempt()
    assert not refused.success
    assert f"would delete {12 - left} of 12" in failure_of(refused)
    for words in ("MassDeleteRefused", "rag/allow_mass_delete=true", "--allow-mass-delete"):
        assert words in failure_of(refused)
    assert bench.state() == before
    assert len(bench.texts()) == 12

    said = bench.run(tags={ALLOW_MASS_DELETE_TAG: "true"})
    assert said["raw_documents"]["deleted"] == 12 - left
    assert len(bench.texts()) == left
    if left == 0:  # the next document fills the shard again
        bench.put("new.txt", "A new page.")
        bench.run()
        assert bench.texts() == {"new.txt": "A new page."}


@on_folders
def test_a_few_deletions_need_no_permission(bench: Bench) -> None:
    for number in range(3):
        bench.put(f"{number}.txt", f"Page {number}.")
    bench.run()
    bench.delete("0.txt")
    bench.delete("1.txt")
    bench.run()
    assert bench.texts() == {"2.txt": "Page 2."}


def assert_refused_and_nothing_written(bench: Bench, *words: str) -> None:
    before = set(Path(bench.lake).rglob("*.lance"))
    result = bench.attempt()
    assert not result.success
    for word in words:
        assert word in failure_of(result), failure_of(result)
    assert bench.state() == {**NOTHING, "catalog": None}
    assert set(Path(bench.lake).rglob("*.lance")) == before


@on_folders
def test_a_missing_source_folder_fails_the_run_and_writes_nothing(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "source").rmdir()
    assert_refused_and_nothing_written(bench, "SourceRefused", "does not exist; check RAG_SOURCE_URI")


@on_folders
def test_a_source_folder_that_disappears_deletes_nothing(bench: Bench, tmp_path: Path) -> None:
    bench.put("page.txt", "Here.")
    bench.run()
    before = bench.state()
    (tmp_path / "source").rename(tmp_path / "unplugged")
    assert not bench.attempt().success
    assert bench.state() == before


def test_wrong_source_credentials_fail_the_run_and_write_nothing(
    s3_environment: str,
    s3_client: S3Client,
    lakes: Callable[[str], str],
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = BucketRoot(s3_client, s3_environment, "incoming")
    bench = Bench(source, lakes("folder"), new_shard(), instance)
    bench.put("page.txt", "Here.")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    assert_refused_and_nothing_written(bench, "SourceRefused", "SignatureDoesNotMatch", "check RAG_SOURCE_URI", "AWS_*")


def test_a_missing_bucket_fails_the_run_and_writes_nothing(
    s3_environment: str, s3_client: S3Client, lakes: Callable[[str], str], instance: dg.DagsterInstance
) -> None:
    source = BucketRoot(s3_client, f"{s3_environment}-misspelt", "incoming")
    bench = Bench(source, lakes("folder"), new_shard(), instance)
    assert_refused_and_nothing_written(bench, "SourceRefused", "NoSuchBucket", "check RAG_SOURCE_URI")


@pytest.mark.parametrize("fault", ["credentials", "bucket"])
def test_a_lake_that_denies_access_fails_the_run_and_says_what_to_check(
    s3_environment: str, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    source = FolderRoot(tmp_path)
    source.put("Lisbon/people/page.txt", b"Here.")
    bucket = s3_environment
    if fault == "credentials":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    else:
        bucket += "-misspelt"
    result = run_shard(instance, settings_for(source.uri, f"s3://{bucket}/lake"), "Lisbon/people")
    assert not result.success
    assert "LakeUnavailable" in failure_of(result), failure_of(result)
    assert "check RAG_LAKE_URI and the AWS_* variables" in failure_of(result)
    assert "a-wrong-secret" not in failure_of(result)


@on_folders
@pytest.mark.parametrize("patience", [0.2, 30.0], ids=["impatient", "patient"])
def test_of_two_concurrent_runs_of_a_shard_the_second_waits_or_fails_as_locked(bench: Bench, patience: float) -> None:
    bench.put("page.txt", "Here.")
    noted, pipeline = watched(bench)
    listed, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        listed.set()
        assert go_on.wait(60)

    noted.after_listing = pause
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bench.attempt, pipeline)
        assert listed.wait(60)
        with dg.DagsterInstance.ephemeral() as elsewhere:
            other = Bench(bench.source, bench.lake, bench.shard, elsewhere)
            second = pool.submit(other.attempt, lease_wait=patience)
            if patience < 1:
                failed = second.result(60)
                assert not failed.success
                assert "ShardLocked" in failure_of(failed)
                assert "is being written by run" in failure_of(failed)
                assert bench.state() == {**NOTHING, "catalog": None}
            go_on.set()
            assert first.result(60).success, failure_of(first.result())
            if patience > 1:
                waited = second.result(60)
                assert waited.success, failure_of(waited)
                assert metadata_of(waited)["raw_documents"]["unchanged"] == 1
    assert [row["text"] for row in published_rows(bench.lake, bench.shard)] == ["Here."]


@on_folders
def test_a_shard_that_fails_does_not_stop_the_others(bench: Bench) -> None:
    tag = uuid.uuid4().hex[:8]
    keys = [f"{tag}/a", f"{tag}/b", f"{tag}/c"]
    for key in keys:
        bench.source.put(f"{key}/page.txt", b"Here.")
    shards = [Shard.parse(key) for key in keys]
    reported: dict[str, str | None] = {}

    def index() -> Any:
        reported.clear()
        return run_here(
            bench.instance,
            bench.settings,
            shards,
            tags={},
            build=build_definitions,
            done=lambda shard, reason: reported.update({shard.key: reason}),
        )

    result = index()
    assert (result.succeeded, result.failed) == (shards, {})
    assert (result.totals["added"], result.totals["embedded"], result.totals["published_documents"]) == (3, 3, 3)
    bench.source.delete(f"{keys[1]}/page.txt")
    bench.source.put(f"{keys[2]}/more.txt", b"And more.")
    result = index()
    assert result.succeeded == [shards[0], shards[2]]
    assert "MassDeleteRefused" in result.failed[shards[1]]
    assert reported == {keys[0]: None, keys[1]: result.failed[shards[1]], keys[2]: None}
    assert len(published_rows(bench.lake, keys[2])) == 2


documents = st.dictionaries(
    st.sampled_from(["a.md", "b.md", "c.txt", "d/e.md"]),
    st.sampled_from(
        [
            "# One\n\nThe canteen opens at eight.\n",
            "# One\n\nThe canteen opens at nine.\n\n# Two\n\nParking is free.\n",
            "Parking is free.",
            "# Long\n\n" + "A sentence that is repeated often. " * 80,
            "# Long\n\nNew at the top.\n\n" + "A sentence that is repeated often. " * 80,
            "\x00\x01\x02\xff" * 20,
            "# Only a heading",
        ]
    ),
    min_size=1,
)


@on_folders
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True)
@given(history=st.lists(documents, min_size=2, max_size=4))
def test_after_any_history_the_table_equals_that_of_a_clean_run(
    bench: Bench, lakes: Callable[[str], str], history: list[dict[str, str]]
) -> None:
    """A document that turns unreadable keeps its old version, so make it readable before the clean run."""
    shard = new_shard()
    here = Bench(bench.source, bench.lake, shard, bench.instance)
    present: set[str] = set()
    for step in history:
        for name in present - step.keys():
            here.delete(name)
        for name, text in step.items():
            here.put(name, text.encode("latin-1"))
        present = set(step)
        here.run(tags={ALLOW_MASS_DELETE_TAG: "true"})
    for name, text in history[-1].items():
        if text.startswith("\x00"):
            here.put(name, "Readable at last.")
    here.run()
    clean = Bench(bench.source, lakes("clean"), shard, bench.instance)
    clean.run()
    assert_same_tables(published_rows(here.lake, shard), published_rows(clean.lake, shard))
    one, other = publication(here.lake, shard), publication(clean.lake, shard)
    assert one is not None
    assert other is not None
    assert (one.content_digest, one.source_digest) == (other.content_digest, other.source_digest)


def test_an_exported_model_is_not_exported_again(model_lake: str, tmp_path: Path) -> None:
    lake = str(tmp_path)
    seed_model(model_lake, lake)
    before = {(entry.key, entry.etag) for entry in open_object_store(lake).list(MODELS)}
    export = ensure_exported(open_object_store(lake), PACKAGED_MODEL)
    assert (export.created, export.bytes) == (False, 0)
    assert {(entry.key, entry.etag) for entry in open_object_store(lake).list(MODELS)} == before


@pytest.mark.parametrize(
    "alter", [lambda data: data[:-40], lambda data: data.replace(b'"window": 256', b'"window": 512')]
)
def test_an_altered_manifest_is_lake_corrupt(model_lake: str, tmp_path: Path, alter: Callable[[bytes], bytes]) -> None:
    lake = str(tmp_path)
    seed_model(model_lake, lake)
    objects = open_object_store(lake)
    (key,) = [entry.key for entry in objects.list(MODELS) if entry.key.endswith(MANIFEST)]
    stored = objects.get(key)
    assert stored is not None
    assert alter(stored.data) != stored.data
    objects.put(key, alter(stored.data))
    with pytest.raises(LakeCorrupt, match="export the model again"):
        ensure_exported(objects, PACKAGED_MODEL)


@pytest.mark.parametrize("model", ["nobody/no-such-model", "/no/such/folder"])
def test_the_error_for_a_model_that_does_not_exist_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # otherwise it contacts the hub for a minute
    with pytest.raises(ExportError, match=f"cannot load the model '{model}'.*RAG_EMBEDDING_MODEL"):
        ensure_exported(open_object_store(str(tmp_path)), model)
    assert not list(tmp_path.iterdir())
