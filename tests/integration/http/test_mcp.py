"""Agents use the lake through the Model Context Protocol: over HTTP with a key, and over standard input."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from rag_serving.http.api_keys import create_key
from tests.fake_llm import StandIn
from tests.serving_process import Service, service_environment, serving

QUESTION = "How many weeks of parental leave are on full pay?"


@pytest.fixture(scope="module")
def oslo(keys_file: Path) -> str:
    return create_key(keys_file, "Oslo alone", tenant="oslo", shards=["oslo/*"])[1]


@pytest.fixture(scope="module")
def service(
    sample_lake: str, stand_in: StandIn, keys_file: Path, oslo: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    assert oslo
    stand_in.words = ("46 weeks", " [1].")
    with serving(tmp_path_factory.mktemp("mcp"), service_environment(sample_lake, stand_in, keys_file)) as running:
        yield running


@asynccontextmanager
async def agent_of(service: Service, key: str) -> AsyncGenerator[Client]:
    headers = {"authorization": f"Bearer {key}"}
    async with (
        httpx.AsyncClient(headers=headers, timeout=60, trust_env=False) as http,
        Client(streamable_http_client(f"{service.url}/mcp", http_client=http)) as agent,
    ):
        yield agent


def used(service: Service, key: str, use: Callable[[Client], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with agent_of(service, key) as agent:
            return await use(agent)

    return asyncio.run(go())


def test_an_agent_finds_the_tools_and_what_they_are_for(service: Service, oslo: str) -> None:
    tools = used(service, oslo, lambda agent: agent.list_tools()).tools
    assert {tool.name for tool in tools} == {"search", "ask", "read_document", "list_shards"}
    assert all(tool.description and tool.annotations.read_only_hint for tool in tools)


def test_an_agent_gets_an_answer_with_the_passages_that_it_cites(service: Service, oslo: str) -> None:
    result = used(service, oslo, lambda agent: agent.call_tool("ask", {"question": QUESTION}))
    assert not result.is_error
    answer = result.structured_content
    assert (answer["text"], answer["found"]) == ("46 weeks [1].", True)
    assert answer["sources"]["1"]["shard"] == "oslo/people"
    assert answer["sources"]["1"]["text"]


def test_an_agent_reads_the_document_of_a_passage_and_no_path_of_the_server(service: Service, oslo: str) -> None:
    async def use(agent: Client) -> tuple[Any, Any, Any]:
        found = await agent.call_tool("search", {"question": QUESTION, "departments": ["people"], "k": 1})
        (passage,) = found.structured_content["passages"]
        address = {"shard": passage["shard"], "doc_id": passage["doc_id"]}
        document = await agent.call_tool("read_document", address)
        elsewhere = await agent.call_tool("read_document", {**address, "shard": "lisbon/people"})
        return passage, document, elsewhere

    passage, document, elsewhere = used(service, oslo, use)
    assert passage["source"].startswith("oslo/people/")
    assert passage["link"].startswith(f"{service.url}/documents/oslo/people/")
    assert passage["text"] in document.structured_content["text"]
    assert document.structured_content["source"] == passage["source"]
    assert elsewhere.is_error
    assert "no such document is published" in elsewhere.content[0].text


def test_an_agent_sees_only_the_shards_of_its_key(service: Service, oslo: str) -> None:
    async def use(agent: Client) -> tuple[Any, Any, Any]:
        shards = await agent.call_tool("list_shards", {})
        found = await agent.call_tool("search", {"question": QUESTION, "k": 50})
        elsewhere = await agent.call_tool("search", {"question": QUESTION, "regions": ["lisbon"]})
        return shards, found, elsewhere

    shards, found, elsewhere = used(service, oslo, use)
    assert {shard["region"] for shard in shards.structured_content["shards"]} == {"oslo"}
    assert found.structured_content["passages"]
    assert {passage["shard"].split("/")[0] for passage in found.structured_content["passages"]} == {"oslo"}
    assert elsewhere.is_error
    assert "no published shard has the region 'lisbon'; call list_shards" in elsewhere.content[0].text


@pytest.mark.parametrize("arguments", [{"question": ""}, {"question": "x", "k": 0}, {"k": 3}])
def test_an_agent_is_told_what_is_wrong_with_its_arguments(
    service: Service, oslo: str, arguments: dict[str, Any]
) -> None:
    result = used(service, oslo, lambda agent: agent.call_tool("search", arguments))
    assert result.is_error
    assert "validation error" in result.content[0].text


def test_without_a_key_nothing_is_served(service: Service) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for headers in ({}, {"authorization": "Bearer rag_wrong"}):
        reply = httpx.post(f"{service.url}/mcp", json=call, headers=headers, trust_env=False)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")


def test_the_command_serves_an_agent_over_standard_input(service: Service, oslo: str) -> None:
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "rag_serving.cli", "mcp"],
        env={"RAG_SERVICE_URL": service.url, "RAG_SERVICE_KEY": oslo},
    )

    async def go() -> Any:
        async with Client(command) as agent:
            return await agent.call_tool("search", {"question": QUESTION, "departments": ["people"]})

    result = asyncio.run(go())
    assert not result.is_error
    assert {passage["shard"] for passage in result.structured_content["passages"]} == {"oslo/people"}
