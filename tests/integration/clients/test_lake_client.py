"""The client on a real lake: what it finds, what it rejects, and how it handles a partly broken lake."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pytest

from rag_assets.storage.search_indexes import index_words
from rag_serving import ShardInfo
from rag_serving.answering.generation import LanguageModel
from rag_serving.clients.base import BaseRagClient
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.clients.sync import RagClient
from rag_serving.errors import (
    EmbedderUnavailable,
    InvalidArgument,
    InvalidQuestion,
    InvalidShardName,
    LakeUnavailable,
    UnknownScope,
)
from rag_serving.events import Done, Event
from rag_serving.lake.object_store import FolderObjectStore, StoredObject
from rag_serving.lake.search.words import indexed_words
from rag_serving.results import Hit
from rag_serving.settings import ServingSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BRATTHOLM = "What was the cause of the Brattholm outage in November 2023?"
OUTAGE = "oslo/engineering/reviews/2023-11-brattholm-outage.md"
QUESTIONS = [
    json.loads(line)
    for line in (Path(__file__).parents[3] / "examples" / "questions.jsonl").read_text("utf-8").splitlines()
]


def settings(lake: str, **values: Any) -> ServingSettings:
    """Return settings with an in-memory cache, no language model, and nothing from the environment."""
    return ServingSettings(**{"lake_uri": lake, "redis_url": None, "llm_model": None, **values})


def open_client(lake: str, **values: Any) -> RagClient:
    return RagClient(lambda: AsyncRagClient(settings(lake, **values)))


def path_of(source: str, corpus: Path) -> str:
    """Return the path within the corpus of a `file://` source."""
    parts = urlsplit(source)
    attached = f"#{unquote(parts.fragment)}" if parts.fragment else ""
    return Path(unquote(parts.path)).relative_to(corpus).as_posix() + attached


@pytest.fixture(scope="module")
def rag(sample_lake: str) -> Iterator[RagClient]:
    """A client shared by the tests that only read."""
    with open_client(sample_lake) as client:
        yield client


@pytest.fixture
def own_lake(sample_lake: str, tmp_path: Path) -> Path:
    """A copy of the sample lake that a test may damage."""
    return Path(shutil.copytree(sample_lake, tmp_path / "own-lake"))


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# What it finds.


def test_nine_in_ten_questions_find_the_expected_document(rag: RagClient, corpus: Path) -> None:
    missed: list[str] = []
    for asked in QUESTIONS:
        hits = rag.search(asked["question"], regions=asked["regions"], departments=asked["departments"])
        assert 1 <= len(hits) <= 8
        if asked["document"] not in {path_of(hit.source, corpus) for hit in hits}:
            missed.append(f"{asked['document']}: {asked['question']}")
    assert len(QUESTIONS) >= 50
    assert len(missed) <= len(QUESTIONS) // 10, missed


def test_nine_in_ten_questions_find_the_passage_with_the_answer(rag: RagClient) -> None:
    missed: list[str] = []
    for asked in QUESTIONS:
        hits = rag.search(asked["question"], regions=asked["regions"], departments=asked["departments"])
        if not any(asked["quote"] in hit.text for hit in hits):
            missed.append(asked["question"])
    assert len(missed) <= len(QUESTIONS) // 10, missed


def test_a_japanese_question_finds_the_passage_of_the_japanese_document(rag: RagClient, corpus: Path) -> None:
    hits = rag.search("退職届は退職日の何日前までに提出しますか。")
    found = [hit for hit in hits if "退職日の45日前まで" in hit.text]
    assert [path_of(hit.source, corpus) for hit in found] == ["nagoya/people/shugyo-kisoku-ja.md"]


@pytest.mark.parametrize(
    ("regions", "departments"),
    [(["oslo"], None), (None, ["finance"]), (["lisbon", "nagoya"], ["people", "support"]), (["oslo"], ["people"])],
)
def test_hits_and_citations_stay_within_the_scope(
    rag: RagClient, corpus: Path, regions: list[str] | None, departments: list[str] | None
) -> None:
    for question in ("How many days of leave are there?", BRATTHOLM):
        hits = rag.search(question, regions=regions, departments=departments)
        answer = rag.ask(question, regions=regions, departments=departments)
        assert answer.citations or answer.kind == "none"
        for place in (*hits, *answer.citations):
            region, department = place.shard.split("/")
            assert regions is None or region in regions
            assert departments is None or department in departments
            assert path_of(place.source, corpus).startswith(f"{place.shard}/")


def test_every_citation_quotes_the_extracted_document_at_its_offsets(rag: RagClient, corpus: Path) -> None:
    from rag_assets.extraction.registry import read_object

    documents: dict[str, str] = {}
    for asked in QUESTIONS:
        scope = {"regions": asked["regions"], "departments": asked["departments"]}
        answer = rag.ask(asked["question"], **scope)
        assert answer.citations
        for citation in (*answer.citations, *rag.search(asked["question"], **scope)):
            path = path_of(citation.source, corpus)
            if path not in documents:
                file, _, attached = path.partition("#")
                parts = read_object((corpus / file).read_bytes(), file).parts
                documents[path] = next(part.document.text for part in parts if part.name == attached)
            assert citation.text == documents[path][citation.start : citation.end]
    assert {Path(path).suffix for path in documents} == {
        *(".md", ".txt", ".html", ".pdf", ".docx", ".pptx", ".xlsx", ".csv", ".rtf", ".eml"),
    }


def test_an_answer_without_a_model_quotes_its_citations(rag: RagClient) -> None:
    answer = rag.ask(BRATTHOLM)
    assert answer.kind == "extract"
    assert answer.degraded == ()
    numbers = {citation.number for citation in answer.citations}
    assert numbers
    assert all(f"[{number}]" in answer.text for number in numbers)
    assert any(citation.source.endswith(OUTAGE) for citation in answer.citations)


def test_hits_are_ranked_and_unique(rag: RagClient) -> None:
    hits = rag.search(BRATTHOLM, k=20)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit.fused for hit in hits] == sorted((hit.fused for hit in hits), reverse=True)
    assert len({hit.chunk_id for hit in hits}) == len(hits) == 20
    assert all(-1 <= hit.score <= 1 for hit in hits)


def test_search_returns_k_hits(rag: RagClient) -> None:
    assert [len(rag.search(BRATTHOLM, k=k)) for k in (1, 3, 100)] == [1, 3, 100]


def test_hits_convert_to_a_dataframe_with_the_fields_of_a_hit(rag: RagClient) -> None:
    hits = rag.search(BRATTHOLM)
    frame = hits.to_pandas()
    assert list(frame.columns) == list(Hit.model_fields)
    assert list(frame["chunk_id"]) == [hit.chunk_id for hit in hits]
    assert list(frame["rank"]) == list(range(1, 9))


def test_no_hits_convert_to_an_empty_dataframe_with_the_same_columns() -> None:
    from rag_serving.results import Hits

    assert list(Hits([], {}).to_pandas().columns) == list(Hit.model_fields)


def test_the_phases_of_a_question_are_timed(rag: RagClient) -> None:
    assert {"embed", "search", "total"} <= set(rag.search(BRATTHOLM).timings)
    assert "total" in rag.ask(BRATTHOLM).timings


def test_an_equal_question_is_an_exact_hit_in_memory_but_not_in_a_wider_scope(sample_lake: str) -> None:
    with open_client(sample_lake) as client:
        first = client.ask(BRATTHOLM, regions=["oslo"])
        again = client.ask(BRATTHOLM.upper(), regions=["oslo"])
        wider = client.ask(BRATTHOLM)
    assert [first.cache, again.cache, wider.cache] == ["miss", "exact", "miss"]
    assert again.text == first.text
    assert again.question == BRATTHOLM.upper()


def test_no_break_and_full_width_spaces_separate_words(rag: RagClient) -> None:
    plain = rag.search("wave height limit for transfer at Brattholm")
    for space in ("\u00a0", "\u3000", "\r"):
        spaced = rag.search(f"wave{space}height{space}limit{space}for{space}transfer{space}at{space}Brattholm")
        assert [hit.chunk_id for hit in spaced] == [hit.chunk_id for hit in plain]


def test_the_synchronous_and_asynchronous_clients_return_the_same(sample_lake: str, rag: RagClient) -> None:
    async def asked() -> tuple[list[Any], Any, list[ShardInfo]]:
        async with AsyncRagClient(settings(sample_lake)) as client:
            hits = await client.search(BRATTHOLM, departments=["engineering"])
            answer = await client.ask(BRATTHOLM, departments=["engineering"], k=5)
            return list(hits), answer, await client.shards()

    hits, answer, shards = asyncio.run(asked())
    assert hits == list(rag.search(BRATTHOLM, departments=["engineering"]))
    same = rag.ask(BRATTHOLM, departments=["engineering"], k=5)
    without = {"timings", "cache", "similarity"}
    assert answer.model_dump(exclude=without) == same.model_dump(exclude=without)
    assert shards == rag.shards()


def test_threads_share_a_client(sample_lake: str) -> None:
    asked = [QUESTIONS[row % len(QUESTIONS)] for row in range(24)]
    with open_client(sample_lake) as client, ThreadPoolExecutor(8) as pool:

        def best(each: dict[str, Any]) -> str:
            return client.search(each["question"], regions=each["regions"], departments=each["departments"])[0].chunk_id

        assert list(pool.map(best, asked)) == [best(each) for each in asked]


def test_shards_are_listed_in_order(rag: RagClient) -> None:
    keys = [entry.shard for entry in rag.shards()]
    assert len(keys) == 11
    assert keys == sorted(keys)
    assert "nagoya/support" in keys


def test_the_synchronous_client_streams_the_same_events_as_the_asynchronous_one(
    rag: RagClient, sample_lake: str
) -> None:
    question = "How is a laptop replaced?"

    async def asked() -> list[Event]:
        async with AsyncRagClient(settings(sample_lake)) as client:
            return [event async for event in client.stream(question, regions=["oslo"])]

    events, waited = asyncio.run(asked()), list(rag.stream(question, regions=["oslo"]))
    assert [event.type for event in waited] == [event.type for event in events]
    assert events[:-1] == waited[:-1]
    assert isinstance(events[-1], Done)
    assert isinstance(waited[-1], Done)
    assert events[-1].answer.text == waited[-1].answer.text


def test_a_stream_can_be_abandoned_and_may_outlive_its_client(sample_lake: str) -> None:
    with open_client(sample_lake) as client:
        left = client.stream(BRATTHOLM)
        assert next(left).type == "sources"
        left.close()
        open_still = client.stream(BRATTHOLM)
        assert next(open_still).type == "sources"
        with pytest.raises(InvalidQuestion):
            next(client.stream(""))
    del open_still
    gc.collect()


def test_synchronous_methods_have_the_signatures_and_docs_of_the_asynchronous_ones() -> None:
    for name in ("search", "ask", "stream", "feedback", "shards", "warm", "notes", "health"):
        waited, awaited = getattr(RagClient, name), getattr(AsyncRagClient, name)
        assert list(inspect.signature(waited).parameters) == list(inspect.signature(awaited).parameters)
        assert waited.__doc__ == getattr(BaseRagClient, name).__doc__


def test_a_client_can_be_closed_twice(sample_lake: str) -> None:
    client = open_client(sample_lake)
    client.close()
    client.close()


def test_a_failing_model_yields_a_degraded_extract_that_is_not_cached(sample_lake: str) -> None:
    calls: list[str] = []

    async def refuses(**arguments: Any) -> Any:
        calls.append(arguments["model"])
        raise ConnectionError("no route to the model")

    model = LanguageModel("fake/model", timeout=0.1, retries=0, max_tokens=20, completion=refuses)
    with RagClient(lambda: AsyncRagClient(settings(sample_lake), model=model)) as client:
        answers = [client.ask(BRATTHOLM) for _ in range(2)]
    for answer in answers:
        assert answer.kind == "extract"
        assert answer.degraded == ("model_unavailable:fake/model (ConnectionError)",)
        assert answer.cache == "miss"
        assert "the language model did not answer" in answer.text
    assert calls == ["fake/model", "fake/model"]


def test_a_prompt_is_completed_without_a_search_and_within_the_limits_of_model_calls(sample_lake: str) -> None:
    async def waits(**arguments: Any) -> Any:
        await asyncio.sleep(60)

    async def outcomes(**limits: Any) -> list[Any]:
        model = LanguageModel("fake/model", timeout=60, retries=0, max_tokens=20, completion=waits)
        async with AsyncRagClient(settings(sample_lake, **limits), model=model) as client:
            prompt = [{"role": "user", "content": "A title, please."}]
            return await asyncio.gather(*(client.complete(prompt) for _ in range(3)), return_exceptions=True)

    kinds = [type(one) for one in asyncio.run(outcomes(llm_concurrency=1, queue_limit=1, ask_deadline=0.2))]
    assert sorted(kind.__name__ for kind in kinds) == ["ModelUnavailable", "ModelUnavailable", "Overloaded"]


# What it rejects.


def test_the_error_for_an_unknown_region_suggests_similar_names(rag: RagClient) -> None:
    with pytest.raises(UnknownScope, match=r"region 'olso'.*did you mean oslo"):
        rag.search(BRATTHOLM, regions=["olso"])
    with pytest.raises(UnknownScope, match=r"department 'finances'.*did you mean finance"):
        rag.ask(BRATTHOLM, departments=["finances"])


def test_the_error_for_an_unfamiliar_name_says_how_to_list_shards(rag: RagClient) -> None:
    with pytest.raises(UnknownScope, match="rag-serving shards"):
        rag.search(BRATTHOLM, regions=["antarctica"])


def test_a_region_and_a_department_without_a_common_shard_are_rejected(rag: RagClient) -> None:
    with pytest.raises(UnknownScope, match="together"):
        rag.search(BRATTHOLM, regions=["oslo"], departments=["support"])


@pytest.mark.parametrize("kind", ["regions", "departments"])
@pytest.mark.parametrize(
    "name",
    ["os|lo", "..", "a..b", "../oslo", "oslo\n", 'oslo"', 'os"lo', "x' OR '1'='1", "oslo;", "", "}", "*", "o" * 65, 7],
)
def test_names_that_could_break_out_of_a_path_or_query_are_rejected(rag: RagClient, kind: str, name: Any) -> None:
    scope: dict[str, Any] = {kind: [name]}
    with pytest.raises(InvalidShardName):
        rag.search(BRATTHOLM, **scope)
    with pytest.raises(InvalidShardName):
        rag.ask(BRATTHOLM, **scope)


@pytest.mark.parametrize("question", ["", "   \n\t", "\u200b\x00\x07", "x" * 100_000, "x" * 4_001, None, 7, b"why"])
def test_invalid_questions_are_rejected(rag: RagClient, question: Any) -> None:
    with pytest.raises(InvalidQuestion):
        rag.search(question)
    with pytest.raises(InvalidQuestion):
        rag.ask(question)


@pytest.mark.parametrize("k", [0, -1, 101, True, False, 2.0, "8", None])
def test_a_number_of_passages_outside_1_to_100_is_rejected(rag: RagClient, k: Any) -> None:
    with pytest.raises(InvalidArgument, match="k must be"):
        rag.search(BRATTHOLM, k=k)
    with pytest.raises(InvalidArgument, match="k must be"):
        rag.ask(BRATTHOLM, k=k)


@pytest.mark.parametrize("names", ["oslo", "", [], ()])
def test_a_bare_string_or_an_empty_list_is_not_a_scope(rag: RagClient, names: Any) -> None:
    with pytest.raises(InvalidArgument, match="regions"):
        rag.search(BRATTHOLM, regions=names)
    with pytest.raises(InvalidArgument, match="departments"):
        rag.ask(BRATTHOLM, departments=names)


@pytest.mark.parametrize(
    "question", ["'; DROP TABLE shards; --", '"unbalanced', "AND OR NOT ( ) ^ ~ * ? : \\", "🤖", "x " * 1_999, "?"]
)
def test_a_question_may_contain_any_characters(rag: RagClient, question: str) -> None:
    assert len(rag.search(question, regions=["oslo"])) == 8
    assert rag.ask(question, regions=["oslo"]).kind in ("extract", "none")


def test_a_question_longer_than_the_models_window_is_answered_and_marked(rag: RagClient) -> None:
    question = "buoy mooring load alarm " * 150
    assert rag.search(question).degraded == ("question_cut_at_window",)
    answer = rag.ask(question)
    assert answer.degraded == ("question_cut_at_window",)
    assert "no language model is configured" in answer.text
    assert rag.ask(question).cache == "miss"  # a degraded answer is not cached


# When a part of the lake is missing or broken.


def test_a_folder_that_does_not_exist_is_unavailable(tmp_path: Path) -> None:
    with open_client(str(tmp_path / "nowhere")) as client:
        for question in (client.search, client.ask):
            with pytest.raises(LakeUnavailable, match=r"the folder /.*/nowhere does not exist; check RAG_LAKE_URI"):
                question(BRATTHOLM)
        with pytest.raises(LakeUnavailable):
            client.shards()
    assert not (tmp_path / "nowhere").exists()


def test_an_empty_folder_is_a_lake_with_nothing_published(tmp_path: Path) -> None:
    with open_client(str(tmp_path)) as client:
        assert client.shards() == []
        for question in (client.search, client.ask):
            with pytest.raises(UnknownScope, match=r"nothing is published in /.*; check RAG_LAKE_URI"):
                question(BRATTHOLM)


@pytest.mark.parametrize("remove", [shutil.rmtree, lambda lake: [shutil.rmtree(part) for part in lake.iterdir()]])
def test_a_lake_that_vanishes_is_unavailable_and_its_error_locates_it_only_for_callers_who_see_everything(
    own_lake: Path, remove: Callable[[Path], Any]
) -> None:
    with open_client(str(own_lake), catalog_refresh=0) as client:
        assert len(client.shards()) == 11
        remove(own_lake)
        for _ in range(2):
            with pytest.raises(LakeUnavailable, match=str(own_lake)):
                client.search(BRATTHOLM)
            with pytest.raises(LakeUnavailable) as caught:
                client.search(BRATTHOLM, within=["*/*"])
            assert str(own_lake) not in str(caught.value)


def test_retiring_every_shard_leaves_a_lake_with_nothing_published(own_lake: Path) -> None:
    with open_client(str(own_lake), catalog_refresh=0) as client:
        assert len(client.shards()) == 11
        shutil.rmtree(own_lake / "catalog")
        assert client.shards() == []


def test_a_bucket_that_does_not_exist_is_unavailable(s3_environment: str) -> None:
    with (
        open_client(f"s3://{s3_environment}-missing/lake") as client,
        pytest.raises(LakeUnavailable, match="NoSuchBucket"),
    ):
        client.search(BRATTHOLM)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff\xfe"])
def test_a_shard_with_a_corrupt_catalog_object_is_left_out_and_the_others_serve(own_lake: Path, content: bytes) -> None:
    (own_lake / "catalog" / "oslo.engineering.json").write_bytes(content)
    with open_client(str(own_lake)) as client:
        assert len(client.shards()) == 10
        hits = client.search(BRATTHOLM)
        assert len(hits) == 8
        assert "oslo/engineering" not in {hit.shard for hit in hits}
        assert hits.degraded == ("catalog_broken:oslo/engineering",)
        assert client.ask(BRATTHOLM).degraded == ("catalog_broken:oslo/engineering",)
        assert client.search(BRATTHOLM, regions=["oslo"]).degraded == ("catalog_broken:oslo/engineering",)
        assert client.search(BRATTHOLM, regions=["lisbon"]).degraded == ()
        with pytest.raises(UnknownScope):
            client.search(BRATTHOLM, regions=["oslo"], departments=["engineering"])


def test_a_catalog_object_that_names_another_table_is_left_out(own_lake: Path) -> None:
    edit_json(own_lake / "catalog" / "oslo.people.json", table="oslo.engineering")
    with open_client(str(own_lake)) as client:
        assert "oslo/people" not in {entry.shard for entry in client.shards()}


def test_a_stray_file_in_the_catalog_is_harmless(own_lake: Path) -> None:
    (own_lake / "catalog" / "NOTES.json").write_text("{}")
    (own_lake / "catalog" / "readme.txt").write_text("hello")
    with open_client(str(own_lake)) as client:
        assert len(client.shards()) == 11
        assert client.search(BRATTHOLM).degraded == ()


def written_after_publication(lake: Path, shard: str) -> str:
    """Add an unpublished version of the shard's table with one new passage, and return its text."""
    import lancedb

    table = lancedb.connect(str(lake / "shards")).open_table(shard)
    newest = table.version
    row = table.to_arrow().slice(0, 1)
    text = "Zyzzyva quagga xylophone: a passage that was never published."
    changed = {"text": text, "words": indexed_words([text], "en"), "chunk_id": "f" * 32}
    for name, value in changed.items():
        row = row.set_column(row.schema.get_field_index(name), row.schema.field(name), pa.array([value], pa.string()))
    table.add(row)
    assert table.version > newest
    return text


def test_an_unpublished_version_of_a_table_is_not_visible(own_lake: Path) -> None:
    text = written_after_publication(own_lake, "oslo.engineering")
    with open_client(str(own_lake)) as client:
        hits = client.search(text, regions=["oslo"], departments=["engineering"], k=100)
    assert hits
    assert text not in {hit.text for hit in hits}


def test_a_running_client_sees_a_publication(own_lake: Path) -> None:
    import lancedb

    with open_client(str(own_lake), catalog_refresh=0) as client:
        scope: dict[str, Any] = {"regions": ["oslo"], "departments": ["engineering"]}
        first = client.ask("What is a zyzzyva quagga xylophone?", **scope)
        assert "never published" not in first.text
        text = written_after_publication(own_lake, "oslo.engineering")
        path = own_lake / "catalog" / "oslo.engineering.json"
        entry = json.loads(path.read_text())
        entry["current"]["version"] = lancedb.connect(str(own_lake / "shards")).open_table("oslo.engineering").version
        entry["current"]["content_digest"] = "f" * 32
        path.write_text(json.dumps(entry))
        assert text in {hit.text for hit in client.search(text, **scope)}
        again = client.ask("What is a zyzzyva quagga xylophone?", **scope)
    assert again.cache == "miss"
    assert "never published" in again.text


def test_a_lost_table_degrades_wide_searches_and_fails_a_search_of_its_shard_only(own_lake: Path) -> None:
    shutil.rmtree(own_lake / "shards" / "oslo.engineering.lance")
    with open_client(str(own_lake)) as client:
        hits = client.search(BRATTHOLM)
        assert len(hits) == 8
        assert hits.degraded == ("shard_unavailable:oslo/engineering",)
        answer = client.ask(BRATTHOLM)
        assert answer.degraded == ("shard_unavailable:oslo/engineering",)
        assert client.ask(BRATTHOLM).cache == "miss"  # a degraded answer is not cached
        for question in (client.search, client.ask):
            with pytest.raises(LakeUnavailable, match="no shard could be searched") as caught:
                question(BRATTHOLM, regions=["oslo"], departments=["engineering"])
            assert str(own_lake) not in str(caught.value)


def with_another_embedder(lake: Path, shard: str) -> None:
    """Make the catalog say that the vectors of a shard are of an embedder that the lake lacks."""
    path = lake / "catalog" / f"{shard.replace('/', '.')}.json"
    entry = json.loads(path.read_text())
    entry["current"]["fingerprint"] = "f" * 32
    path.write_text(json.dumps(entry))


def test_a_shard_whose_embedder_does_not_load_is_left_out_and_the_others_answer(own_lake: Path) -> None:
    lost = "shard_unavailable:oslo/people"
    with open_client(str(own_lake), catalog_refresh=0) as client:
        whole = client.ask(BRATTHOLM)
        assert client.ask(BRATTHOLM).cache == "exact"
        with_another_embedder(own_lake, "oslo/people")
        hits = client.search(BRATTHOLM)
        assert len(hits) == 8
        assert "oslo/people" not in {hit.shard for hit in hits}
        assert hits.degraded == (lost,)
        for _ in range(2):  # neither stored nor replaced by what was stored before
            answer = client.ask(BRATTHOLM)
            assert (answer.cache, answer.degraded, answer.entry) == ("miss", (lost,), None)
        assert answer.text == whole.text
        assert client.search(BRATTHOLM, regions=["lisbon"]).degraded == ()
        assert client.search(BRATTHOLM, mode="text").degraded == ()
        for question in (client.search, client.ask):
            with pytest.raises(EmbedderUnavailable, match="no embedder"):
                question(BRATTHOLM, regions=["oslo"], departments=["people"])


def test_a_paraphrase_is_not_served_from_the_cache_while_a_shard_of_its_scope_is_left_out(own_lake: Path) -> None:
    with open_client(str(own_lake), catalog_refresh=0) as client:
        client.ask(BRATTHOLM)
        paraphrase = "What caused the Brattholm outage in November 2023?"
        assert client.ask(paraphrase).cache == "semantic"
        with_another_embedder(own_lake, "oslo/people")
        answer = client.ask(paraphrase)
    assert (answer.cache, answer.degraded) == ("miss", ("shard_unavailable:oslo/people",))


def test_an_unreadable_catalog_object_leaves_out_its_shard_only(own_lake: Path) -> None:
    class Objects(FolderObjectStore):
        failing = True

        def get(self, key: str) -> StoredObject | None:
            if self.failing and key == "catalog/oslo.people.json":
                raise LakeUnavailable("cannot read it")
            return super().get(key)

    objects = Objects(own_lake)
    with RagClient(lambda: AsyncRagClient(settings(str(own_lake), catalog_refresh=0), objects=objects)) as client:
        assert client.search(BRATTHOLM).degraded == ("catalog_broken:oslo/people",)
        objects.failing = False
        assert client.search(BRATTHOLM).degraded == ()


def rewritten(lake: Path, shard: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace the table of a shard by a changed one with the same indexes, and publish it."""
    import lancedb

    database = lancedb.connect(str(lake / "shards"))
    name = shard.replace("/", ".")
    table = database.create_table(name, change(database.open_table(name).to_arrow()), mode="overwrite")
    index_words(table)
    path = lake / "catalog" / f"{name}.json"
    entry = json.loads(path.read_text())
    entry["current"]["version"] = table.version
    path.write_text(json.dumps(entry))


def replaced(name: str, values: Callable[[pa.Table], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        return rows.set_column(rows.schema.get_field_index(name), name, values(rows))

    return change


@pytest.mark.parametrize(
    "change",
    [
        replaced("region", lambda rows: pa.array(["lisbon"] * rows.num_rows)),
        replaced("title", lambda rows: pa.nulls(rows.num_rows, pa.string())),
        replaced("heading_path", lambda rows: pa.array([[None]] * rows.num_rows, pa.list_(pa.string()))),
        replaced("modified_at", lambda rows: pa.array([2**60] * rows.num_rows, pa.timestamp("us", "UTC"))),
    ],
    ids=["of another shard", "without a title", "with an empty heading", "of no year"],
)
def test_invalid_rows_and_those_of_other_shards_are_dropped_and_counted(
    own_lake: Path, change: Callable[[pa.Table], pa.Table], caplog: pytest.LogCaptureFixture
) -> None:
    rewritten(own_lake, "oslo/engineering", change)
    with open_client(str(own_lake)) as client:
        hits = client.search(BRATTHOLM)
        assert len(hits) == 8
        assert not any("brattholm-outage" in hit.path for hit in hits)
        assert client.stats()["dropped_rows"] > 0
    assert "rows of oslo.engineering that are invalid or of other shards" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.drop_columns(["title"]),
        replaced("title", lambda rows: pa.array([7] * rows.num_rows)),
        replaced("vector", lambda rows: pa.array([[1.0] * 3] * rows.num_rows, pa.list_(pa.float32(), 3))),
    ],
    ids=["missing", "of another type", "of other dimensions"],
)
def test_a_table_with_a_wrong_column_leaves_out_its_shard_only(
    own_lake: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    rewritten(own_lake, "oslo/engineering", change)
    with open_client(str(own_lake)) as client:
        hits = client.search(BRATTHOLM)
    assert len(hits) == 8
    assert hits.degraded == ("shard_unavailable:oslo/engineering",)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("graph.bin", flip_last_byte),
        ("graph.xml", flip_last_byte),
        ("tokenizer.json", lambda path: path.write_text(path.read_text() + " ")),
        ("tokenizer.json", Path.unlink),
        ("manifest.json", lambda path: path.write_text("{}")),
        ("manifest.json", lambda path: edit_json(path, query_prompt="query: ")),
    ],
    ids=["weights", "graph", "tokenizer", "no tokenizer", "manifest", "another prompt"],
)
def test_altered_embedder_files_are_rejected(own_lake: Path, name: str, damage: Callable[[Path], Any]) -> None:
    (path,) = own_lake.glob(f"models/*/{name}")
    damage(path)
    with open_client(str(own_lake)) as client:
        for question in (client.search, client.ask):
            with pytest.raises(EmbedderUnavailable, match="export"):
                question(BRATTHOLM)


def test_an_embedder_that_fails_its_self_test_is_rejected(own_lake: Path) -> None:
    (path,) = own_lake.glob("models/*/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["self_test"] = [-value for value in manifest["self_test"]]
    path.write_text(json.dumps(manifest))
    with open_client(str(own_lake)) as client, pytest.raises(EmbedderUnavailable, match="self-test"):
        client.search(BRATTHOLM)


def test_the_error_for_a_lake_without_its_embedder_names_the_asset_to_materialize(own_lake: Path) -> None:
    shutil.rmtree(own_lake / "models")
    with open_client(str(own_lake)) as client, pytest.raises(EmbedderUnavailable, match="embedding_model"):
        client.search(BRATTHOLM)


# The same lake in a bucket.


def test_the_same_lake_serves_the_same_results_from_a_bucket_and_a_folder(
    sample_lake: str, rag: RagClient, s3_environment: str, s3_client: S3Client
) -> None:
    for folder in ("catalog", "models", "shards"):
        for parent, _, names in os.walk(Path(sample_lake, folder)):
            for path in (Path(parent, name) for name in names if not name.startswith(".")):
                key = f"lake/{path.relative_to(sample_lake).as_posix()}"
                s3_client.put_object(Bucket=s3_environment, Key=key, Body=path.read_bytes())
    with open_client(f"s3://{s3_environment}/lake") as client:
        assert client.shards() == rag.shards()
        for asked in (QUESTIONS[0], QUESTIONS[36], QUESTIONS[-1]):
            scope = {"regions": asked["regions"], "departments": asked["departments"]}
            assert list(client.search(asked["question"], **scope)) == list(rag.search(asked["question"], **scope))
        answer = client.ask(BRATTHOLM)
    assert any(citation.source.endswith(OUTAGE) for citation in answer.citations)
