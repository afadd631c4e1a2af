"""Every kind of model answers, or fails in words that help: what they refuse, how they end, how long they are silent.

The real litellm calls a stand-in with OpenAI's protocol.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rag_serving import litellm_calls
from rag_serving.answering.generation import LanguageModel, generate
from rag_serving.answering.prompts import NOT_FOUND, answer_messages
from rag_serving.errors import ModelUnavailable
from rag_serving.events import Delta, Event, Restart
from rag_serving.results import Answer
from tests.answers import HITS
from tests.fake_llm import StandIn

pytestmark = pytest.mark.filterwarnings("ignore")  # from litellm and its providers

QUESTION = "What is the per-diem in Oslo?"
GOOD = ("It is NOK 780", " per day [1].")
ANSWER = "It is NOK 780 per day [1]."


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what other tests' models refused, and do not wait between retries."""
    monkeypatch.setattr(litellm_calls, "_adapted", {})
    monkeypatch.setattr(litellm_calls, "FIRST_PAUSE", 0.01)
    litellm_calls.import_litellm()  # takes seconds, which count as silence


@pytest.fixture
def stand_in(stand_in_here: StandIn) -> StandIn:
    stand_in_here.words = GOOD
    return stand_in_here


def language_model(name: str = "openai/stand-in", **values: Any) -> LanguageModel:
    return LanguageModel(name, **{"timeout": 20, "retries": 2, "max_tokens": 100, **values})


def answered(model: LanguageModel | None = None, *, seconds: float | None = None) -> tuple[Answer, list[Event]]:
    events: list[Event] = []

    async def ask() -> Answer:
        until = None if seconds is None else asyncio.get_running_loop().time() + seconds
        return await generate(model or language_model(), QUESTION, HITS, events.append, until=until)

    return asyncio.run(ask()), events


def streamed(events: list[Event]) -> str:
    """Return the text that a reader of the stream sees."""
    text = ""
    for event in events:
        if isinstance(event, Restart):
            text = ""
        elif isinstance(event, Delta):
            text += event.text
    return text


@pytest.mark.parametrize("refused", ["temperature", "max_tokens", "stream_options", "system", "stream"])
def test_a_parameter_that_the_model_refuses_is_left_out_of_this_and_later_calls(
    stand_in: StandIn, refused: str
) -> None:
    stand_in.refuses = (refused,)
    assert answered()[0].text == ANSWER
    calls = len(stand_in.requests)
    assert answered()[0].text == ANSWER
    assert len(stand_in.requests) == calls + 1


def test_a_model_that_refuses_everything_that_can_be_left_out_still_answers(stand_in: StandIn) -> None:
    stand_in.refuses = ("temperature", "max_tokens", "max_completion_tokens", "stream_options", "system", "stream")
    answer, _ = answered()
    assert (answer.text, answer.degraded) == (ANSWER, ())
    (message,) = stand_in.requests[-1]["messages"]
    assert "numbered sources" in message["content"]
    assert QUESTION in message["content"]


@pytest.mark.parametrize("name", ["openai/gpt-5", "openai/o3-mini"])
def test_models_that_reason_are_called_without_what_they_refuse(stand_in: StandIn, name: str) -> None:
    answer, _ = answered(language_model(name))
    assert answer.text == ANSWER
    assert "temperature" not in stand_in.requests[-1]
    assert stand_in.requests[-1]["max_completion_tokens"] == 100


@pytest.mark.parametrize(
    "words",
    [
        ("<think>The user asks [2]", " for it.</think>\n\n", *GOOD),
        ("The user asks [2] for it, so", " I look.\n</th", "ink>", *GOOD),
    ],
)
def test_thoughts_are_neither_shown_nor_cited(stand_in: StandIn, words: tuple[str, ...]) -> None:
    stand_in.words = words
    answer, events = answered()
    assert answer.text == streamed(events) == ANSWER
    assert [citation.number for citation in answer.citations] == [1]


def test_reasoning_content_is_not_shown_and_counts_as_a_sign_of_life(stand_in: StandIn) -> None:
    stand_in.reasoning, stand_in.pause = ("I think", " about", " it", " more"), 0.6
    answer, events = answered(language_model(timeout=2))
    assert answer.text == streamed(events) == ANSWER


def test_a_model_that_only_reasons_fails_with_the_setting_to_raise(stand_in: StandIn) -> None:
    stand_in.reasoning, stand_in.words, stand_in.finish = ("I think",), (), "length"
    with pytest.raises(ModelUnavailable, match="RAG_LLM_MAX_TOKENS"):
        answered()


@pytest.mark.parametrize("tells_usage", [True, False])
def test_an_answer_without_a_finish_reason_is_accepted_if_its_stream_ended_cleanly(
    stand_in: StandIn, tells_usage: bool
) -> None:
    stand_in.finish, stand_in.tells_usage = None, tells_usage
    answer, _ = answered()
    assert (answer.text, answer.degraded) == (ANSWER, ())


@pytest.mark.parametrize(
    ("finish", "mark"), [("length", "answer_cut_at_most_tokens"), ("content_filter", "answer_filtered")]
)
def test_an_answer_that_was_ended_is_marked(stand_in: StandIn, finish: str, mark: str) -> None:
    stand_in.finish = finish
    answer, _ = answered()
    assert answer.degraded == (mark,)
    assert answer.notes[0].startswith("the ")


@pytest.mark.parametrize("fault", ["cut", "broken"])
def test_an_answer_that_breaks_off_is_replaced_by_that_of_the_fallback(stand_in: StandIn, fault: str) -> None:
    stand_in.faults = {"first": fault}
    answer, events = answered(language_model("openai/first", fallbacks=("openai/second",)))
    assert (answer.text, answer.model, answer.degraded) == (ANSWER, "openai/second", ())
    assert streamed(events) == answer.text


@pytest.mark.parametrize("fault", ["cut", "broken"])
def test_what_came_is_kept_and_marked_if_no_model_completes_an_answer(stand_in: StandIn, fault: str) -> None:
    stand_in.words = ("The per-diem in Oslo is NOK 780 per day [1], and in Lisbon", " it is less.")
    stand_in.faults = {"stand-in": fault}
    answer, events = answered()
    assert answer.text == streamed(events) == stand_in.words[0]
    assert [mark.partition(":")[0] for mark in answer.degraded] == ["answer_incomplete"]


def test_a_few_words_that_came_before_the_model_failed_are_voided(stand_in: StandIn) -> None:
    stand_in.faults = {"stand-in": "cut"}
    events: list[Event] = []
    with pytest.raises(ModelUnavailable):
        asyncio.run(generate(language_model(), QUESTION, HITS, events.append))
    assert events
    assert streamed(events) == ""


def test_a_slow_but_steady_model_is_waited_for(stand_in: StandIn) -> None:
    stand_in.words, stand_in.pause = ("It", " is", " NOK", " 780", " [1]."), 0.6
    assert answered(language_model(timeout=2))[0].text == "It is NOK 780 [1]."


def test_a_silent_model_is_given_up_after_its_timeout(stand_in: StandIn) -> None:
    stand_in.faults = {"stand-in": "hangs"}
    with pytest.raises(ModelUnavailable, match=r"silent for 0.5 s"):
        answered(language_model(timeout=0.5))


def test_at_the_deadline_what_came_is_kept_and_marked(stand_in: StandIn) -> None:
    stand_in.words, stand_in.pause = ("The per-diem in Oslo is NOK 780 per day [1]. ", *(["And"] * 40)), 0.2
    answer, _ = answered(seconds=3)
    assert answer.text.startswith("The per-diem in Oslo is NOK 780 per day [1]. And")
    assert [mark.partition(":")[0] for mark in answer.degraded] == ["answer_incomplete"]


def test_a_refusal_in_any_language_is_recognized_by_its_marker(stand_in: StandIn) -> None:
    stand_in.words = ("NO_", "ANSWER ", "Die Quellen nennen keinen Satz für Peru.")
    answer, events = answered()
    assert answer.text == streamed(events) == "Die Quellen nennen keinen Satz für Peru."
    assert (answer.kind, answer.citations, answer.degraded) == ("none", (), ())
    stand_in.words = ("NO_ANSWER",)
    assert answered()[0].text == NOT_FOUND


def test_an_answer_without_citations_is_marked_and_cites_nothing(stand_in: StandIn) -> None:
    stand_in.words = ("It is NOK 780.",)
    answer, _ = answered()
    assert (answer.citations, answer.degraded) == ((), ("uncited_answer",))


@pytest.mark.parametrize(
    ("status", "name"), [(400, "BadRequestError"), (401, "AuthenticationError"), (403, r"\w+"), (404, "NotFoundError")]
)
def test_a_call_that_cannot_succeed_is_not_repeated_and_the_providers_words_are_told(
    stand_in: StandIn, status: int, name: str
) -> None:
    stand_in.status, stand_in.message = status, "The model does not exist, or you may not use it"
    with pytest.raises(ModelUnavailable, match=rf"{name}: The model does not exist, or you may not use it"):
        answered()
    assert len(stand_in.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_call_that_may_succeed_later_is_repeated(stand_in: StandIn, status: int) -> None:
    stand_in.status = status
    with pytest.raises(ModelUnavailable):
        answered()
    assert len(stand_in.requests) == 3


def test_a_used_up_quota_is_not_asked_again(stand_in: StandIn) -> None:
    stand_in.status, stand_in.message = 429, "You exceeded your current quota, please check your plan and billing"
    with pytest.raises(ModelUnavailable, match="quota"):
        answered()
    assert len(stand_in.requests) == 1


def test_a_prompt_over_the_models_context_is_sent_again_with_fewer_passages(stand_in: StandIn) -> None:
    stand_in.room = sum(len(message["content"]) for message in answer_messages(QUESTION, HITS[:1]))
    answer, _ = answered()
    assert answer.text == ANSWER
    assert answer.degraded == ("fewer_passages:1",)
    assert "Hotels are booked" not in stand_in.requests[-1]["messages"][-1]["content"]


def test_the_providers_message_is_told_without_the_question_or_a_key(stand_in: StandIn) -> None:
    stand_in.status, stand_in.message = 400, f"Your input {QUESTION} is not allowed"
    with pytest.raises(ModelUnavailable) as caught:
        answered()
    assert "per-diem" not in str(caught.value)
    stand_in.status, stand_in.message = 401, "Incorrect API key provided: sk-proj-abcdefgh12345678."
    with pytest.raises(ModelUnavailable, match="Incorrect API key provided") as caught:
        answered()
    assert "abcdefgh" not in str(caught.value)
