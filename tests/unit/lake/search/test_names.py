"""Passages with exactly what a question names."""

from __future__ import annotations

from typing import Any

from rag_serving.lake.search.names import named_exactly
from rag_serving.lake.search.words import indexed_words


def row(
    chunk_id: str, text: str, *, title: str = "", source: str = "s3://b/x.md", document: str = ""
) -> dict[str, Any]:
    words = indexed_words([title, text], "en")
    doc_id = document or chunk_id
    return {"chunk_id": chunk_id, "doc_id": doc_id, "text": text, "words": words, "title": title, "source": source}


OTHERS = [row(f"o{number}", f"other matters {number}") for number in range(5)]


def test_a_code_is_exact_at_any_rank() -> None:
    rows = [*OTHERS, row("it", "call apply_secrets first")]
    assert named_exactly("where is apply_secrets called", rows) == {"it"}


def test_a_code_as_it_is_written_wins_over_one_that_is_written_otherwise() -> None:
    rows = [row("other", "the value in use"), row("dash", "is in-use"), row("it", "the field in_use"), *OTHERS]
    assert named_exactly("What is in_use?", rows) == {"it"}


def test_a_code_in_many_documents_is_not_exact() -> None:
    rows = [row(f"r{number}", "see ADR-016") for number in range(4)]
    assert named_exactly("ADR-016", [*rows, *OTHERS]) == set()


def test_a_code_in_many_passages_of_few_documents_is_exact() -> None:
    rows = [row(f"r{number}", "see ADR-016", document="d") for number in range(4)]
    assert named_exactly("adr 16", [*rows, *OTHERS]) == {"r0", "r1", "r2", "r3"}


def test_a_number_or_a_word_in_capitals_is_exact_only_if_words_put_it_first() -> None:
    it = row("it", "the GSAIT office has 1,250 desks")
    for question in ("What is GSAIT?", "1250 desks"):
        assert named_exactly(question, [it, *OTHERS]) == {"it"}
        assert named_exactly(question, [*OTHERS, it]) == set()


def test_a_title_or_file_name_is_exact_if_the_question_is_mostly_that() -> None:
    rows = [
        *OTHERS,
        row("title", "weeks", title="Parental leave in Norway"),
        row("name", "steps", source="s3://b/oslo/people/onboarding-checklist.md"),
    ]
    assert named_exactly("parental leave in norway", rows) == {"title"}
    assert named_exactly("where is the onboarding checklist", rows) == set()
    assert named_exactly("the onboarding checklist", rows) == {"name"}
    assert named_exactly("onboarding-checklist.md", rows) == {"name"}
    assert named_exactly("how many weeks of leave do parents who work in our office in Norway get", rows) == set()


def test_a_document_called_by_a_code_comes_before_those_that_mention_it() -> None:
    rows = [row("other", "ADR-016 settled it"), *OTHERS, row("it", "decided in May", source="s3://b/adr/ADR-016.md")]
    assert named_exactly("ADR-016", rows) == {"it"}
    assert named_exactly("what does ADR-016 say about queues", rows) == {"it"}


def test_a_title_of_many_documents_is_not_exact() -> None:
    rows = [row(f"r{number}", "text", title="Weekly report") for number in range(4)]
    assert named_exactly("weekly report", [*rows, *OTHERS]) == set()


def test_without_a_name_nothing_is_exact() -> None:
    assert named_exactly("who pays for travel", OTHERS) == set()
    assert named_exactly("ADR-016", []) == set()
