"""The answer cache: when two questions are one, when an entry holds, and what keeps answers apart."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rag_serving.cache import (
    AnswerCache,
    Entry,
    Found,
    MemoryStore,
    normalise,
    open_redis,
    question_key,
    same_particulars,
    scope_tag,
)
from rag_serving.errors import SettingsError
from rag_serving.results import Answer

DIGESTS = {"oslo/people": "digest-1", "oslo/finance": "digest-2"}
TTL = 100
WORDS = st.lists(st.sampled_from(["when", "is", "the", "office", "open", "today"]), min_size=1, max_size=6)


class Clock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Cache:
    """An `AnswerCache` over a `MemoryStore`, both on one clock, asked without `await`."""

    def __init__(self, *, capacity: int = 100, similarity: float = 0.98) -> None:
        self.clock = Clock()
        self._cache = AnswerCache(
            MemoryStore(capacity, self.clock), similarity=similarity, ttl_seconds=TTL, clock=self.clock
        )

    def store(
        self,
        question: str,
        *,
        text: str = "x",
        tag: str = "tag",
        angle: float = 0.0,
        digests: Mapping[str, str] = DIGESTS,
    ) -> None:
        asyncio.run(self._cache.store(tag, at(angle), answered(question, text), digests))

    def exact(self, question: str, *, tag: str = "tag", digests: Mapping[str, str] = DIGESTS) -> Entry | None:
        return asyncio.run(self._cache.exact(tag, question, digests))

    def semantic(
        self, question: str, *, angle: float, tag: str = "tag", digests: Mapping[str, str] = DIGESTS
    ) -> Found | None:
        return asyncio.run(self._cache.semantic(tag, question, at(angle), digests))


def answered(question: str, text: str = "x") -> Answer:
    return Answer(question=question, text=text, citations=(), kind="extract", model=None)


def at(degrees: float) -> npt.NDArray[np.float32]:
    """A unit vector; the cosine of two is that of the angle between them."""
    radians = np.radians(degrees)
    return np.array([np.cos(radians), np.sin(radians)], dtype=np.float32)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("When is the office open?", "when is the OFFICE open"),
        ("When is the office open?", "  When is\tthe\n office open ?!  "),
        ("Wie groß ist das Büro?", "WIE GROSS IST DAS BÜRO"),
        ("退職届は何日前までに提出しますか。", "退職届は何日前までに提出しますか？"),
        ("What does ＳＫＪ－４０９ mean", "what does skj-409 mean?"),
        ("¿Cuándo abre la oficina?", "cuándo abre la oficina"),
        ("Who is Zoe\u0308?", "who is zo\u00eb"),
    ],
)
def test_case_space_end_marks_and_compatibility_forms_do_not_make_another_question(left: str, right: str) -> None:
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
    ],
)
def test_other_words_numbers_and_accents_make_another_question(left: str, right: str) -> None:
    assert question_key(left) != question_key(right)


@given(
    WORDS, st.sampled_from([" ", "  ", "\t", "\n", "\u3000", "\u00a0"]), st.sampled_from(["", "?", "。", " ?!", "？"])
)
def test_a_question_has_one_key_however_it_is_spaced_ended_and_capitalised(
    words: list[str], space: str, end: str
) -> None:
    assert question_key(space.join(words).upper() + end) == question_key(" ".join(words))


@given(st.text())
def test_every_text_has_a_key_that_is_safe_in_a_query(text: str) -> None:
    key = question_key(text)
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")


@given(WORDS, st.integers(0, 10**6), st.integers(0, 10**6))
def test_questions_that_differ_in_a_number_never_agree(words: list[str], left: int, right: int) -> None:
    assume(left != right)
    assert not same_particulars(" ".join([*words, str(left)]), " ".join([*words, str(right)]))


@given(WORDS, st.dates(), st.dates())
def test_questions_that_differ_in_a_date_never_agree(words: list[str], left: object, right: object) -> None:
    assume(left != right)
    assert not same_particulars(f"{' '.join(words)} on {left}", f"{' '.join(words)} on {right}")


@given(WORDS, st.sampled_from(["not", "never", "no", "without", "nicht", "don't", "isn’t"]), st.data())
def test_a_negation_more_is_a_difference_wherever_it_stands(
    words: list[str], negation: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(words)))
    assert not same_particulars(" ".join(words), " ".join([*words[:place], negation, *words[place:]]))


@given(WORDS, st.lists(st.integers(0, 99), max_size=4), st.data())
def test_the_order_of_words_and_numbers_is_no_difference(
    words: list[str], numbers: list[int], data: st.DataObject
) -> None:
    terms = [*words, *map(str, numbers)]
    assert same_particulars(" ".join(terms), " ".join(data.draw(st.permutations(terms))))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What changed in November 2023?", "What changed in November 2022?"),
        ("Is it due on 12 March?", "Is it due on 12 April?"),
        ("Is it due on 12 May?", "Is it due on 12 June?"),
        ("Is the office open on Mondays?", "Is the office open on Tuesdays?"),
        ("What does error SKJ-409 mean?", "What does error PER-409 mean?"),
        ("What should I do after TDL-E21?", "What should I do after TDL-F21?"),
        ("Is it between 1 and 2 metres?", "Is it between 1 and 3 metres?"),
        ("Is 2 of 2 enough?", "Is 2 enough?"),
        ("May it be restarted?", "May it not be restarted?"),
        ("Can I work abroad?", "Can't I work abroad?"),
        ("Is leave paid with a note?", "Is leave paid without a note?"),
    ],
)
def test_questions_that_a_vector_hardly_tells_apart_do_not_agree(left: str, right: str) -> None:
    assert not same_particulars(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What was the cause of the outage in November 2023?", "What caused the November 2023 outage?"),
        ("What is error ＳＫＪ-４０９?", "What does error skj-409 mean"),
        ("Why is it not open on Monday?", "Why isn't it open on mondays?"),
        ("How many days of leave?", "How much leave is there?"),
    ],
)
def test_rewordings_that_keep_numbers_and_negation_agree(left: str, right: str) -> None:
    assert same_particulars(left, right)


def test_a_stored_answer_comes_back_for_the_same_question() -> None:
    cache = Cache()
    cache.store("When is the office open?", text="At nine.")
    found = cache.exact("when is the office open")
    assert found is not None
    assert found.answer.text == "At nine."


def test_an_entry_ends_when_its_time_is_over() -> None:
    cache = Cache()
    cache.store("When is the office open?")
    cache.clock.now += TTL - 1
    assert cache.exact("When is the office open?") is not None
    assert cache.semantic("When is the office open?", angle=0) is not None
    cache.clock.now += 1
    assert cache.exact("When is the office open?") is None
    assert cache.semantic("When is the office open?", angle=0) is None


def test_hits_do_not_prolong_an_entry() -> None:
    cache = Cache()
    cache.store("When is the office open?")
    for _ in range(4):
        cache.clock.now += TTL / 4 - 0.1
        assert cache.exact("When is the office open?") is not None
        assert cache.semantic("When is the office open?", angle=0) is not None
    cache.clock.now += 0.5
    assert cache.exact("When is the office open?") is None
    assert cache.semantic("When is the office open?", angle=0) is None


@pytest.mark.parametrize(
    "digests",
    [
        {**DIGESTS, "oslo/people": "digest-9"},
        {**DIGESTS, "oslo/engineering": "digest-3"},
        {"oslo/people": "digest-1"},
        {},
    ],
    ids=["a shard changed", "a shard was added", "a shard was removed", "none is left"],
)
def test_an_entry_made_from_other_contents_is_a_miss(digests: dict[str, str]) -> None:
    cache = Cache()
    cache.store("When is the office open?")
    assert cache.exact("When is the office open?", digests=digests) is None
    assert cache.semantic("When is the office open?", angle=0, digests=digests) is None
    assert cache.exact("When is the office open?") is not None


def test_an_answer_is_never_served_under_another_tag() -> None:
    cache = Cache()
    cache.store("When is the office open?", tag="one")
    assert cache.exact("When is the office open?", tag="two") is None
    assert cache.semantic("When is the office open?", angle=0, tag="two") is None


def test_equal_questions_of_two_tags_live_side_by_side() -> None:
    cache = Cache()
    for tag in ("one", "two"):
        cache.store("When is the office open?", text=tag, tag=tag)
    for tag in ("one", "two"):
        exact = cache.exact("When is the office open?", tag=tag)
        nearest = cache.semantic("When does it open?", angle=0, tag=tag)
        assert exact is not None
        assert nearest is not None
        assert exact.answer.text == nearest.entry.answer.text == tag


def test_the_entry_used_longest_ago_gives_way_to_a_new_one() -> None:
    cache = Cache(capacity=2)
    cache.store("first")
    cache.store("second")
    assert cache.exact("first") is not None
    cache.store("third")
    assert cache.exact("second") is None
    assert cache.exact("first") is not None
    assert cache.exact("third") is not None


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
    nearest = cache.semantic("When does it open?", angle=0)
    assert nearest is not None
    assert nearest.entry.answer.text == "new"


@pytest.mark.parametrize(("angle", "served"), [(0, True), (11, True), (12, False), (90, False), (180, False)])
def test_only_questions_at_least_as_similar_as_the_threshold_share_an_answer(angle: float, served: bool) -> None:
    cache = Cache(similarity=0.98)  # the cosine of 11.48 degrees
    cache.store("When is the office open?")
    found = cache.semantic("At what time does the office open?", angle=angle)
    assert (found is not None) == served


def test_the_similarity_of_a_semantic_hit_is_the_cosine_with_the_question_it_was_stored_for() -> None:
    cache = Cache()
    cache.store("When is the office open?")
    found = cache.semantic("At what time does the office open?", angle=8)
    assert found is not None
    assert found.entry.question == "When is the office open?"
    assert found.similarity == pytest.approx(np.cos(np.radians(8)), abs=1e-6)


def test_the_nearest_of_several_questions_is_served() -> None:
    cache = Cache()
    cache.store("far", angle=10, text="far")
    cache.store("near", angle=2, text="near")
    cache.store("farther", angle=-11, text="farther")
    found = cache.semantic("asked", angle=0)
    assert found is not None
    assert found.entry.answer.text == "near"


def test_a_nearer_question_about_another_year_gives_way_to_one_about_the_same() -> None:
    cache = Cache()
    cache.store("What changed in 2022?", angle=1, text="2022")
    cache.store("What was new in 2023?", angle=5, text="2023")
    found = cache.semantic("What changed in 2023?", angle=0)
    assert found is not None
    assert found.entry.answer.text == "2023"


def test_the_parts_of_a_tag_each_make_another_tag() -> None:
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
def test_no_two_scopes_run_together_into_one_tag(left: str, right: str, some: list[str], more: list[str]) -> None:
    assume((left, some) != (right, more))
    assert scope_tag(tenant=left, shards=some) != scope_tag(tenant=right, shards=more)


def test_a_tag_is_the_same_in_whatever_order_its_parts_are_named() -> None:
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
        "hunter2",
    ],
)
def test_a_malformed_redis_url_is_refused_at_once_and_not_quoted(url: str) -> None:
    with pytest.raises(SettingsError, match="RAG_REDIS_URL") as caught:
        open_redis(url, timeout=0.2, prefix="rag")
    assert "hunter2" not in str(caught.value)
    assert "banana" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
