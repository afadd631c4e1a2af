"""Search on a real lake: modes, filters, wide scopes, changing versions and rerankers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from rag_assets.stages.company_index import acquire_company_index, stale_shards, sync_company_index
from rag_assets.storage.lake import Lake
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.clients.sync import RagClient
from rag_serving.errors import InvalidArgument, RerankerUnavailable
from rag_serving.lake.catalog import Catalog, Snapshot
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.search.engine import SearchEngine
from rag_serving.lake.search.fusion import ORIGIN
from rag_serving.lake.tables import SHARDS
from rag_serving.settings import ServingSettings
from tests.pipelines import failure_of, run_shard, settings_for

JAPANESE = "退職届は退職日の何日前までに提出しますか。"
LEAVE = "How many days of leave are there?"


def settings(lake: str, **values: Any) -> ServingSettings:
    return ServingSettings(**{"lake_uri": lake, "redis_url": None, "llm_model": None, **values})


def open_client(lake: str, **values: Any) -> RagClient:
    return RagClient(lambda: AsyncRagClient(settings(lake, **values)))


def snapshot_of(lake: str) -> Snapshot:
    return Catalog(open_object_store(lake)).snapshot()


def refresh_company(lake: str) -> None:
    opened = Lake(lake)
    with acquire_company_index(opened, "a test", seconds=30, wait=10) as lease:
        sync_company_index(
            opened, lease, snapshot_of(lake), vector_index_rows=256, pin_seconds=3600, log=lambda _line: None
        )


@pytest.fixture(scope="module")
def wide_lake(sample_lake: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A copy of the sample lake with a company index."""
    lake = str(tmp_path_factory.mktemp("wide") / "lake")
    shutil.copytree(sample_lake, lake)
    refresh_company(lake)
    return lake


@pytest.fixture(scope="module")
def rag(wide_lake: str) -> Iterator[RagClient]:
    """A client that always searches the shards."""
    with open_client(wide_lake, wide_shards=1000) as client:
        yield client


@pytest.fixture(scope="module")
def wide(wide_lake: str) -> Iterator[RagClient]:
    """A client that searches the company index for two or more shards."""
    with open_client(wide_lake, wide_shards=1) as client:
        yield client


@pytest.fixture
def own_lake(wide_lake: str, tmp_path: Path) -> str:
    """A copy that a test may damage."""
    return str(shutil.copytree(wide_lake, tmp_path / "own"))


# Modes and filters.


def test_text_mode_finds_japanese_passages_without_an_embedding_model(own_lake: str) -> None:
    shutil.rmtree(Path(own_lake, "models"))
    with open_client(own_lake) as client:
        hits = client.search(JAPANESE, mode="text")
    assert "退職日の45日前まで" in hits[0].text
    assert {hit.score for hit in hits} == {None}


def test_vector_mode_finds_a_japanese_document_and_orders_by_similarity(rag: RagClient) -> None:
    hits = rag.search(JAPANESE, mode="vector", regions=["nagoya"])
    assert hits[0].path.endswith("-ja.md")
    scores = [hit.score or 0 for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_vector_and_text_modes_rank_differently_and_hybrid_combines_them(rag: RagClient) -> None:
    found = {mode: [hit.chunk_id for hit in rag.search(LEAVE, mode=mode, k=30)] for mode in ("vector", "text")}  # type: ignore[arg-type]
    hybrid = [hit.chunk_id for hit in rag.search(LEAVE, k=10)]
    assert found["vector"] != found["text"]
    assert set(hybrid) <= set(found["vector"]) | set(found["text"])
    in_both = [chunk_id for chunk_id in found["vector"][:5] if chunk_id in found["text"][:5]]
    assert set(in_both) <= set(hybrid)


def test_a_path_prefix_limits_hits_to_documents_below_it(rag: RagClient) -> None:
    everything = rag.search("What was the cause of the outage?", regions=["oslo"], departments=["engineering"], k=50)
    below = rag.search(
        "What was the cause of the outage?", regions=["oslo"], departments=["engineering"], k=50, path_prefix="reviews/"
    )
    assert below
    assert {hit.path.split("/")[0] for hit in below} == {"reviews"}
    assert {hit.chunk_id for hit in everything if hit.path.startswith("reviews/")} <= {hit.chunk_id for hit in below}
    assert [hit.path for hit in rag.search("outage", path_prefix="/reviews/", regions=["oslo"])]
    assert len(rag.search("outage", path_prefix="no such folder/")) == 0


def test_a_date_filter_limits_hits_to_documents_modified_in_its_range(rag: RagClient) -> None:
    moments = sorted({hit.modified_at for hit in rag.search(LEAVE, k=50)})
    middle = moments[len(moments) // 2]
    later = rag.search(LEAVE, k=50, modified_from=middle)
    earlier = rag.search(LEAVE, k=50, modified_before=middle)
    assert later
    assert all(hit.modified_at >= middle for hit in later)
    assert all(hit.modified_at < middle for hit in earlier)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date()
    assert len(rag.search(LEAVE, modified_from=tomorrow)) == 0
    assert len(rag.search(LEAVE, modified_before=tomorrow)) == 8


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "semantic"},
        {"path_prefix": "x" * 2000},
        {"path_prefix": "a\0b"},
        {"path_prefix": 7},
        {"modified_from": "2026-01-01"},
        {"modified_before": 5},
        {"modified_from": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=9)))},
    ],
)
def test_invalid_arguments_are_rejected(rag: RagClient, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        rag.search(LEAVE, **arguments)


@pytest.mark.parametrize("prefix", ["'", "%", "_", "\\", "') OR true --", "漢字", "a%b_c'"])
def test_a_path_prefix_is_matched_literally_and_never_as_a_condition(rag: RagClient, prefix: str) -> None:
    assert len(rag.search(LEAVE, path_prefix=prefix)) == 0


def test_neighbours_are_joined_on_request(rag: RagClient) -> None:
    apart = rag.search(LEAVE, k=30)
    joined = rag.search(LEAVE, k=30, join_neighbours=True)
    assert len(joined) < len(apart)
    assert {hit.chunk_id for hit in joined} <= {hit.chunk_id for hit in apart}
    assert all(len(hit.text) == hit.end - hit.start for hit in joined)
    for hit in apart:
        assert any(other.doc_id == hit.doc_id and other.start <= hit.start and hit.end <= other.end for other in joined)


# Wide scopes.


def found(client: RagClient, question: str, **options: Any) -> list[tuple[str, float | None]]:
    hits = client.search(question, **options)
    assert hits.degraded == ()
    return [(hit.chunk_id, hit.score) for hit in hits]


@pytest.mark.parametrize(
    "scope",
    [{}, {"regions": ["oslo"]}, {"regions": ["oslo", "lisbon"]}, {"departments": ["people"]}],
)
def test_a_vector_search_of_the_company_index_returns_the_hits_of_the_shards(
    rag: RagClient, wide: RagClient, scope: Any
) -> None:
    for question in (LEAVE, JAPANESE, "What was the cause of the Brattholm outage?"):
        apart, together = (found(client, question, mode="vector", k=10, **scope) for client in (rag, wide))
        assert [chunk_id for chunk_id, _ in together] == [chunk_id for chunk_id, _ in apart]
        np.testing.assert_allclose([s for _, s in together], [s for _, s in apart], atol=2e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_the_company_index_respects_the_scope(wide: RagClient, mode: Any) -> None:
    for regions in (["oslo"], ["nagoya", "lisbon"]):
        hits = wide.search(LEAVE, regions=regions, mode=mode, k=30)
        assert hits
        assert {hit.shard.split("/")[0] for hit in hits} <= set(regions)


def test_the_company_index_respects_filters(wide: RagClient) -> None:
    hits = wide.search("outage", path_prefix="reviews/", k=20)
    assert hits
    assert {hit.path.split("/")[0] for hit in hits} == {"reviews"}


def test_without_the_company_table_the_shards_are_searched_and_the_result_is_degraded(
    own_lake: str, rag: RagClient
) -> None:
    shutil.rmtree(Path(own_lake, "company_index"))
    with open_client(own_lake, wide_shards=1) as client:
        hits = client.search(LEAVE, mode="vector")
    (mark,) = hits.degraded
    assert mark.startswith("company_index_unavailable:")
    assert [hit.chunk_id for hit in hits] == [chunk_id for chunk_id, _ in found(rag, LEAVE, mode="vector")]


def test_hits_of_the_company_index_have_all_fields_of_the_hits_of_shards(rag: RagClient, wide: RagClient) -> None:
    apart, together = (client.search(LEAVE, mode="vector", k=10) for client in (rag, wide))
    unscored = [[hit.model_copy(update={"score": None, "fused": 0.0}) for hit in hits] for hits in (apart, together)]
    assert unscored[0] == unscored[1]
    joined = [client.search(LEAVE, mode="vector", k=10, join_neighbours=True) for client in (rag, wide)]
    assert [hit.text for hit in joined[0]] == [hit.text for hit in joined[1]]


def test_the_shards_are_searched_if_the_company_index_disappears_between_two_reads(
    own_lake: str, rag: RagClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SearchEngine.completed

    async def failing(self: SearchEngine, candidates: Any) -> Any:
        if any(candidate.row[ORIGIN] is not None for candidate in candidates):
            raise RuntimeError("the object is not there")
        return await read(self, candidates)

    monkeypatch.setattr(SearchEngine, "completed", failing)
    with open_client(own_lake, wide_shards=1) as client:
        hits = client.search(LEAVE, mode="vector")
    (mark,) = hits.degraded
    assert mark.startswith("company_index_unavailable:")
    assert [hit.chunk_id for hit in hits] == [chunk_id for chunk_id, _ in found(rag, LEAVE, mode="vector")]


def test_the_shards_are_searched_if_the_record_of_the_company_index_is_corrupt(own_lake: str, rag: RagClient) -> None:
    for path in Path(own_lake, "company").glob("*.json"):
        path.write_text("{")
    with open_client(own_lake, wide_shards=1) as client:
        assert found(client, LEAVE, mode="vector") == found(rag, LEAVE, mode="vector")


@pytest.mark.parametrize("wide_shards", [1, 1000])
def test_a_running_client_immediately_finds_a_newly_published_document(
    own_lake: str, tmp_path: Path, instance: dg.DagsterInstance, wide_shards: int
) -> None:
    source = tmp_path / "source"
    folder = source / "oslo" / "harbour"
    folder.mkdir(parents=True)
    (folder / "cranes.md").write_text("# Cranes\n\nThe blue crane lifts forty tonnes.\n")
    pipeline = settings_for(str(source), own_lake)
    with open_client(own_lake, wide_shards=wide_shards, catalog_refresh=0) as client:
        for tonnes in ("forty", "fifty"):
            (folder / "cranes.md").write_text(f"# Cranes\n\nThe blue crane lifts {tonnes} tonnes.\n")
            result = run_shard(instance, pipeline, "oslo/harbour")
            assert result.success, failure_of(result)
            hits = client.search("How much does the blue crane lift?", mode="vector")
            assert tonnes in hits[0].text
            assert sum("blue crane" in hit.text for hit in hits) == 1
            refresh_company(own_lake)
            hits = client.search("How much does the blue crane lift?", mode="vector")
            assert tonnes in hits[0].text
            assert sum("blue crane" in hit.text for hit in hits) == 1


def test_an_updated_shard_ranks_like_one_indexed_afresh(
    tmp_path: Path, corpus: Path, instance: dg.DagsterInstance
) -> None:
    """Replaced rows must not count in the statistics of words."""
    source = tmp_path / "source"
    shutil.copytree(corpus / "oslo" / "people", source / "oslo" / "people", ignore=shutil.ignore_patterns("_eval"))
    updated, fresh = (settings_for(str(source), str(tmp_path / name)) for name in ("updated", "fresh"))
    assert run_shard(instance, updated, "oslo/people").success
    for file in sorted((source / "oslo" / "people").glob("*.md")):
        file.write_text(file.read_text() + "\nThe form is on the portal.\n")
    for pipeline in (updated, fresh):
        assert run_shard(instance, pipeline, "oslo/people").success
    rankings = []
    for name in ("updated", "fresh"):
        with open_client(str(tmp_path / name)) as client:
            hits = client.search("How many days of leave are there?", mode="text", k=20)
            rankings.append([(hit.text, round(hit.fused, 4)) for hit in hits])
    assert rankings[0] == rankings[1]


def test_a_table_that_matches_often_leaves_room_for_other_documents(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    folder = tmp_path / "source" / "oslo" / "stock"
    folder.mkdir(parents=True)
    rows = "".join(f"TAG-{number},asset tag of the Potsdam warehouse number {number}\n" for number in range(3_000))
    (folder / "assets.csv").write_text(f"tag,what\n{rows}")
    for number in range(6):
        (folder / f"note-{number}.md").write_text(
            f"# Note {number}\n\nAn asset tag from Potsdam was lost, case {number}.\n"
        )
    assert run_shard(instance, settings_for(str(tmp_path / "source"), str(tmp_path / "lake")), "oslo/stock").success
    with open_client(str(tmp_path / "lake")) as client:
        assert len(client.search_documents("asset tag Potsdam", k=6, passages=1)) == 6


def test_a_new_version_is_opened_in_the_background_before_a_question_needs_it(
    own_lake: str, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    source = tmp_path / "source"
    (source / "oslo" / "harbour").mkdir(parents=True)
    (source / "oslo" / "harbour" / "a.md").write_text("One crane.")
    pipeline = settings_for(str(source), own_lake)
    assert run_shard(instance, pipeline, "oslo/harbour").success

    async def watch() -> None:
        async with AsyncRagClient(settings(own_lake, catalog_refresh=0)) as client:
            searcher = client._searcher
            await client.search("crane", regions=["oslo"], departments=["harbour"])
            table = "oslo.harbour"
            (before,) = [key for key in searcher._engine.open_tables if key[1] == table]
            (source / "oslo" / "harbour" / "a.md").write_text("Two cranes.")
            assert (await asyncio.to_thread(run_shard, instance, pipeline, "oslo/harbour")).success
            await client.shards()  # reads the new catalog without searching
            assert searcher._warming is not None
            await searcher._warming
            (after,) = [key for key in searcher._engine.open_tables if key[1] == table]
            assert after[:2] == (SHARDS, table)
            assert after[2] > before[2]

    asyncio.run(watch())


def test_a_scope_can_be_warmed_before_its_first_question(wide_lake: str) -> None:
    with open_client(wide_lake) as client:
        assert {entry.region for entry in client.warm(regions=["nagoya"])} == {"nagoya"}
        assert client.search(JAPANESE, regions=["nagoya"])


def test_warming_more_than_fits_into_the_cache_is_logged_and_questions_are_answered(
    wide_lake: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_client(wide_lake, search_cache_bytes=2**24) as client:
        client._core._searcher._engine._cache_bytes = 1_024  # type: ignore[attr-defined]
        assert client.warm(regions=["oslo"])
        assert "raise RAG_SEARCH_CACHE_BYTES" in caplog.text
        assert client.search(LEAVE, regions=["oslo"])


# Rerankers.


class ByLength:
    """Rank the longest passage first."""

    async def scores(self, question: str, passages: list[str]) -> list[float]:
        return [float(len(passage)) for passage in passages]


class Broken:
    async def scores(self, question: str, passages: list[str]) -> list[float]:
        raise RerankerUnavailable("no answer")


def test_a_reranker_orders_the_hits(wide_lake: str) -> None:
    with RagClient(lambda: AsyncRagClient(settings(wide_lake), reranker=ByLength())) as client:  # type: ignore[arg-type]
        hits = client.search(LEAVE, k=5)
    lengths = [len(hit.text) for hit in hits]
    assert lengths == sorted(lengths, reverse=True)
    assert [hit.reranked for hit in hits] == [float(length) for length in lengths]


def test_a_failing_reranker_degrades_the_result_and_keeps_the_fused_order(wide_lake: str, rag: RagClient) -> None:
    with RagClient(lambda: AsyncRagClient(settings(wide_lake, wide_shards=1000), reranker=Broken())) as client:  # type: ignore[arg-type]
        hits = client.search(LEAVE)
    assert hits.degraded == ("reranker_unavailable",)
    assert [hit.chunk_id for hit in hits] == [hit.chunk_id for hit in rag.search(LEAVE)]


def test_no_shard_is_stale_after_a_refresh_of_the_company_index(wide_lake: str) -> None:
    assert stale_shards(snapshot_of(wide_lake)) == []
