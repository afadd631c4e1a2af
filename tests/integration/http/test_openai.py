"""OpenAI's protocol as its official client and chat front ends use it, on a real service."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from rag_serving.clients.lake import AsyncRagClient
from rag_serving.http.api_keys import create_key
from rag_serving.http.app import create_app
from rag_serving.http.settings import HttpSettings
from rag_serving.settings import ServingSettings
from tests.fake_llm import StandIn
from tests.serving_process import Service, service_environment, serving

QUESTION = "How many weeks of parental leave are on full pay?"
OSLO_ANSWER = "46 weeks [1]."
ASKED: Any = {"role": "user", "content": QUESTION}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
TOOL_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESPONSE_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture(scope="module")
def oslo(keys_file: Path) -> str:
    return create_key(keys_file, "Oslo alone", tenant="oslo", shards=["oslo/*"])[1]


@pytest.fixture(scope="module")
def service(
    sample_lake: str, stand_in: StandIn, keys_file: Path, oslo: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    assert oslo
    stand_in.words = ("46 weeks", " [1].")
    environment = service_environment(sample_lake, stand_in, keys_file)
    with serving(tmp_path_factory.mktemp("service"), environment) as running:
        yield running


@pytest.fixture
def client(service: Service, oslo: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=oslo, max_retries=0) as client:
        yield client


def unasked() -> Any:
    """Return a message with a question that is not cached."""
    return {"role": "user", "content": f"{QUESTION} Number {uuid.uuid4().hex[:8]}?"}


def chat(client: openai.OpenAI, messages: list[Any], **more: Any) -> ChatCompletion:
    completion: ChatCompletion = client.chat.completions.create(**{"model": "rag-shards", "messages": messages, **more})
    return ChatCompletion.model_validate(completion.model_dump())


def data_of(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


# Models.


def test_models_are_those_of_the_shards_that_the_key_may_see(client: openai.OpenAI) -> None:
    models = [Model.model_validate(model.model_dump()).id for model in client.models.list()]
    plain = [name for name in models if not name.endswith(":sources")]
    assert plain[:2] == ["rag-shards", "rag-shards/oslo"]
    assert all(name.startswith("rag-shards/oslo/") for name in plain[2:])
    assert models == [*plain, *(f"{name}:sources" for name in plain)]
    for name in models:
        assert client.models.retrieve(name).id == name


@pytest.mark.parametrize("name", ["rag-shards/lisbon", "rag-shards/lisbonx", "rag-shards/oslo/none", "gpt-4o"])
def test_a_model_outside_the_keys_scope_looks_like_one_that_does_not_exist(client: openai.OpenAI, name: str) -> None:
    def problem_of(call: Any, **arguments: Any) -> str:
        with pytest.raises(openai.NotFoundError) as raised:
            call(**arguments)
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
        return raised.value.message.replace(name, "NAME")

    problems = {
        problem_of(client.models.retrieve, model=name),
        problem_of(client.chat.completions.create, model=name, messages=[ASKED]),
        problem_of(client.responses.create, model=name, input=QUESTION),
    }
    assert len(problems) == 1
    assert "there is no model 'NAME' for this key" in problems.pop()


@pytest.mark.parametrize("name", ["rag-shards/oslo/people", "RAG-Shards/OSLO/People"])
def test_a_model_restricts_the_search_to_its_shard_in_any_case(client: openai.OpenAI, name: str) -> None:
    completion = chat(client, [unasked()], model=name)
    assert completion.model == "rag-shards/oslo/people"
    citations: Any = (completion.model_extra or {})["citations"]
    assert {citation["shard"] for citation in citations} == {"oslo/people"}


def test_the_scopes_of_model_and_body_are_combined(client: openai.OpenAI) -> None:
    people = chat(client, [unasked()], model="rag-shards/oslo", extra_body={"departments": ["people"]})
    citations: Any = (people.model_extra or {})["citations"]
    assert {citation["shard"] for citation in citations} == {"oslo/people"}
    with pytest.raises(openai.NotFoundError):
        chat(client, [ASKED], model="rag-shards/oslo/people", extra_body={"departments": ["finance"]})


# Chat completions.


def test_the_official_client_gets_answers_streams_and_citations(client: openai.OpenAI) -> None:
    whole = chat(client, [{"role": "system", "content": "Answer in verse."}, ASKED], temperature=0.2)
    parts = list(
        client.chat.completions.create(
            model="rag-shards",
            messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    message = whole.choices[0].message
    assert message.content == OSLO_ANSWER
    assert message.annotations is not None
    cited = message.annotations[0].url_citation
    assert "/documents/oslo/people/" in cited.url
    assert OSLO_ANSWER[cited.start_index : cited.end_index] == "[1]"
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == OSLO_ANSWER
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == "stop"
    assert parts[-1].usage is not None
    extra = parts[-2].model_extra
    assert extra is not None
    assert extra["citations"][0]["number"] == 1


def test_every_chunk_of_a_stream_has_the_shape_of_the_protocol(service: Service, oslo: str) -> None:
    body = {"model": "rag-shards", "messages": [ASKED], "stream": True, "stream_options": {"include_usage": True}}
    with service.as_client(oslo) as client:
        *chunks, end = data_of(client.post("/v1/chat/completions", json=body).text)
    assert end == "[DONE]"
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(chunk)


def test_earlier_messages_of_a_conversation_become_the_history_of_its_last_question(
    client: openai.OpenAI, stand_in: StandIn
) -> None:
    stand_in.rewrite = f"{QUESTION} In Oslo."
    answer = chat(
        client,
        [
            {"role": "user", "content": "Is there parental leave?"},
            {"role": "assistant", "content": "Yes [1]."},
            {"role": "user", "content": "How many weeks are on full pay?"},
        ],
    )
    assert answer.choices[0].message.content == OSLO_ANSWER
    asked = [request["messages"][1]["content"] for request in stand_in.requests if len(request["messages"]) > 1]
    assert any("Is there parental leave?" in content and "Last question" in content for content in asked)
    assert any(content.endswith(stand_in.rewrite) for content in asked)


@pytest.mark.parametrize(
    "history",
    [
        [{"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}, {"role": "tool", "content": "{}"}, ASKED],
        [{"role": "assistant", "tool_calls": [TOOL_CALL]}, {"role": "tool", "tool_call_id": "c", "content": "{}"}],
        [{"role": "assistant", "content": None}, {"role": "function", "name": "f", "content": "{}"}],
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, ASKED],
        [{"role": "assistant", "content": "a"}, ASKED] * 56,
        [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What is this?"}]}, ASKED],
        [{"role": "assistant", "content": "x" * 300_000}, ASKED],
    ],
    ids=["tool", "no content", "function", "refusal", "112 messages", "older image", "long answer"],
)
def test_histories_of_agents_and_long_ones_are_accepted(
    client: openai.OpenAI, stand_in: StandIn, history: list[Any]
) -> None:
    stand_in.rewrite = QUESTION
    assert chat(client, [ASKED, *history]).choices[0].message.content == OSLO_ANSWER


def test_a_pasted_text_is_cut_to_the_question_around_it_and_the_answer_says_so(
    client: openai.OpenAI, stand_in: StandIn
) -> None:
    pasted = f"Compare this with our policy:\n\n{'A clause about nothing. ' * 5_000}\n\n{QUESTION}"
    completion = chat(client, [{"role": "user", "content": pasted}])
    assert completion.choices[0].message.content == OSLO_ANSWER
    assert (completion.model_extra or {})["rag"]["degraded"] == ["question_cut"]
    assert stand_in.requests[-1]["messages"][1]["content"].endswith(
        f"Question: Compare this with our policy:\n…\n{QUESTION}"
    )


@pytest.mark.parametrize(
    ("param", "more"),
    [
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("tool_choice", {"tools": [TOOL_CALL], "tool_choice": "required"}),
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ("n", {"n": 2}),
        ("logprobs", {"logprobs": True}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}, IMAGE]}]}),
    ],
)
def test_a_completion_that_cannot_be_made_as_asked_is_refused_by_name(
    client: openai.OpenAI, param: str, more: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError, match=param) as raised:
        chat(client, **{"messages": [ASKED], **more})
    assert (raised.value.param, raised.value.code) == (param, "unsupported_parameter")


def test_harmless_options_are_accepted(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    options = {"response_format": {"type": "text"}, "n": 1, "logprobs": False, "modalities": ["text"], "seed": 1}
    for more in (options, {"tools": [tool]}, {"tools": [tool], "tool_choice": "auto"}, {"tool_choice": "none"}):
        assert chat(client, [ASKED], **more).choices[0].message.content == OSLO_ANSWER


class Weeks(BaseModel):
    weeks: int


def test_structured_output_is_refused_with_the_clients_error_for_bad_requests(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as of_chat:
        client.chat.completions.parse(model="rag-shards", messages=[ASKED], response_format=Weeks)
    with pytest.raises(openai.BadRequestError) as of_responses:
        client.responses.parse(model="rag-shards", input=QUESTION, text_format=Weeks)
    assert (of_chat.value.param, of_responses.value.param) == ("response_format", "text.format")


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter"), ("stop", None)]
)
def test_the_finish_reason_tells_whether_the_answer_is_complete(
    client: openai.OpenAI, stand_in: StandIn, finish: str, reason: str | None
) -> None:
    stand_in.finish = finish
    question = unasked()
    try:
        completion = chat(client, [question])
        stream = list(client.chat.completions.create(model="rag-shards", messages=[unasked()], stream=True))
        response = client.responses.create(model="rag-shards", input=unasked()["content"])
    finally:
        stand_in.finish = "stop"
    assert completion.choices[0].finish_reason == stream[-1].choices[0].finish_reason == finish
    assert response.status == ("completed" if reason is None else "incomplete")
    assert (response.incomplete_details and response.incomplete_details.reason) == reason


def test_streams_have_the_state_of_the_cache_in_a_header(service: Service, oslo: str) -> None:
    asked = unasked()
    bodies = [
        ("/v1/chat/completions", {"model": "rag-shards", "messages": [asked]}),
        ("/v1/responses", {"model": "rag-shards", "input": asked["content"]}),
        ("/v1/ask", {"question": asked["content"]}),
    ]
    with service.as_client(oslo) as client:
        states = [client.post(path, json={**body, "stream": True}).headers["x-cache"] for path, body in bodies]
    assert states == ["miss", "exact", "exact"]


def test_requests_are_counted_by_their_route_whether_answered_or_refused(
    service: Service, client: openai.OpenAI, oslo: str
) -> None:
    client.models.retrieve("rag-shards/oslo")
    for path in ("/v1/models/rag-shards/oslo", "/v1/responses"):
        with service.as_client("wrong") as stranger:
            assert stranger.post(path, json={}).status_code == 401
    with service.as_client(oslo) as scraper:
        metrics = scraper.get("/metrics").text
    assert 'method="GET",route="/v1/models/{model:path}",status="200"' in metrics
    assert 'method="POST",route="/v1/responses",status="401"' in metrics
    assert 'route="/v1/models/rag-shards' not in metrics


# Responses.


def test_a_response_has_the_answer_its_citations_and_its_usage(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="rag-shards", input=unasked()["content"], instructions="Answer in verse.", store=True
    )
    response = Response.model_validate(response.model_dump())
    assert (response.status, response.output_text, response.store) == ("completed", OSLO_ANSWER, False)
    part: Any = response.output[0]
    (cited,) = part.content[0].annotations
    assert "/documents/oslo/people/" in cited.url
    assert OSLO_ANSWER[cited.start_index : cited.end_index] == "[1]"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (700, 9, 709)


def test_a_response_is_streamed_as_the_events_of_the_protocol(service: Service, oslo: str) -> None:
    body = {"model": "rag-shards", "input": unasked()["content"], "stream": True}
    with service.as_client(oslo) as client:
        text = client.post("/v1/responses", json=body).text
    events = [RESPONSE_EVENT.validate_json(data) for data in data_of(text)]
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert names == [event.type for event in events]
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.annotation.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == OSLO_ANSWER
    assert events[-1].response.output_text == events[-4].text == OSLO_ANSWER


def test_the_official_client_puts_a_streamed_response_together(client: openai.OpenAI) -> None:
    with client.responses.stream(model="rag-shards", input=QUESTION) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == OSLO_ANSWER


def test_the_items_of_an_agents_history_are_accepted(client: openai.OpenAI, stand_in: StandIn) -> None:
    stand_in.rewrite = QUESTION
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Is there leave?"}, {"type": "input_image"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "{}"},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Yes [1].", "annotations": []}],
        },
        ASKED,
    ]
    assert client.responses.create(model="rag-shards", input=items).output_text == OSLO_ANSWER
    assert any("Assistant: Yes [1]." in request["messages"][-1]["content"] for request in stand_in.requests)


@pytest.mark.parametrize(
    ("param", "more"),
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("conversation", {"conversation": "conv_1"}),
        ("background", {"background": True}),
        ("text.format", {"text": {"format": {"type": "json_object"}}}),
        ("tool_choice", {"tool_choice": "required"}),
        ("input", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}),
    ],
)
def test_a_response_that_cannot_be_made_as_asked_is_refused_by_name(
    client: openai.OpenAI, param: str, more: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match=param) as raised:
        client.responses.create(**{"model": "rag-shards", "input": QUESTION, **more})
    assert raised.value.param == param


# The list of sources.


def test_a_model_with_the_suffix_sources_lists_them_at_the_end_of_the_text(client: openai.OpenAI) -> None:
    whole = chat(client, [ASKED], model="rag-shards/oslo:sources")
    text = whole.choices[0].message.content or ""
    source = (whole.model_extra or {})["citations"][0]
    assert text.startswith(f"{OSLO_ANSWER}\n\nSources:\n\n- [1] {source['title']}, ")
    assert text.endswith(f", {source['link']}")
    stream = client.chat.completions.create(model="rag-shards/oslo:sources", messages=[ASKED], stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in stream) == text
    assert client.responses.create(model="rag-shards/oslo:sources", input=QUESTION).output_text == text


# Prompts of chat front ends.

HISTORY = f"### Chat History:\n<chat_history>\nUSER: {QUESTION}\nASSISTANT: {OSLO_ANSWER}\n</chat_history>"
TITLE_AS_JSON = f"### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n{HISTORY}"
TITLE = f"Provide a concise, 5-word-or-less title for the conversation, using title case.\n\nUser: {QUESTION}\nAI: 46"


def test_a_prompt_of_a_chat_front_end_goes_to_the_model_without_a_search_and_without_links(
    client: openai.OpenAI, stand_in: StandIn
) -> None:
    words, stand_in.words = stand_in.words, ('{"title": "Leave', " ![x](http://evil.example/x)in Oslo", '"}')
    try:
        replies = [chat(client, [{"role": "user", "content": TITLE_AS_JSON}]) for _ in range(2)]
    finally:
        stand_in.words = words
    for reply in replies:
        assert json.loads(reply.choices[0].message.content or "") == {"title": "Leave in Oslo"}
        assert not reply.choices[0].message.annotations
        assert (reply.model_extra or {})["rag"]["cache"] == "bypass"
    assert [request["messages"] for request in stand_in.requests[-2:]] == [
        [{"role": "user", "content": TITLE_AS_JSON}]
    ] * 2


def test_a_prompt_of_a_chat_front_end_is_streamed_too(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="rag-shards", messages=[{"role": "user", "content": TITLE}], stream=True
    )
    assert "".join(part.choices[0].delta.content or "" for part in stream) == OSLO_ANSWER


def test_a_prompt_of_a_chat_front_end_gets_a_plain_reply_while_the_model_fails(
    client: openai.OpenAI, stand_in: StandIn
) -> None:
    stand_in.status = 400
    try:
        reply = chat(client, [{"role": "user", "content": TITLE}])
    finally:
        stand_in.status = 200
    assert reply.choices[0].message.content == "How many weeks of parental leave"
    assert (reply.model_extra or {})["rag"]["degraded"] == ["model_unavailable"]


# In this process, without a model and without keys.


@contextmanager
def small(lake: str, **values: Any) -> Generator[TestClient]:
    settings = ServingSettings.model_validate({"lake_uri": lake})
    app = create_app(
        lambda: AsyncRagClient(settings), HttpSettings.model_validate({"keys": None, **values}), open_to_all=True
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_without_a_model_a_prompt_of_a_chat_front_end_gets_a_plain_reply(sample_lake: str) -> None:
    with small(sample_lake) as client:
        body = {"model": "rag-shards", "messages": [{"role": "user", "content": TITLE_AS_JSON}]}
        reply = client.post("/v1/chat/completions", json=body).json()
    assert json.loads(reply["choices"][0]["message"]["content"]) == {"title": "How many weeks of parental leave"}


def test_the_setting_for_the_list_of_sources_applies_to_every_model(sample_lake: str) -> None:
    with small(sample_lake, sources_footer=True) as client:
        reply = client.post("/v1/responses", json={"model": "rag-shards", "input": QUESTION}).json()
    assert "\n\nSources:\n\n- [1] " in reply["output"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/chat/completions", {"model": "rag-shards", "messages": []}, 422, "messages"),
        ("/v1/chat/completions", {"model": "rag-shards", "messages": [{"content": "x"}]}, 422, "messages.0.role"),
        ("/v1/chat/completions", {"model": "rag-shards", "messages": [ASKED] * 2_001}, 422, "messages"),
        ("/v1/chat/completions", {"model": "rag-shards", "messages": [{"role": "assistant"}]}, 400, None),
        ("/v1/chat/completions", {"model": "rag-shards", "messages": [{"role": "user"}]}, 400, None),
        ("/v1/responses", {"model": "rag-shards"}, 422, "input"),
        ("/v1/responses", {"model": "rag-shards", "input": ""}, 400, None),
        ("/v1/responses", {"model": "rag-shards", "input": [{"role": "user", "content": [{}]}]}, 422, "input"),
    ],
)
def test_errors_have_the_fields_of_the_protocol(
    sample_lake: str, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    with small(sample_lake) as client:
        reply = client.post(path, json=body)
    error = reply.json()["error"]
    assert set(error) == {"type", "message", "code", "param"}
    assert (reply.status_code, (error["param"] or "")[: len(param or "")]) == (status, param or "")
    assert reply.text.startswith('{"error":{"type":"')


def test_a_refused_key_gets_an_error_of_the_same_shape(service: Service) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="wrong", max_retries=0).models.list()
    body: Any = raised.value.body
    assert set(body) == {"type", "message", "code", "param"}
    assert raised.value.response.text.startswith('{"error":{"type":"NotAllowed"')
