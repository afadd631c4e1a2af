"""Words of passages and questions: what one writes differently finds the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_serving.lake.search.words import LONGEST, OWN_SCRIPT, indexed_words, question_words


def finds(question: str, passage: str, language: str = "en") -> bool:
    """Return whether all that the question's words name is in the passage."""
    stored = set(indexed_words([passage], language).split())
    asked = [set(question_words(word, (language,)).words) for word in question.split()]
    joined = set(question_words(question, (language,)).joined)
    return bool(joined & stored) or all(words & stored for words in asked)


@pytest.mark.parametrize(
    ("question", "passage"),
    [
        ("apply secrets", "call apply_secrets() first"),
        ("apply_secrets", "call apply_secrets() first"),
        ("get user profile", "getUserProfileById(7)"),
        ("getUserProfileById", "client.getUserProfileById(7)"),
        ("adr 16", "see ADR-016 for why"),
        ("ADR016", "see ADR-016 for why"),
        ("ADR-16", "see adr_016 for why"),
        ("1,250", "the limit is $1,250.00 a year"),
        ("$1,250.00", "the limit is 1250 a year"),
        ("1.250,00", "the limit is 1,250 a year"),
        ("CI-108", "badge SOC2/CI-108"),
        ("lookup_content_id", "Services.api.lookup_content_id(x)"),
        ("e-mail", "send an email"),
        ("email", "send an e-mail"),
        ("onboarding-checklist.md", "onboarding-checklist.md"),
        ("onboarding checklist", "onboarding-checklist.md"),
        ("naïve", "naive"),
        ("v1.2.3", "released as v1.2.3"),
        ("x" * 60, "x" * 60),
        ("HTTP 2", "speaks http2"),
    ],
)
def test_a_name_is_found_however_it_is_written(question: str, passage: str) -> None:
    assert finds(question, passage)


@pytest.mark.parametrize(
    ("question", "passage"),
    [
        ("IT", "it was late"),
        ("The Who", "the one who asked"),
        ("C++", "the C language"),
        ("C#", "the C++ language"),
        ("US", "tell us"),
        ("v1.2.3", "v12.3"),
    ],
)
def test_a_name_is_not_found_in_other_words(question: str, passage: str) -> None:
    names = question_words(question, ("en",))
    wanted = set(names.names) | set(names.joined)
    assert wanted
    assert not wanted & set(indexed_words([passage], "en").split())


def test_words_are_stemmed_by_the_language_of_the_passage() -> None:
    assert finds("договоры", "условия договора", "ru")
    assert finds("Überstunde", "alle Überstunden", "de")
    assert not finds("договоры", "условия договора", "en")


@pytest.mark.parametrize(
    ("question", "passage"),
    [
        ("育児休暇", "社員は育児休暇を取得できます"),
        ("ลาคลอด", "พนักงานมีสิทธิลาคลอด"),
        ("नीतियों", "नई नीतियों के अनुसार"),
        ("العقود", "شروط العقود الجديدة"),
    ],
)
def test_words_of_any_script_are_found(question: str, passage: str) -> None:
    assert finds(question, passage, "")


def test_a_question_in_capitals_names_nothing_by_its_capitals() -> None:
    assert question_words("WHO PAYS FOR IT SUPPORT", ("en",)).names == ()
    assert question_words("WHO PAYS FOR ADR-016 SUPPORT", ("en",)).names == ("adr16",)


def test_the_letters_of_a_hash_are_neither_stored_nor_asked() -> None:
    assert indexed_words(["e8f5e9c1"], "en") == "e8f5e9c1"
    assert question_words("e8f5e9c1", ("en",)).words == ("e8f5e9c1",)


@given(st.text(max_size=300), st.sampled_from(["en", "de", "ru", "ar", "hi", "ja", "", "xx"]))
def test_any_text_becomes_words_without_spaces_and_finds_itself(text: str, language: str) -> None:
    stored = indexed_words([text], language).split(" ")
    assert all(len(word) <= LONGEST and not any(map(str.isspace, word)) for word in stored)
    asked = question_words(text, (language,) if language else ())
    if language in ("en", ""):
        english = set(indexed_words([text], "en").split())
        assert {word for word in asked.words if word not in asked.joined} <= english


@pytest.mark.parametrize("language", sorted(OWN_SCRIPT))
def test_a_language_with_letters_of_its_own_adds_no_stems_to_latin_words(language: str) -> None:
    words = "Reisekosten employees running policies flies happily nationalities"
    assert question_words(words, [language]).words == tuple(words.lower().split())
