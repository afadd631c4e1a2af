"""The answer cache: when two questions are equal, when an entry expires, and what keeps answers separate."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rag_serving.cache.answer_cache import AnswerCache
from rag_serving.cache.entries import CachedAnswer, Entry, ReviewItem, digest_of, question_key, scope_tag
from rag_serving.cache.evidence_record import Evidence
from rag_serving.cache.memory_store import MemoryStore
from rag_serving.cache.normalization import normalise
from rag_serving.cache.redis_store import open_redis
from rag_serving.cache.store import MAX_REVIEW_ITEMS, USE_SECONDS
from rag_serving.errors import SettingsError
from rag_serving.results import Answer

DIGESTS = {"oslo/people": "digest-1", "oslo/finance": "digest-2"}
TTL = 100
REFUSAL_TTL = 10
WORDS = st.lists(st.sampled_from(["when", "is", "the", "office", "open", "today"]), min_size=1, max_size=6)


class Clock:
    """A clock that stands still until it is advanced."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Cache:
    """A synchronous `AnswerCache` over a `MemoryStore`, both on one clock."""

    def __init__(self, *, capacity: int = 100) -> None:
        self.clock = Clock()
        self.store_of_it = MemoryStore(capacity, self.clock)
        self._cache = AnswerCache(self.store_of_it, ttl_seconds=TTL, refusal_ttl_seconds=REFUSAL_TTL, clock=self.clock)

    def store(
        self,
        question: str,
        *,
        text: str = "x",
        tag: str = "tag",
        angle: float = 0.0,
        digests: Mapping[str, str] = DIGESTS,
        evidence: Sequence[Evidence] = (),
        kind: Literal["extract", "none"] = "extract",
    ) -> Entry:
        answer = answered(question, text, kind)
        return asyncio.run(self._cache.keep(tag, "tenant", at(angle), answer, digests, evidence))

    def exact(self, question: str, *, tag: str = "tag") -> Entry | None:
        return asyncio.run(self._cache.exact(tag, question))

    def nearest(self, *, angle: float, tag: str = "tag", floor: float = 0.9) -> list[CachedAnswer]:
        return asyncio.run(self._cache.nearest(tag, at(angle), floor))

    def move(self, entry: Entry, digests: Mapping[str, str], tag: str = "tag") -> Entry:
        return asyncio.run(self._cache.move(tag, entry, entry.answer, digests))


def answered(question: str, text: str = "x", kind: Literal["extract", "none"] = "extract") -> Answer:
    return Answer(question=question, text=text, citations=(), kind=kind, model=None)


def at(degrees: float) -> npt.NDArray[np.float32]:
    """Return a unit vector at this angle."""
    radians = np.radians(degrees)
    return np.array([np.cos(radians), np.sin(radians)], dtype=np.float32)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("When is the office open?", "when is the OFFICE open"),
        ("When is the office open?", "  When is\tthe\n office open ?!  "),
        ("What is the leave in Oslo?", "What is the Leave in Oslo?"),
        ("What is the leave in Oslo?", "WHAT IS THE LEAVE IN OSLO"),
        ("Is “paid leave” kept?", 'is "paid leave" kept'),
        ("What isn’t covered?", "What isn't covered?"),
        ("Which ﬁle is it?", "which file is it"),
        ("退職届は何日前までに提出しますか。", "退職届は何日前までに提出しますか？"),
        ("What does ＳＫＪ－４０９ mean", "what does skj-409 mean?"),
        ("¿Cuándo abre la oficina?", "cuándo abre la oficina"),
        ("Who is Zoe\u0308?", "who is zo\u00eb"),
    ],
)
def test_ordinary_case_whitespace_end_marks_quotes_and_widths_are_normalised(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)
    assert question_key(left) == question_key(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("When is the office open?", "When was the office open?"),
        ("What is plan A?", "What is plan B?"),
        ("May I carry leave over?", "May I not carry leave over?"),
        ("Is it 1.5 metres?", "Is it 15 metres?"),
        ("What is Zoë?", "What is Zoe?"),
        ("What is C++?", "What is C?"),
        ("Is it 10 mW?", "Is it 10 MW?"),
        ("Is it 10 mb?", "Is it 10 MB?"),
        ("Is it 10 kb?", "Is it 10 Kb?"),
        ("HOW LONG DO 10 MB TAKE", "how long do 10 mb take"),
        ("Is CO allowed?", "Is Co allowed?"),
        ("Which US rules apply to us?", "Which us rules apply to us?"),
        ("Is it 10² metres?", "Is it 102 metres?"),
        ("Is it H₂O?", "Is it H2O?"),
        ("Is it ½ day?", "Is it 1/2 day?"),
        ("Wie sind die Maße?", "Wie sind die Masse?"),
        ("Is it <5?", "Is it >5?"),
        ("Is it ±5?", "Is it 5?"),
        ("Is it 5 %?", "Is it 5?"),
        ("What is 5!?", "What is 5?"),
    ],
)
def test_different_words_numbers_signs_symbols_or_accents_make_a_different_question(left: str, right: str) -> None:
    assert question_key(left) != question_key(right)


@given(
    WORDS, st.sampled_from([" ", "  ", "\t", "\n", "\u3000", "\u00a0"]), st.sampled_from(["", "?", "。", " ?!", "？"])
)
def test_a_question_has_the_same_key_whatever_its_spacing_end_mark_and_case(
    words: list[str], space: str, end: str
) -> None:
    words.append("office")  # without a longer word, capitals may be symbols
    assert question_key(space.join(words).upper() + end) == question_key(" ".join(words))


@given(st.text())
def test_every_text_has_a_key_that_is_safe_in_a_query(text: str) -> None:
    key = question_key(text)
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")


def test_a_stored_answer_comes_back_for_the_same_question() -> None:
    cache = Cache()
    cache.store("When is the office open?", text="At nine.")
    found = cache.exact("when is the office open")
    assert found is not None
    assert found.answer.text == "At nine."


def test_an_entry_is_no_exact_hit_if_a_number_or_symbol_differs_under_the_same_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_key(_: str) -> str:
        return "every question"

    monkeypatch.setattr("rag_serving.cache.entries.normalise", one_key)
    cache = Cache()
    cache.store("Is 5 mW safe?")
    assert cache.exact("is 5 mW safe") is not None
    assert cache.exact("Is 5 MW safe?") is None
    assert cache.exact("Is 6 mW safe?") is None


def test_an_entry_expires_after_its_ttl() -> None:
    cache = Cache()
    cache.store("When is the office open?")
    cache.clock.now += TTL - 1
    assert cache.exact("When is the office open?") is not None
    assert cache.nearest(angle=0)
    cache.clock.now += 1
    assert cache.exact("When is the office open?") is None
    assert cache.nearest(angle=0) == []


def test_a_not_found_answer_is_kept_for_the_refusal_ttl_only() -> None:
    cache = Cache()
    cache.store("When is the office open?", kind="none")
    cache.clock.now += REFUSAL_TTL - 1
    assert cache.exact("When is the office open?") is not None
    cache.clock.now += 1
    assert cache.exact("When is the office open?") is None


def test_neither_hits_nor_moves_extend_the_ttl_of_an_entry() -> None:
    cache = Cache()
    cache.store("When is the office open?")
    for step in range(4):
        cache.clock.now += TTL / 4 - 0.1
        found = cache.exact("When is the office open?")
        assert found is not None
        assert cache.nearest(angle=0)
        cache.move(found, {"oslo/people": f"digest {step}"})
    cache.clock.now += 0.5
    assert cache.exact("When is the office open?") is None
    assert cache.nearest(angle=0) == []


def test_a_moved_entry_has_the_new_digests_and_keeps_its_evidence() -> None:
    cache = Cache()
    evidence = [Evidence(chunk_id="c", content_hash="h", score=0.5, cited=True)]
    entry = cache.store("When is the office open?", evidence=evidence)
    cache.move(entry, {"oslo/people": "digest 2"})
    (near,) = cache.nearest(angle=5)
    for found in (cache.exact("When is the office open?"), near.entry):
        assert found is not None
        assert found.digests == {"oslo/people": "digest 2"}
        assert found.evidence == tuple(evidence)


def test_moving_a_dropped_entry_does_not_restore_it() -> None:
    cache = Cache()
    entry = cache.store("When is the office open?")
    assert asyncio.run(cache.store_of_it.drop("tag", entry.key))
    assert not asyncio.run(cache.store_of_it.drop("tag", entry.key))
    cache.move(entry, {})
    assert cache.exact("When is the office open?") is None


@given(st.dictionaries(st.text(), st.text()), st.dictionaries(st.text(), st.text()))
def test_only_equal_contents_have_the_same_digest(left: dict[str, str], right: dict[str, str]) -> None:
    assert (digest_of(left) == digest_of(right)) == (left == right)


def test_an_answer_is_never_served_under_another_tag() -> None:
    cache = Cache()
    cache.store("When is the office open?", tag="one")
    assert cache.exact("When is the office open?", tag="two") is None
    assert cache.nearest(angle=0, tag="two") == []


def test_equal_questions_under_two_tags_are_kept_separately() -> None:
    cache = Cache()
    for tag in ("one", "two"):
        cache.store("When is the office open?", text=tag, tag=tag)
    for tag in ("one", "two"):
        exact = cache.exact("When is the office open?", tag=tag)
        (nearest,) = cache.nearest(angle=0, tag=tag)
        assert exact is not None
        assert exact.answer.text == nearest.entry.answer.text == tag


def test_the_least_used_entry_is_evicted_for_a_new_one() -> None:
    cache = Cache(capacity=2)
    cache.store("first")
    cache.store("second")
    assert cache.exact("first") is not None
    cache.store("third")
    assert cache.exact("second") is None
    assert cache.exact("first") is not None
    assert cache.exact("third") is not None


def test_a_used_entry_outlives_a_newer_unused_one_for_a_time() -> None:
    cache = Cache(capacity=2)
    cache.store("used")
    assert cache.exact("used") is not None
    cache.clock.now += TTL / 2
    cache.store("younger")
    assert USE_SECONDS > TTL / 2
    cache.store("newest")
    assert cache.exact("used") is not None
    assert cache.exact("younger") is None


@given(st.lists(st.sampled_from("abcdefghij"), max_size=40), st.integers(1, 5))
def test_a_store_never_holds_more_than_its_capacity(questions: list[str], capacity: int) -> None:
    cache = Cache(capacity=capacity)
    for question in questions:
        cache.store(question)
    held = [question for question in "abcdefghij" if cache.exact(question) is not None]
    assert len(held) == min(capacity, len(set(questions)))
    assert not questions or questions[-1] in held


def test_a_second_answer_to_a_question_replaces_the_first() -> None:
    cache = Cache()
    cache.store("When is the office open?", text="old")
    cache.clock.now += TTL / 2
    cache.store("when is the office OPEN", text="new")
    cache.clock.now += TTL / 2
    found = cache.exact("When is the office open?")
    assert found is not None
    assert found.answer.text == "new"
    (nearest,) = cache.nearest(angle=0)
    assert nearest.entry.answer.text == "new"


@pytest.mark.parametrize(("angle", "found"), [(0, True), (11, True), (12, False), (90, False), (180, False)])
def test_only_questions_at_or_above_the_similarity_floor_are_returned(angle: float, found: bool) -> None:
    cache = Cache()
    cache.store("When is the office open?")
    assert bool(cache.nearest(angle=angle, floor=0.98)) == found  # the cosine of 11.48 degrees


def test_the_similarity_is_the_cosine_with_the_stored_question() -> None:
    cache = Cache()
    cache.store("When is the office open?")
    (found,) = cache.nearest(angle=8)
    assert found.entry.question == "When is the office open?"
    assert found.similarity == pytest.approx(np.cos(np.radians(8)), abs=1e-6)


def test_the_three_nearest_questions_are_returned_nearest_first() -> None:
    cache = Cache()
    for name, angle in (("far", 10), ("near", 2), ("farther", -11), ("farthest", 20)):
        cache.store(name, angle=angle)
    assert [found.entry.question for found in cache.nearest(angle=0)] == ["near", "far", "farther"]


def test_only_the_newest_review_notes_are_kept() -> None:
    store = MemoryStore(1)

    async def noted() -> list[ReviewItem]:
        for number in range(MAX_REVIEW_ITEMS + 5):
            await store.note(
                ReviewItem(kind="feedback", tenant="t", asked=str(number), cached=None, similarity=None, at=1.0)
            )
        return await store.notes()

    notes = asyncio.run(noted())
    assert len(notes) == MAX_REVIEW_ITEMS
    assert notes[0].asked == str(MAX_REVIEW_ITEMS + 4)


def test_changing_any_part_of_a_tag_changes_the_tag() -> None:
    parts: dict[str, object] = {
        "tenant": "default",
        "shards": ["oslo/people"],
        "fingerprints": ["f1"],
        "model": None,
        "prompt": "1",
        "k": 8,
    }
    others: dict[str, object] = {
        "tenant": "acme",
        "shards": ["oslo/people", "oslo/finance"],
        "fingerprints": ["f2"],
        "model": "gpt",
        "prompt": "2",
        "k": 9,
    }
    tags = {scope_tag(**parts), *(scope_tag(**{**parts, name: other}) for name, other in others.items())}
    assert len(tags) == len(parts) + 1


@given(st.text(), st.text(), st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_different_scopes_never_share_a_tag(left: str, right: str, some: list[str], more: list[str]) -> None:
    assume((left, some) != (right, more))
    assert scope_tag(tenant=left, shards=some) != scope_tag(tenant=right, shards=more)


def test_a_tag_does_not_depend_on_the_order_of_its_parts() -> None:
    assert scope_tag(tenant="a", k=8) == scope_tag(k=8, tenant="a")
    assert set(scope_tag(tenant="naïve | ü", k=8)) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@127.0.0.1:banana/0",
        "redis://:hunter2@127.0.0.1:99999/0",
        "redis://:hunter2/and-more@127.0.0.1:6379/0",
        "redis://:hunter2@127.0.0.1:6379/0?socket_timeout=banana",
        "redis://:hunter2@127.0.0.1:6379/0?no_such_option=1",
        "https://:hunter2@127.0.0.1:6379/0",
        "redis+cluster://:hunter2@",
        "redis+cluster://:hunter2@127.0.0.1:banana",
        "https+cluster://:hunter2@127.0.0.1:6379",
        "hunter2",
    ],
)
def test_a_malformed_redis_url_is_rejected_on_opening_and_not_quoted_in_the_error(url: str) -> None:
    with pytest.raises(SettingsError, match="RAG_REDIS_URL") as caught:
        open_redis(url, timeout=0.2, prefix="rag")
    assert "hunter2" not in str(caught.value)
    assert "banana" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
