"""The quality gate blocks bad versions: lost passages, mixed-up vectors, a worse index, worse retrieval.

The tests use real Dagster runs; a blocked run leaves the published version unchanged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import IvfPq

from rag_assets.defs.build import build_definitions
from rag_assets.evaluation.evaluate import assess
from rag_assets.evaluation.records import Evaluation, read_record, replace_evaluations, update_record
from rag_assets.evaluation.verdict import Quality
from rag_assets.runs.reporting import failure_reason
from rag_assets.runs.tags import ACCEPT_WORSE_TAG, WHOLE_TAG
from rag_assets.stages.embeddings import vector_array
from rag_assets.storage.lake import Lake
from rag_assets.storage.schemas import CHUNKS, EMBEDDINGS, QUARANTINE
from rag_assets.storage.search_indexes import index_vectors, index_words
from rag_serving.lake.catalog_entry import Publication
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import SHARDS, shard_schema
from tests.pipelines import failure_of, metadata_of, publication, published_rows, stage_rows, stored_digest, writer_of
from tests.shard_harness import Bench, on_folders, watched
from tests.stress.test_any_sequence import IDENTITY

BUILDINGS = ("the mill", "the old bank", "the harbour office", "the tower", "the workshop", "the annex")
GOLDEN = "_eval/canteens.jsonl"


def canteen(number: int) -> str:
    return f"The canteen in {BUILDINGS[number]} opens at half past {number + 5} in the morning."


def questions(*numbers: int, quote: bool = True) -> str:
    lines = [
        {
            "question": f"When does the canteen in {BUILDINGS[number]} open?",
            "document": f"{number}.txt",
            **({"quote": f"half past {number + 5}"} if quote else {}),
        }
        for number in numbers
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def filled(bench: Bench, golden: str = "") -> Publication:
    """Publish a shard of several one-passage documents and one with several passages."""
    for number in range(len(BUILDINGS)):
        bench.put(f"{number}.txt", canteen(number))
    bench.put("long.md", "".join(f"# Part {n}\n\n{f'Words about part number {n}. ' * 40}\n\n" for n in range(3)))
    if golden:
        bench.put(GOLDEN, golden)
    bench.run()
    return current(bench)


def current(bench: Bench) -> Publication:
    found = publication(bench.lake, bench.shard)
    assert found is not None
    return found


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {
        event.asset_check_evaluation_data.check_name: event.asset_check_evaluation_data
        for event in result.all_events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
    }


def table_of(check: dg.AssetCheckEvaluation, name: str) -> list[Any]:
    """Return the rows of a table in a check's metadata."""
    shown = check.metadata[name]
    assert isinstance(shown, dg.TableMetadataValue)
    return [record.data for record in shown.records]


def alone(bench: Bench, *assets: str, check: str = "") -> dg.ExecuteInProcessResult:
    """Run selected assets or one check, like an operator in the UI."""
    bench.instance.add_dynamic_partitions("shard", [bench.shard])
    everything = build_definitions(bench.settings).resolve_implicit_global_asset_job_def()
    keys = {dg.AssetCheckKey(dg.AssetKey("shards"), check)} if check else None
    return everything.get_subset(
        asset_selection={dg.AssetKey(name) for name in assets}, asset_check_selection=keys or set()
    ).execute_in_process(
        partition_key=bench.shard,
        instance=bench.instance,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )


def evaluations(bench: Bench) -> tuple[Evaluation, ...]:
    return read_record(Lake(bench.lake), Shard.parse(bench.shard)).evaluations


@pytest.fixture
def stopped(bench: Bench) -> Iterator[Callable[..., dg.AssetCheckEvaluation]]:
    """Return a function that asserts that the check blocks a run and that readers see the same rows as before.

    Materializing only the given assets, without their upstream checks, must be blocked, too.
    """

    def run(
        check: str, *, tags: dict[str, str] | None = None, assets: tuple[str, ...] = ("published",)
    ) -> dg.AssetCheckEvaluation:
        before, rows = current(bench), published_rows(bench.lake, bench.shard)
        result = bench.attempt(tags=tags)
        assert not result.success
        found = checks(result)
        assert [name for name, of in found.items() if not of.passed and of.severity.name == "ERROR"] == [check]
        assert failure_reason(result.all_events).startswith(f"{check}: ")
        assert "published" not in metadata_of(result)
        assert current(bench) == before
        assert published_rows(bench.lake, bench.shard) == rows
        refused = alone(bench, *assets)
        assert not refused.success
        assert "ChecksFailed" in failure_of(refused)
        assert current(bench) == before
        return found[check]

    return run


def test_golden_questions_are_not_documents_and_are_evaluated_before_the_publish(bench: Bench) -> None:
    golden = questions(*range(6)) + "not json\n" + json.dumps({"question": "?", "document": "never-was.txt"}) + "\n"
    bench.put(GOLDEN, golden)
    bench.put("_eval/notes.md", "# Notes\n\nOurs.\n")
    for number in range(6):
        bench.put(f"{number}.txt", canteen(number))
    noted, pipeline = watched(bench)
    result = bench.attempt(pipeline)
    assert result.success, failure_of(result)
    metadata = metadata_of(result)
    assert (metadata["raw_documents"]["listed"], metadata["raw_documents"]["documents"]) == (6, 6)
    assert stage_rows(bench.lake, QUARANTINE, bench.shard) == []
    assert all("_eval" not in row["source"] for row in published_rows(bench.lake, bench.shard))
    assert current(bench).source_digest == stored_digest(Lake(bench.lake), Shard.parse(bench.shard))
    assert noted.fetched.count(f"{bench.shard}/{GOLDEN}") == 1
    assert f"{bench.shard}/_eval/notes.md" not in noted.fetched

    found = checks(result)["retrieval_holds"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)  # because of the invalid line
    (line,) = table_of(found, "invalid_lines")
    assert (line["file"], line["line"]) == (f"{bench.shard}/{GOLDEN}", 7)
    assert found.metadata["documents_gone"].value == [f"{bench.shard}/never-was.txt"]
    assert (found.metadata["questions"].value, found.metadata["questions_gone"].value) == (6, 1)
    for name in ("hit_at_1", "hit_at_5", "hit_at_10", "mrr_at_10", "ndcg_at_10", "index_recall"):
        assert metadata["published"][name] == found.metadata[name].value
        assert 0 <= metadata["published"][name] <= 1
    assert metadata["published"]["hit_at_10"] == 1
    (kept,) = evaluations(bench)
    assert (kept.version, kept.compared_with, kept.questions) == (current(bench).version, None, 6)

    before = bench.state()
    noted.listed.clear()
    noted.fetched.clear()
    again = bench.attempt(pipeline)
    assert again.success, failure_of(again)
    assert (noted.fetched, noted.listed) == ([], [f"{bench.shard}/"])
    assert checks(again)["retrieval_holds"].metadata["measured"].value is False
    bench.run(keys=[GOLDEN, "_eval/notes.md"])
    bench.delete(GOLDEN)
    assert bench.run()["raw_documents"]["deleted"] == 0
    assert bench.state() == before
    assert len(evaluations(bench)) == 1


@on_folders
def test_running_the_check_alone_or_comparing_whole_tables_evaluates_again(bench: Bench) -> None:
    filled(bench, questions(0, 1, 2, 3, 4))
    result = alone(bench, check="retrieval_holds")
    assert result.success, failure_of(result)
    (found,) = checks(result).values()
    assert found.passed
    assert found.metadata["measured"].value is True
    assert len(table_of(found, "history")) == 2
    bench.run(tags={WHOLE_TAG: "true"})
    assert [kept.compared_with for kept in evaluations(bench)] == [None, None, None]
    bench.put("new.txt", "The library is closed on Mondays.")
    first = evaluations(bench)[0].version
    metadata = bench.run(keys=["new.txt"])["published"]
    assert metadata["hit_at_10"] == 1
    assert [kept.compared_with for kept in evaluations(bench)] == [first, None, None, None]


@on_folders
def test_rows_lost_from_the_table_block_the_publish(
    bench: Bench, stopped: Callable[..., dg.AssetCheckEvaluation]
) -> None:
    filled(bench)
    ids = sorted(row["chunk_id"] for row in stage_rows(bench.lake, SHARDS, bench.shard))
    with writer_of(bench.lake, bench.shard) as writer:
        writer.delete(SHARDS, "chunk_id", ids[::2])
    assert "row count differs from chunk count by" in (stopped("rows_reconcile").description or "")
    bench.run(tags={WHOLE_TAG: "true"})
    assert sorted(row["chunk_id"] for row in published_rows(bench.lake, bench.shard)) == ids


@on_folders
@pytest.mark.parametrize("whole", [False, True])
def test_passages_lost_from_the_chunks_block_the_publish_until_they_are_rebuilt(
    bench: Bench, stopped: Callable[..., dg.AssetCheckEvaluation], whole: bool
) -> None:
    filled(bench)
    rows = stage_rows(bench.lake, CHUNKS, bench.shard)
    long = sorted((row for row in rows if "Words about part" in row["text"]), key=lambda row: row["ordinal"])
    assert len(long) > 2
    with writer_of(bench.lake, bench.shard) as writer:
        writer.mark_dirty(None if whole else [long[0]["doc_id"]])
        writer.delete(CHUNKS, "chunk_id", [row["chunk_id"] for row in long[1::2]])
    found = stopped("passages_cover_documents", assets=("shards", "published"))
    assert f"{bench.shard}/long.md" in (found.description or "")
    shutil.rmtree(Path(bench.lake, CHUNKS, f"{Shard.parse(bench.shard).table_name}.lance"))
    said = bench.run()
    assert said["embeddings"]["embedded"] == 0
    assert sorted(row["chunk_id"] for row in stage_rows(bench.lake, CHUNKS, bench.shard)) == sorted(
        row["chunk_id"] for row in rows
    )


def shuffled(rows: pa.Table) -> pa.Table:
    """Return the rows with every vector shifted by one row."""
    order = np.roll(np.arange(rows.num_rows), 1)
    at = rows.schema.get_field_index("vector")
    return rows.set_column(at, rows.schema.field("vector"), rows["vector"].take(pa.array(order)))


def put_rows(table: Any, key: str, rows: pa.Table) -> None:
    table.merge_insert(key).when_matched_update_all().use_index(False).execute(rows)


@on_folders
@pytest.mark.parametrize("also_in_embeddings", [False, True])
def test_vectors_mixed_up_among_rows_block_the_publish(
    bench: Bench, stopped: Callable[..., dg.AssetCheckEvaluation], also_in_embeddings: bool
) -> None:
    fingerprint = filled(bench).fingerprint
    with writer_of(bench.lake, bench.shard) as writer:
        table, embeddings = writer.table(SHARDS), writer.table(EMBEDDINGS, fingerprint)
        assert table is not None
        assert embeddings is not None
        rows = shuffled(table.to_arrow())
        writer.maintain(SHARDS, lambda table: put_rows(table, "chunk_id", rows))
        if also_in_embeddings:
            hashes = {row["chunk_id"]: row["embed_hash"] for row in stage_rows(bench.lake, CHUNKS, bench.shard)}
            wrong = {hashes[row["chunk_id"]]: row["vector"] for row in rows.to_pylist()}
            vectors = vector_array(np.asarray(list(wrong.values()), dtype=np.float32))
            schema = embeddings.schema
            made = pa.Table.from_arrays([pa.array(list(wrong)), vectors], schema=schema)
            writer.maintain(EMBEDDINGS, lambda table: put_rows(table, "embed_hash", made), fingerprint=fingerprint)
    bench.put("new.txt", "The library is closed on Mondays.")
    said = stopped("vectors_sound").description or ""
    assert ("does not match its text" if also_in_embeddings else "differ in vector from embeddings") in said


@on_folders
def test_vectors_of_another_embedder_block_the_publish(bench: Bench) -> None:
    before = filled(bench)
    rows = published_rows(bench.lake, bench.shard)
    with writer_of(bench.lake, bench.shard) as writer:
        table = writer.table(SHARDS)
        assert table is not None
        held = table.to_arrow()
        other = shard_schema(384, "another-embedder")
        writer.overwrite(SHARDS, other)
        writer.append(SHARDS, held.cast(other))
        writer.maintain(SHARDS, index_words)
    for result in (alone(bench, "published"), alone(bench, check="vectors_sound")):
        found = checks(result).get("vectors_sound")
        said = failure_of(result) if found is None else found.description
        assert "vectors come from embedder another-embedder" in (said or "")
        assert not result.success
    assert current(bench) == before
    assert published_rows(bench.lake, bench.shard) == rows
    bench.run()  # rebuilds the table
    assert [row["chunk_id"] for row in published_rows(bench.lake, bench.shard)] == [row["chunk_id"] for row in rows]


@on_folders
def test_lost_answers_block_the_publish_until_they_are_restored_or_accepted(
    bench: Bench, stopped: Callable[..., dg.AssetCheckEvaluation]
) -> None:
    filled(bench, questions(*range(6)))
    for number in (2, 4):
        bench.put(f"{number}.txt", "Moved to the intranet.")
    found = stopped("retrieval_holds")
    assert "hit@10 of 6 golden questions fell from 1.000 to 0.667" in (found.description or "")
    assert f"no longer answered: 'When does the canteen in {BUILDINGS[2]} open?', '" in (found.description or "")
    lost: Any = found.metadata["questions_lost"].value
    assert lost == [f"When does the canteen in {BUILDINGS[number]} open?" for number in (2, 4)]
    assert found.metadata["published_hit_at_10"].value == 1
    assert bench.texts()["2.txt"] == canteen(2)
    assert not bench.attempt().success  # still blocked: nothing has changed
    for number in (2, 4):
        bench.put(f"{number}.txt", canteen(number))
    assert bench.run()["published"]["hit_at_10"] == 1

    bench.put("1.txt", "Moved to the intranet.")
    assert bench.attempt(quality_max_drop=0.5).success
    bench.put("3.txt", "Moved to the intranet.")
    bench.run(tags={ACCEPT_WORSE_TAG: "true"})
    assert bench.texts()["3.txt"] == "Moved to the intranet."


@on_folders
def test_correcting_golden_questions_unblocks_the_publish(bench: Bench) -> None:
    filled(bench, questions(*range(5)))
    bench.put("0.txt", "The canteen in the mill opens at a quarter to ten.")
    assert not bench.attempt().success
    bench.put(GOLDEN, questions(1, 2, 3, 4) + questions(0).replace("half past 5", "quarter to ten"))
    assert bench.run()["published"]["changed"] is True


@on_folders
def test_few_questions_only_warn_and_deleted_documents_do_not_count_as_lost(bench: Bench) -> None:
    filled(bench, questions(0, 1, 2, 3))
    bench.put("0.txt", "Moved to the intranet.")
    result = bench.attempt()
    assert result.success, failure_of(result)
    found = checks(result)["retrieval_holds"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "too few questions to block" in (found.description or "")

    bench.put(GOLDEN, questions(*range(1, 6)))
    for number in (1, 2):
        bench.delete(f"{number}.txt")
    result = bench.attempt()
    assert result.success, failure_of(result)
    found = checks(result)["retrieval_holds"]
    assert found.passed
    assert found.metadata["documents_gone"].value == [f"{bench.shard}/1.txt", f"{bench.shard}/2.txt"]
    assert found.metadata["questions"].value == 3


@on_folders
def test_a_quarantined_document_counts_as_not_found(bench: Bench) -> None:
    """The document is quarantined, so the shard does not contain it."""
    bench.put("photo.bin", bytes(range(256)))
    filled(bench, questions(0, 1, 2, 3) + json.dumps({"question": "What is on the photo?", "document": "photo.bin"}))
    (kept,) = evaluations(bench)
    assert kept.head is not None
    assert (kept.questions, kept.gone, kept.head.hybrid.hit_at_10) == (5, 0, 0.8)


@pytest.fixture
def lake_of_vectors(tmp_path: Path) -> Lake:
    """A lake with one table of random vectors and the index that the pipeline builds."""
    lake, shard = Lake(str(tmp_path / "lake")), Shard("oslo", "people")
    rows, dimensions = 1500, 64
    vectors = np.random.default_rng(7).normal(size=(rows, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    schema = shard_schema(dimensions, IDENTITY.fingerprint)
    ids = [f"{number:032x}" for number in range(rows)]
    columns: dict[str, Any] = {
        field.name: pa.nulls(rows, field.type)
        if field.nullable
        else pa.array([False] * rows)
        if pa.types.is_boolean(field.type)
        else pa.array([0] * rows).cast(field.type)
        if not pa.types.is_string(field.type) and field.name != "vector"
        else pa.array(ids)
        for field in schema
        if field.name != "vector"
    }
    columns["vector"] = vector_array(vectors)
    table = lake.ensure(SHARDS, shard, schema)
    table.add(pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema))
    index_vectors(table)
    return lake


def test_an_index_with_low_recall_is_a_problem(lake_of_vectors: Lake) -> None:
    lake, shard = lake_of_vectors, Shard("oslo", "people")
    good = assess(lake, shard, IDENTITY, Quality(), run_id="a test")
    assert good.problems == ()
    assert good.evaluation is not None
    assert (good.evaluation.index_recall or 0) > 0.95
    assert good.evaluation.head is None
    table = lake.open(SHARDS, shard)
    assert table is not None
    table.create_index(
        "vector", config=IvfPq(distance_type="cosine", num_partitions=64, num_sub_vectors=2, num_bits=4), replace=True
    )
    bad = assess(lake, shard, IDENTITY, Quality(), run_id="a test")
    assert "RAG_QUALITY_MIN_RECALL" in bad.problems[0]
    assert assess(lake, shard, IDENTITY, Quality(min_recall=0), run_id="a test").problems == ()
    # One more row outside the index triggers no new measurement, and measuring is deterministic.
    table.add(table.search().limit(1).to_arrow())
    again = assess(lake, shard, IDENTITY, Quality(), run_id="a test")
    assert again.evaluation is not None
    assert bad.evaluation is not None
    assert again.evaluation.index_recall == bad.evaluation.index_recall


def test_concurrent_updates_of_the_evaluation_record_lose_nothing(tmp_path: Path) -> None:
    lake, shard = Lake(str(tmp_path)), Shard("oslo", "people")
    one = Evaluation(at=datetime(2026, 1, 1, tzinfo=UTC), run_id="a test", version=1, fingerprint="f" * 32)

    def keep(version: int) -> None:
        update_record(lake, shard, lambda record: replace_evaluations(record, replace(one, version=version)))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(keep, range(1, 10)))
    assert {kept.version for kept in read_record(lake, shard).evaluations} == set(range(1, 10))
    lake.objects.put("evaluations/oslo.people.json", b"{ nonsense")
    assert read_record(lake, shard).evaluations == ()
    keep(11)
    assert [kept.version for kept in read_record(lake, shard).evaluations] == [11]
