"""The trace benchmark: questions made from sentences, drawn traces, document changes and evidence rules."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.trace.documents import Documents
from benchmarks.trace.evidence import EVIDENCE_RULES, Change
from benchmarks.trace.model import plain
from benchmarks.trace.questions import Questions, asked_of, made_from, near_misses
from benchmarks.trace.traffic import drawn, repeat_share, restyled
from rag_serving.cache.evidence_record import Evidence
from rag_serving.cache.normalization import normalise

SENTENCES = (
    "If you lose your badge on the way to work, tell the front desk.",
    "To book a meeting room for more than 2 hours, write to the office team.",
    "You can carry over 5 days of leave into the next year.",
    "Employees must report every accident within 24 hours of it.",
    "We review the salaries of all teams before the summer.",
    "The travel budget of the team is decided by the finance department in Lisbon.",
)
QUESTIONS = (
    "What should I do if I lose my badge on the way to work?",
    "How do I book a meeting room for more than 2 hours?",
    "Can I carry over 5 days of leave into the next year?",
    "Do I have to report every accident within 24 hours of it?",
    "Do we review the salaries of all teams before the summer?",
    "What is the travel budget of the team?",
)


def passages() -> list[tuple[str, str, str]]:
    return [("oslo/people", f"{number}.md", f"# Page\n\n{text}\n") for number, text in enumerate(SENTENCES)]


def made() -> Questions:
    return made_from(passages(), 10, 20, ("Porto", "Osaka"), 1)


@pytest.mark.parametrize(("sentence", "question"), list(zip(SENTENCES, QUESTIONS, strict=True)))
def test_a_sentence_yields_a_question_in_three_wordings(sentence: str, question: str) -> None:
    wordings = asked_of(sentence)
    assert wordings[0] == question
    assert len({normalise(text) for text in wordings}) == 3


@pytest.mark.parametrize("sentence", ["It is late.", "See [the page](x).", "If it is set, click."])
def test_unsuitable_sentences_yield_no_question(sentence: str) -> None:
    assert asked_of(sentence) == []


def test_near_misses_differ_in_meaning_and_not_only_in_form() -> None:
    question = "How do I book a room in Oslo for more than 2 hours?"
    found = near_misses(question, ("Oslo", "Lisbon"), ("Porto",), random.Random(1))
    assert "How do I book a room in Lisbon for more than 2 hours?" in found
    assert "How do I book a room in Oslo for less than 2 hours?" in found
    assert "How do I book a room in Oslo for more than 2 hours in Porto?" in found
    assert normalise(question) not in {normalise(text) for text in found}


def test_no_two_base_questions_share_a_wording() -> None:
    questions = made()
    firsts = [base for base in questions.bases if base.near is None]
    assert {base.key for base in firsts} == set(SENTENCES)
    assert all(base.key is None for base in questions.bases if base.near is not None)
    wordings = Counter(normalise(text) for base in questions.bases for text in base.wordings)
    assert max(wordings.values()) == 1
    assert all(questions.of(text) is base for base in questions.bases for text in base.wordings)


def test_a_sentence_that_occurs_twice_yields_no_question() -> None:
    twice = [*passages(), ("oslo/people", "again.md", SENTENCES[0])]
    assert SENTENCES[0] not in {base.key for base in made_from(twice, 10, 0, ("Porto",), 1).bases}


def test_a_greater_exponent_asks_the_most_popular_questions_more_often() -> None:
    most: list[int] = []
    for exponent in (0.5, 1.5):
        trace = drawn(made(), 2_000, exponent, 1)
        assert len(trace) == 2_000
        assert repeat_share(trace) > 0.9
        of = Counter(asking.base.number if asking.base.near is None else asking.base.near for asking in trace)
        most.append(max(of.values()))
    assert most[0] < most[1]
    assert drawn(made(), 50, 1.0, 1) == drawn(made(), 50, 1.0, 1)


def test_restyling_keeps_the_normalised_question() -> None:
    draw = random.Random(1)
    assert {normalise(restyled("Can I?", draw)) for _ in range(50)} == {normalise("Can I?")}


def test_the_current_text_of_key_sentences_is_known_after_changes(tmp_path: Path) -> None:
    for shard, name, text in passages():
        (tmp_path / shard).mkdir(parents=True, exist_ok=True)
        (tmp_path / shard / name).write_text(text, "utf-8")
    questions = made()
    documents = Documents(tmp_path, questions.bases, 3)
    for _ in range(8):
        count, keys = documents.change(0.3)
        assert count in (1, 2)
        assert keys == ["oslo/people"]
        text = "\n".join(path.read_text("utf-8") for path in documents.paths())
        for base in questions.bases:
            reading = documents.current(base.number)
            assert reading is None or reading in text
    assert any(len(readings) > 1 for readings in documents.readings.values())
    assert documents.gone


def evidence(*names: str, cited: str = "a") -> list[Evidence]:
    return [Evidence(chunk_id=name, content_hash=name, cited=name == cited) for name in names]


@pytest.mark.parametrize(
    ("found", "there", "new", "kept"),
    [
        ("ab", "ab", "", [True, True, True, True, True]),
        ("ac", "abc", "", [False, True, True, True, True]),
        ("ac", "abc", "c", [False, False, True, False, True]),
        ("ac", "ac", "c", [False, False, False, False, True]),
        ("bc", "abc", "", [False, False, False, False, False]),
    ],
)
def test_evidence_rules_decide_whether_an_answer_is_kept(found: str, there: str, new: str, kept: list[bool]) -> None:
    change = Change(evidence(*"ab"), evidence(*found), frozenset(there), frozenset(new))
    assert [rule(change) for rule in EVIDENCE_RULES.values()] == kept


def test_an_answer_is_compared_without_its_citation() -> None:
    assert plain("So it is. [12]") == "So it is."
