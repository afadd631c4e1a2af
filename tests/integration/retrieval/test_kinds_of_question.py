"""Names, codes, typing errors, table rows and other languages, asked of a lake that the pipeline built."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import openpyxl
import pytest

from rag_serving.clients.sync import RagClient
from rag_serving.lake.catalog_entry import read_catalog_entry
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.shards import Shard
from rag_serving.results import Hits
from tests.integration.retrieval.test_searcher import open_client, refresh_company
from tests.pipelines import failure_of, metadata_of, published_rows, run_shard, seed_model, settings_for

PAGES = {
    "oslo/it/on-call-rota.md": "---\ntitle: Who answers at night\n---\n\nThe rota changes on Mondays at nine.\n",
    "oslo/it/adr/ADR-016.md": "# Queue instead of cron\n\nDecided in May after the outage of the billing service.\n",
    "oslo/it/adr/ADR-017.md": "# Ledger\n\nADR-016 settled the queue. ADR-016 is superseded in part by this one.\n",
    "oslo/it/secrets.md": "# Rotation\n\nCall `apply_secrets(config)` after each change. Keep no keys in tickets.\n",
    "oslo/it/desks.md": "# Desks\n\nThe IT team sits on floor 3, and HR sits on floor 2. It was renovated in spring.\n",
    "oslo/it/codes.md": "# Failures\n\nPump error E4711 means that the inlet valve is blocked by ice.\n",
    "oslo/it/receipts.md": "# Paper\n\nKeep receipts for ten years.\n",
    "oslo/it/reimbursement.md": "# Money\n\nReimbursement of travel takes ten working days.\n",
    "moscow/people/leave.md": "# Отпуск\n\nСотрудники получают двадцать восемь дней отпуска по трудовому договору.\n",
    "moscow/people/pay.md": "# Зарплата\n\nЗарплата выплачивается пятого и двадцатого числа каждого месяца.\n",
    "moscow/people/travel.md": "# Командировки\n\nСуточные в командировках составляют две тысячи рублей.\n",
}
COLUMNS = ("serial number", "building", "inspected by", "next inspection")
BUILDINGS = ("mill", "bank", "harbour", "tower", "workshop", "annex", "school", "depot")
PEOPLE = ("Karla Muster", "Ola Berg", "Ines Faria", "Jon Aas", "Mia Holt")
PUMPS = [
    (f"PX{number:04}", BUILDINGS[number * 7 % 8], PEOPLE[number * 3 % 5], f"2027-{number % 12 + 1:02}-11")
    for number in range(600)
]


def write_tables(folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = [",".join(row) for row in (COLUMNS, *PUMPS)]
    (folder / "pumps.csv").write_text("\n".join(lines) + "\n")
    workbook = openpyxl.Workbook()
    sheet: Any = workbook.active
    sheet.append(COLUMNS)
    for number, row in enumerate(PUMPS):
        if number == 300:
            sheet.append([])
        sheet.append([row[0].replace("PX", "VX"), *row[1:3], int(row[3][5:7])])
    workbook.save(folder / "valves.xlsx")


@pytest.fixture(scope="module")
def lake(model_lake: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kinds")
    for key, text in PAGES.items():
        (folder / "source" / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / key).write_text(text)
    write_tables(folder / "source/oslo/stock")
    lake = str(folder / "lake")
    seed_model(model_lake, lake)
    settings = settings_for(str(folder / "source"), lake)
    with dg.DagsterInstance.ephemeral() as instance:
        for key in ("oslo/it", "oslo/stock", "moscow/people"):
            result = run_shard(instance, settings, key)
            assert result.success, failure_of(result)
    refresh_company(lake)
    return lake


@pytest.fixture(scope="module")
def rag(lake: str) -> Iterator[RagClient]:
    with open_client(lake) as client:
        yield client


def first(hits: Hits) -> str:
    return hits[0].source.rpartition("/")[2]


@pytest.mark.parametrize(
    ("question", "document"),
    [
        ("on call rota", "on-call-rota.md"),
        ("on-call-rota.md", "on-call-rota.md"),
        ("Who answers at night", "on-call-rota.md"),
        ("ADR016", "ADR-016.md"),
        ("ADR-016", "ADR-016.md"),
        ("what does ADR-016 say", "ADR-016.md"),
        ("adr 16", "ADR-016.md"),
        ("apply secrets", "secrets.md"),
        ("what is apply_secrets", "secrets.md"),
        ("Where does IT sit?", "desks.md"),
        ("What does E4711 mean?", "codes.md"),
        ("reimbursment", "reimbursement.md"),
        ("how long does a riembursement take", "reimbursement.md"),
        ("reciepts", "receipts.md"),
    ],
)
def test_a_name_a_code_or_a_word_with_a_typo_is_found_first(rag: RagClient, question: str, document: str) -> None:
    assert first(rag.search(question)) == document


def test_names_are_searched_but_the_text_is_shown(rag: RagClient) -> None:
    hit = rag.search("on call rota")[0]
    assert hit.text == "The rota changes on Mondays at nine."
    assert hit.title == "Who answers at night"


def test_every_passage_of_a_large_table_names_its_columns(lake: str) -> None:
    rows = published_rows(lake, "oslo/stock")
    tables = [row for row in rows if "serial number" not in row["text"]]
    assert len(tables) > 40
    assert {row["table_header"] for row in tables} == {" | ".join(COLUMNS)}
    assert all("inspect" in row["words"].split() for row in rows)


@pytest.mark.parametrize("number", [51, 153, 255, 357, 459])
@pytest.mark.parametrize("kind", ["PX", "VX"])
def test_a_row_in_the_middle_of_a_table_is_found(rag: RagClient, kind: str, number: int) -> None:
    serial = f"{kind}{number:04}"
    hits = rag.search(f"Who inspected {serial}?", k=3)
    assert any(serial in hit.text and "inspected by" in hit.table_header for hit in hits)


def test_words_are_stemmed_by_the_language_of_the_document(rag: RagClient, lake: str) -> None:
    assert first(rag.search("трудовые договоры")) == "leave.md"
    assert first(rag.search("командировка", regions=["moscow"])) == "travel.md"
    found = read_catalog_entry(open_object_store(lake), Shard("moscow", "people"))
    assert found is not None
    assert found[0].current.languages == {"ru": 3}


def test_in_a_language_that_the_model_does_not_read_hybrid_ranks_as_words_do(rag: RagClient) -> None:
    question = "Сколько дней отпуска получают сотрудники?"
    words = rag.search(question, mode="text", regions=["moscow"])
    hybrid = rag.search(question, regions=["moscow"])
    assert [hit.chunk_id for hit in hybrid][: len(words)] == [hit.chunk_id for hit in words]


def test_a_shard_in_a_language_that_the_model_does_not_read_is_named_with_a_remedy(
    model_lake: str, tmp_path: Path
) -> None:
    for key in PAGES:
        if key.startswith("moscow"):
            (tmp_path / "source" / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / key).write_text(PAGES[key])
    seed_model(model_lake, str(tmp_path / "lake"))
    settings = settings_for(str(tmp_path / "source"), str(tmp_path / "lake"))
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_shard(instance, settings, "moscow/people")
    assert result.success
    (check,) = [c for c in result.get_asset_check_evaluations() if c.check_name == "languages_read"]
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert "3 of 3 passages are in languages (ISO 639-1: ru) that the embedding model" in (check.description or "")
    assert "RAG_EMBEDDING_MODEL to a multilingual model such as intfloat/multilingual-e5-small" in (
        check.description or ""
    )


def test_few_shards_and_the_company_index_give_the_same_hits(lake: str) -> None:
    questions = ["Who inspected the harbour?", "When is the next inspection?", "Reimbursement of travel", "IT team"]
    with open_client(lake, wide_shards=1000) as shards, open_client(lake, wide_shards=1) as company:
        for question in questions:
            one = [hit.chunk_id for hit in shards.search(question, k=10, mode="text")]
            other = [hit.chunk_id for hit in company.search(question, k=10, mode="text")]
            assert one == other


def test_more_hits_begin_with_the_same_hits(rag: RagClient) -> None:
    few, many = (rag.search("Who inspected the harbour?", k=k) for k in (5, 80))
    assert [hit.chunk_id for hit in few] == [hit.chunk_id for hit in many][:5]


def test_passages_of_a_document_are_limited_on_request(rag: RagClient) -> None:
    hits = rag.search("Who inspected the harbour?", k=10, per_document=2)
    sources = [hit.source for hit in hits]
    assert max(map(sources.count, sources)) == 2
    assert len(set(sources)) > 2


def test_documents_are_found_with_their_best_passages(rag: RagClient) -> None:
    found = rag.search_documents("Who inspected the harbour?", k=3, passages=2)
    assert [document.rank for document in found] == [1, 2, 3]
    assert len({document.source for document in found}) == 3
    assert all(1 <= len(document.passages) <= 2 for document in found)
    assert found[0].passages[0].chunk_id == rag.search("Who inspected the harbour?", k=1)[0].chunk_id
    for document in found:
        assert {hit.source for hit in document.passages} == {document.source}


def test_after_the_source_has_moved_no_hit_cites_the_old_place(lake: str, tmp_path: Path) -> None:
    own = str(shutil.copytree(lake, tmp_path / "lake"))
    moved = tmp_path / "moved" / "bucket"
    for key in PAGES:
        if key.startswith("oslo"):
            (moved / key).parent.mkdir(parents=True, exist_ok=True)
            (moved / key).write_text(PAGES[key])
    before = read_catalog_entry(open_object_store(own), Shard("oslo", "it"))
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_shard(instance, settings_for(str(moved), own), "oslo/it")
    assert result.success, failure_of(result)
    assert metadata_of(result)["embeddings"]["embedded"] == 0
    after = read_catalog_entry(open_object_store(own), Shard("oslo", "it"))
    assert before is not None
    assert after is not None
    assert after[0].current.content_digest != before[0].current.content_digest
    refresh_company(own)
    for wide in (1, 1000):
        with open_client(own, wide_shards=wide) as client:
            hits = client.search("Where does IT sit?", departments=["it"])
            assert all(hit.source.startswith(moved.as_uri()) for hit in hits)
