"""How requests of OpenAI's protocol are read: names of models, conversations, prompts of chat front ends."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError

from rag_serving.errors import InvalidArgument, UnknownModel, UnknownScope, UnsupportedParameter
from rag_serving.events import Delta, Done, Event, Failed, Restart, finished
from rag_serving.http.openai.answer_fields import cited_places, finish_reason, sources_footer
from rag_serving.http.openai.chat import ChatCompletion
from rag_serving.http.openai.conversation import Conversation, conversation_of
from rag_serving.http.openai.front_end_prompts import is_front_end_prompt, reply_events
from rag_serving.http.openai.models import Model, model_named, models_of
from rag_serving.http.openai.responses import ResponseObject
from rag_serving.http.openai.schemas import ChatRequest, ResponsesRequest
from rag_serving.results import Answer, Citation, ShardInfo, Turn
from rag_serving.validation import MAX_HISTORY_CHARACTERS, MAX_QUESTION_CHARACTERS, MAX_TURNS

RESPONSE_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def shard(region: str, department: str) -> ShardInfo:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    counts = {"documents": 1, "chunks": 1, "quarantined": 0, "version": 1}
    return ShardInfo(region=region, department=department, published_at=now, **counts)


MODELS = models_of([shard("Oslo", "people"), shard("Oslo", "Köln:sources"), shard("oslo", "it"), shard("a", "b")])


def conversation(*messages: dict[str, Any]) -> Conversation:
    return conversation_of(ChatRequest(model="rag-shards", messages=list(messages)).messages)  # type: ignore[arg-type]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


# Models.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rag-shards", Model("rag-shards")),
        ("RAG-SHARDS:Sources", Model("rag-shards:sources", lists_sources=True)),
        ("rag-shards/oslo", Model("rag-shards/oslo", "oslo")),
        ("rag-shards/Oslo", Model("rag-shards/Oslo", "Oslo")),
        ("rag-shards/OSLO/PEOPLE", Model("rag-shards/Oslo/people", "Oslo", "people")),
        ("rag-shards/oslo/it:sources", Model("rag-shards/oslo/it:sources", "oslo", "it", lists_sources=True)),
        ("rag-shards/Oslo/Ko\u0308ln:sources", Model("rag-shards/Oslo/Köln:sources", "Oslo", "Köln:sources")),
        ("rag-shards/oslo/KO\u0308LN:sources", Model("rag-shards/Oslo/Köln:sources", "Oslo", "Köln:sources")),
    ],
)
def test_a_model_is_found_by_its_exact_name_and_else_in_any_case(name: str, expected: Model) -> None:
    assert model_named(name, MODELS) == expected


@pytest.mark.parametrize(
    "name", ["", "rag-shards/", "rag-shards/bergen", "rag-shards/a/people", "gpt-4o", "rag-shards "]
)
def test_other_names_are_no_models(name: str) -> None:
    with pytest.raises(UnknownModel):
        model_named(name, MODELS)


def test_the_scope_of_a_request_narrows_that_of_the_model() -> None:
    model = Model("rag-shards/Oslo", "Oslo")
    assert model.narrow(None, None) == (["Oslo"], None)
    assert model.narrow(["a", "Oslo"], ["it"]) == (["Oslo"], ["it"])
    with pytest.raises(UnknownScope):
        model.narrow(["a"], None)


# Conversations.


def test_turns_are_pairs_of_what_the_user_asked_and_what_the_assistant_answered() -> None:
    found = conversation(
        {"role": "system", "content": "Be brief."},
        assistant("Hello!"),
        user("One?"),
        user("Two?"),
        assistant(None),
        {"role": "tool", "content": "{}"},
        assistant("2 [1]."),
        user("Three?"),
        user(" Four? "),
    )
    assert found == Conversation("Four?", (Turn(question="One?\nTwo?", answer="2 [1]."),))


def test_the_list_of_sources_is_not_part_of_an_earlier_answer() -> None:
    footer = sources_footer(answer("46 [1].", citation("Leave")))
    found = conversation(user("One?"), assistant(f"46 [1].{footer}"), user("Two?"))
    assert found.turns == (Turn(question="One?", answer="46 [1]."),)


def test_of_a_long_conversation_the_last_turns_are_kept_within_the_limits() -> None:
    turns = [message for number in range(900) for message in (user(f"{number}?"), assistant("x" * 5_000))]
    found = conversation(*turns, user("Last?"))
    assert [turn.question for turn in found.turns] == [f"{number}?" for number in range(900 - MAX_TURNS, 900)]
    assert sum(len(turn.question) + len(turn.answer) for turn in found.turns) <= MAX_HISTORY_CHARACTERS


@pytest.mark.parametrize("messages", [[assistant("Hello!")], [user("One?"), assistant("1.")], [user(" ")], [user([])]])
def test_a_conversation_without_a_question_at_its_end_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidArgument):
        conversation(*messages)


def test_only_the_last_message_must_not_have_an_image() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(UnsupportedParameter, match="image_url"):
        conversation(user([{"type": "text", "text": "What is this?"}, image]))
    assert conversation(user([image]), assistant("A cat."), user("Sure?")).question == "Sure?"


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("x" * MAX_QUESTION_CHARACTERS, "x" * MAX_QUESTION_CHARACTERS),
        (f"First?\n\n{'x' * 5_000}\n \nLast?", "First?\n…\nLast?"),
        (f"First?\n\n{'x' * 5_000}", f"First?\n…\n{'x' * 500}"),
        ("a" * 3_000 + "b" * 3_000, f"{'a' * 500}\n…\n{'b' * 500}"),
    ],
    ids=["as long as allowed", "two paragraphs", "one paragraph", "no paragraphs"],
)
def test_a_question_that_is_too_long_is_cut_to_its_first_and_last_paragraph(text: str, question: str) -> None:
    found = conversation(user(text))
    assert (found.question, found.is_too_long) == (question, text != question)


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (ChatRequest, {"messages": [{}] * 100_000}),
        (ChatRequest, {"messages": [user([{}] * 100_000)]}),
        (ChatRequest, {"messages": [user([{}] * 100)] * 1_000}),
        (ChatRequest, {"messages": [user("x")], "modalities": [1] * 100_000}),
        (ResponsesRequest, {"input": [[]] * 100_000}),
        (ResponsesRequest, {"input": [user([{}] * 100)] * 1_000}),
    ],
)
def test_a_list_of_countless_faults_is_refused_at_the_first_one(schema: Any, body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        schema.model_validate({"model": "rag-shards", **body})
    assert raised.value.error_count() < 5


# Prompts of chat front ends.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.", True),
        ("\n### Task:\nSuggest 3-5 relevant follow-up questions or prompts", True),
        ("### Task:\nRespond to the user query using the provided context", False),
        ("What does '### Task:\nGenerate 1-3 broad tags' mean?", False),
        ("Provide a concise title for our travel policy", False),
    ],
)
def test_only_the_known_prompts_of_chat_front_ends_are_recognized(text: str, expected: bool) -> None:
    assert is_front_end_prompt(text) is expected


@pytest.mark.parametrize(
    ("beginning", "reply"),
    [
        ("### Task:\nGenerate a concise, 3-5 word title with an emoji", '{"title": "Is it 8 o\'clock in Oslo"}'),
        ("### Task:\nGenerate 1-3 broad tags categorizing the main themes", '{"tags": []}'),
        ("### Task:\nSuggest 3-5 relevant follow-up questions or prompts", '{"follow_ups": []}'),
        (
            "### Task:\nAnalyze the chat history to determine the necessity of generating search queries",
            '{"queries": []}',
        ),
        ("### Task:\nYou are an autocompletion system. Continue the text", '{"text": ""}'),
        ("Your task is to reflect the speaker's likely facial expression through a fitting emoji.", "💬"),
        ("Provide a concise, 5-word-or-less title for the conversation, using", "Is it 8 o'clock in Oslo"),
    ],
)
def test_without_a_model_a_chat_front_end_gets_a_reply_that_it_can_read(beginning: str, reply: str) -> None:
    question = 'Is it 8 o\'clock "in Oslo" now?'

    class Client:
        async def complete(self, messages: object) -> None:
            return None

    async def text_of_reply() -> str:
        client: Any = Client()
        prompt = f"{beginning}\n<chat_history>\nUSER: {question}\nASSISTANT: Yes.\n</chat_history>"
        last = await finished(reply_events(client, prompt))
        assert isinstance(last, Done)
        return last.answer.text

    assert asyncio.run(text_of_reply()) == reply


# Answers.


def stream_of(protocol: ChatCompletion | ResponseObject, *events: Event) -> list[str]:
    """Return the data of the server-sent events that these events of an answer are sent as."""
    sent = b"".join(part for event in events for part in protocol.streamed(event)).decode()
    return [line.removeprefix("data: ") for line in sent.splitlines() if line.startswith("data: ")]


def test_the_text_of_a_failed_model_is_separated_from_that_of_the_next_one() -> None:
    events = (Delta(text="46"), Restart(), Delta(text="47"))
    chunks = [ChatCompletionChunk.model_validate_json(data) for data in stream_of(ChatCompletion("m"), *events)]
    parts: list[Any] = [RESPONSE_EVENT.validate_json(data) for data in stream_of(ResponseObject("m"), *events)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "46\n\n---\n\n47"
    assert "".join(part.delta for part in parts) == "46\n\n---\n\n47"


def test_an_error_ends_a_stream_in_the_words_of_each_protocol() -> None:
    failed = Failed(error="DeadlineExceeded", message="no answer")
    error, end = stream_of(ChatCompletion("m"), failed)
    assert json.loads(error) == {
        "error": {"type": "DeadlineExceeded", "message": "no answer", "code": None, "param": None}
    }
    assert end == "[DONE]"
    (event,) = stream_of(ResponseObject("m"), failed)
    response = RESPONSE_EVENT.validate_json(event).response
    assert (response.status, response.error.message) == ("failed", "DeadlineExceeded: no answer")


def citation(title: str, **more: Any) -> Citation:
    values = {"number": 1, "source": "s3://b/a.md", "title": title, "heading_path": ("One", "Two"), "page": None}
    rest = {"start": 0, "end": 1, "shard": "oslo/people", "score": None, "doc_id": "d", "chunk_id": "c", "text": "t"}
    return Citation.model_validate({**values, **rest, **more})


def answer(text: str, *citations: Citation, degraded: tuple[str, ...] = ()) -> Answer:
    return Answer(question="q", text=text, citations=citations, kind="generated", model="m", degraded=degraded)


def test_the_list_of_sources_has_title_place_and_address() -> None:
    cited = (citation("Leave", heading_path=("Leave", "One", "Two")), citation("Travel", number=3, page=7))
    assert sources_footer(answer("x", *cited)) == (
        "\n\nSources:\n\n- [1] Leave, One > Two, s3://b/a.md\n- [3] Travel, page 7, s3://b/a.md"
    )
    assert sources_footer(answer("x")) == ""


def test_a_title_cannot_put_a_link_or_an_image_into_the_list_of_sources() -> None:
    footer = sources_footer(answer("x", citation("![a](http://evil.example/a)\n\n<img src=x> `", heading_path=())))
    assert footer.splitlines()[-1] == "- [1] !a(http://evil.example/a) img src=x, s3://b/a.md"


def test_every_citation_in_the_text_has_its_place() -> None:
    places = list(cited_places(answer("a [1] b [1][2]", citation("Leave"))))
    assert [(place["start_index"], place["end_index"]) for place in places] == [(2, 5), (8, 11)]


def test_numbers_in_the_list_of_sources_are_not_citations() -> None:
    cited = answer("a [1]", citation("Leave"))
    listed = cited.model_copy(update={"text": cited.text + sources_footer(cited)})
    assert list(cited_places(listed)) == list(cited_places(cited))


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ((), "stop"),
        (("answer_incomplete:m (silent)",), "stop"),
        (("uncited_answer", "answer_cut_at_most_tokens"), "length"),
        (("answer_filtered",), "content_filter"),
    ],
)
def test_the_finish_reason_is_that_of_the_marks(marks: tuple[str, ...], expected: str) -> None:
    assert finish_reason(answer("x", degraded=marks)) == expected
