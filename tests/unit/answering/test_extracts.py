"""Answers without a model: how passages are split into units, which one is quoted, and what is quoted with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_serving.answering.extractive import extract
from rag_serving.answering.named_scope import outside_scope
from rag_serving.answering.prompts import NOT_FOUND
from rag_serving.answering.quotable import quotable_units
from rag_serving.lake.shards import Shard
from rag_serving.results import MODEL_UNAVAILABLE
from tests.answers import HITS, FakeEmbedder, hit


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("One is enough here. Two is better still!", ["One is enough here.", "Two is better still!"]),
        (
            "The office is open from\nnine to five. It is closed\non public holidays.",
            ["The office is open from nine to five.", "It is closed on public holidays."],
        ),
        (
            "The buoy was silent for\n**36 hours** and then a boat\n-5 degrees or not- was sent.",
            ["The buoy was silent for 36 hours and then a boat -5 degrees or not- was sent."],
        ),
        ("The first paragraph.\n\nthe second paragraph.", ["The first paragraph.", "the second paragraph."]),
        (
            "- call the Database Lead\n- stop writers\n  on every node\n1. restart the gateway\n2) watch the queue",
            ["call the Database Lead", "stop writers on every node", "restart the gateway", "watch the queue"],
        ),
        (
            "| Role | Limit |\n| --- | ---: |\n| Line manager | EUR 750 |\n| Director | EUR 9,000 |",
            ["Role: Line manager; Limit: EUR 750", "Role: Director; Limit: EUR 9,000"],
        ),
        ("Code | Meaning\nA-1 | Wet\nA-2 | ", ["Code: A-1; Meaning: Wet", "Code: A-2"]),
        (
            "退職届は45日前までに提出します。有給休暇は半日単位で取得できます。承認は課長が行います！",
            ["退職届は45日前までに提出します。", "有給休暇は半日単位で取得できます。", "承認は課長が行います！"],
        ),
        ("# Leave in Oslo\nTen days may be moved.\n## Carried over days", ["Ten days may be moved."]),
        ("Opening hours of Oslo\n=====================\nOpen from nine.", ["Open from nine."]),
        ("OPENING HOURS\nOpen from nine to five on every day.", ["Open from nine to five on every day."]),
        ("3. Early replacement\nIt is possible when the battery fails.", ["It is possible when the battery fails."]),
        ("Standard terms\n  Invoices are paid after 45 days.", ["Invoices are paid after 45 days."]),
        (
            "The other parent takes:\n- 46 weeks on full pay, or\n- 56 weeks on less pay;\n- 十二週間の休み、",
            ["46 weeks on full pay", "56 weeks on less pay", "十二週間の休み"],
        ),
        ("> Quoted **words** of the `tdlctl` manual.", ["Quoted words of the tdlctl manual."]),
        ("The limit is 1.6 metres at 2.5 knots.", ["The limit is 1.6 metres at 2.5 knots."]),
        ("Run this:\n```\nmake test\nmake lint\n```", ["make test\nmake lint"]),
        ("Standard:    14-inch, 32 GB\nLarge:       16-inch", ["Standard: 14-inch, 32 GB", "Large: 16-inch"]),
        ("Part Period\nHull 10 years\nMooring lines 24 months", ["Hull 10 years", "Mooring lines 24 months"]),
        ("Vellamar - SUP-15 - April 2024 Page 2\n\nThe part is packed dry.", ["The part is packed dry."]),
        ("# Only a heading\n\n---\n", []),
        ("", []),
    ],
    ids=[
        "sentences", "wrapped paragraphs", "signs that start no list item", "paragraphs", "lists", "tables",
        "tables without a rule", "Japanese", "headings", "underlines", "capitals", "numbers", "indented text",
        "list items with their joining words", "markup", "decimals", "code", "columns", "rows of a PDF", "page footers",
        "only a heading", "empty",
    ],
)  # fmt: skip
def test_a_passage_is_split_into_units_that_can_be_quoted_on_their_own(text: str, units: list[str]) -> None:
    assert [unit.text for unit in quotable_units(text)] == units


def test_units_know_their_headings_and_the_words_that_introduce_them() -> None:
    text = "## Limits\n\nStop the test if one of these is passed:\n\n- winding 135 °C\n- leak current 30 mA"
    assert {(unit.headings, unit.lead_in) for unit in quotable_units(text)} == {
        (("Limits",), "Stop the test if one of these is passed:")
    }
    (unit,) = quotable_units("Adding a code\n\nNew codes are proposed.", ("Adding a code",))
    assert (unit.headings, unit.text) == (("Adding a code",), "New codes are proposed.")


def test_rows_of_a_table_that_began_in_another_passage_have_its_header() -> None:
    (unit,) = quotable_units("SKJ-207 | Clock skew", (), "Code | Meaning")
    assert unit.text == "Code: SKJ-207; Meaning: Clock skew"


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_units_have_only_characters_of_the_passage(text: str) -> None:
    letters = {c for c in text if not c.isspace()} | set(":;")
    for unit in quotable_units(text):
        assert set("".join(unit.text.split())) <= letters


def test_an_extract_quotes_the_unit_that_answers_with_the_text_around_it() -> None:
    answer = extract(FakeEmbedder("NOK 780"), "What is the per-diem in Oslo?", HITS)
    (quote,) = answer.quotes
    assert quote.match == "The per-diem in Oslo is NOK 780 per day."
    assert quote.text == HITS[0].text
    assert "“Meals are paid per day. **The per-diem in Oslo is NOK 780 per day.**” [1]" in answer.text
    assert "— Travel (1.md, oslo/finance)" in answer.text
    assert (answer.kind, answer.model) == ("extract", None)
    assert [citation.number for citation in answer.citations] == [1]


def test_an_extract_cites_exactly_the_passages_that_it_quotes() -> None:
    answer = extract(FakeEmbedder("Tickets", "Trains"), "How are tickets for trains bought?", HITS)
    assert {quote.number for quote in answer.quotes} == {citation.number for citation in answer.citations} == {3}
    given_hit = HITS[2].model_dump()
    (citation,) = answer.citations
    assert citation.model_dump(exclude={"number"}) == {
        name: given_hit[name] for name in citation.model_dump(exclude={"number"})
    }


def test_a_row_is_quoted_with_its_header_and_with_rows_that_are_as_near() -> None:
    table = hit(1, "| Place | Hotel |\n|---|---|\n| Oslo | EUR 175 |\n| Lisbon | EUR 110 |\n| Nagoya | EUR 130 |")
    one = extract(FakeEmbedder("Oslo"), "What may a hotel in Oslo cost?", [table])
    assert [quote.text for quote in one.quotes] == ["Place: Oslo; Hotel: EUR 175"]
    every = extract(FakeEmbedder("Hotel"), "What may a hotel cost?", [table])
    assert every.text.count("\n- ") == 3


def test_a_code_decides_whatever_its_length() -> None:
    table = hit(1, "Code | Meaning\nBN-5 | Motor does not stop\nBN-7 | Smoke in the hall\nBN-9 | Lost data")
    assert (
        extract(FakeEmbedder(), "What does BN-7 mean?", [table]).quotes[0].match
        == "Code: BN-7; Meaning: Smoke in the hall"
    )


def test_the_row_whose_first_cell_is_asked_for_comes_before_rows_with_other_words_of_the_question() -> None:
    table = hit(1, "Severity | First answer\n1 | 15 minutes\n3 | 1 working day\n4 | 3 working days")
    (quote,) = extract(FakeEmbedder("First"), "What is the first answer for severity 3?", [table]).quotes
    assert quote.match == "Severity: 3; First answer: 1 working day"


def test_only_passages_of_a_region_that_the_question_names_are_quoted() -> None:
    lisbon = hit(1, "Laptops are replaced every 4 years.").model_copy(update={"shard": "lisbon/finance"})
    oslo = hit(2, "Laptops are renewed every 3 years.")
    (quote,) = extract(FakeEmbedder("Laptops"), "How often are laptops replaced in Oslo?", [lisbon, oslo]).quotes
    assert quote.match == "Laptops are renewed every 3 years."
    assert quote.number == 2
    us = hit(3, "Phones are replaced every 2 years.").model_copy(update={"shard": "us/finance"})
    (quote,) = extract(FakeEmbedder("Laptops"), "How often do they give us laptops?", [us, oslo]).quotes
    assert quote.number == 2


def test_a_place_alone_or_a_follow_up_whose_conversation_was_not_read_gets_no_answer() -> None:
    assert extract(FakeEmbedder("NOK 780"), "And in Oslo?", HITS).kind == "none"
    unread = extract(FakeEmbedder("NOK 780"), "What is the per-diem?", HITS, degraded=("history_not_read",))
    assert unread.kind == "none"


def test_rows_left_out_between_quoted_ones_are_shown_as_an_ellipsis() -> None:
    rows = "\n".join(
        f"{name} | {value}" for name, value in (("Hull", "ten"), ("Leg", "two"), ("Line", "ten"), ("Pin", "six"))
    )
    (quote,) = extract(FakeEmbedder("ten"), "Which parts have ten?", [hit(1, f"Part | Years\n{rows}")]).quotes
    assert quote.text.split("\n") == ["- Part: Hull; Years: ten", "- …", "- Part: Line; Years: ten"]


def test_a_sentence_that_refers_to_the_one_before_is_quoted_with_it() -> None:
    passage = hit(1, f"Skipjack checks every reading of the buoys. It is owned by the platform team. {'Other. ' * 60}")
    (quote,) = extract(FakeEmbedder("owned"), "Who owned it, the platform team?", [passage]).quotes
    assert quote.text.startswith("Skipjack checks every reading of the buoys. It is owned by the platform team.")


def test_a_second_passage_is_quoted_only_if_it_is_as_near() -> None:
    near = [hit(1, "Leave is 24 days in Lisbon."), hit(2, "Leave is 26 days in Porto."), hit(3, "Boats sail at noon.")]
    assert {quote.number for quote in extract(FakeEmbedder("Leave"), "How many days of leave?", near).quotes} == {1, 2}
    far = [hit(1, "Leave is 24 days in Lisbon."), hit(2, "Boats sail at noon.")]
    assert {quote.number for quote in extract(FakeEmbedder("Leave"), "How many days of leave?", far).quotes} == {1}
    twice = [hit(1, "Leave is 24 days."), hit(2, "Leave is 24 days. Bring a badge.")]
    assert extract(FakeEmbedder("Leave"), "How many days of leave?", twice).text.count("Leave is 24 days.") == 1


def test_a_row_for_another_number_than_the_one_asked_for_is_only_the_nearest_passage() -> None:
    table = hit(1, "Severity | First answer\n1 | 15 minutes\n4 | 3 working days")
    assert extract(FakeEmbedder("First"), "What is the first answer for severity 4?", [table]).kind == "extract"
    assert extract(FakeEmbedder("First"), "What is the first answer for severity 7?", [table]).kind == "none"


def test_a_passage_without_the_place_that_is_asked_for_is_only_the_nearest_one() -> None:
    lisbon = [
        hit(1, "Laptops are replaced every 4 years.").model_copy(update={"shard": "lisbon/engineering"}),
        hit(2, "The board in Oslo decides.").model_copy(update={"shard": "lisbon/engineering"}),
    ]
    assert extract(FakeEmbedder("Laptops"), "How often are laptops replaced?", lisbon).kind == "extract"
    assert extract(FakeEmbedder("Laptops"), "How often are laptops replaced in Oslo?", lisbon).kind == "none"


@pytest.mark.parametrize("question", ["What does SKJ-999 mean?", "What is the per-diem in Brazil?"])
def test_a_question_that_names_what_no_passage_has_gets_the_nearest_passage_and_no_answer(question: str) -> None:
    answer = extract(FakeEmbedder("NOK"), question, HITS)
    assert answer.kind == "none"
    assert answer.text.startswith("No passage clearly answers this question. The nearest one:")
    assert len(answer.quotes) == 1


def test_a_passage_without_a_sentence_is_quoted_whole() -> None:
    assert "“# FWU-31” [1]" in extract(FakeEmbedder(), "FWU-31", [hit(1, "# FWU-31")]).text


def test_without_passages_the_answer_is_not_found_and_has_no_citations() -> None:
    answer = extract(FakeEmbedder(), "What is there?", [], degraded=("shard_unavailable:oslo/people",))
    assert (answer.kind, answer.text, answer.citations, answer.quotes) == ("none", NOT_FOUND, (), ())
    assert answer.degraded == ("shard_unavailable:oslo/people",)


@pytest.mark.parametrize(
    ("degraded", "note"),
    [
        ((), "no language model is configured"),
        ((f"{MODEL_UNAVAILABLE}:gone",), "the language model did not answer"),
        (("question_cut_at_window",), "no language model is configured"),
        (("shard_unavailable:oslo/people", MODEL_UNAVAILABLE), "the language model did not answer"),
    ],
)
def test_an_extract_notes_why_no_model_wrote_it(degraded: tuple[str, ...], note: str) -> None:
    answer = extract(FakeEmbedder("NOK 780"), "What is the per-diem in Oslo?", HITS, degraded=degraded)
    assert note in answer.text
    assert answer.degraded == degraded


class _Entry:
    shard = Shard("lisbon", "people")


@pytest.mark.parametrize(
    ("question", "kind", "named"),
    [
        ("What is the per-diem in Oslo?", "extract", ["oslo"]),
        ("What is Oslo's leave?", "none", ["oslo"]),
        ("What is the per-diem in New York?", "extract", ["new-york"]),
        ("Do the rules of the US apply to us?", "extract", ["us"]),
        ("Does it concern us?", "extract", []),
        ("What does Finance say?", "extract", []),
        ("What does Finance say?", "none", ["finance"]),
        ("What does the finance team say?", "none", ["finance"]),
        ("Who can finance it?", "none", []),
        ("What is the leave in Lisbon?", "none", []),
    ],
)
def test_a_region_or_department_that_is_named_but_not_searched_is_told(
    question: str, kind: str, named: list[str]
) -> None:
    known = [
        Shard(region, department)
        for region in ("lisbon", "oslo", "new-york", "us")
        for department in ("people", "finance")
    ]
    assert outside_scope(question, [_Entry()], known, kind) == tuple(f"outside_scope:{name}" for name in named)
