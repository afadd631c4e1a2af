"""The retrievers for LangChain, LlamaIndex and Haystack, in the real frameworks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from haystack import Pipeline
from haystack.utils import Secret
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from rag_serving import RagClient
from rag_serving.clients.retrievers import haystack, langchain, llama_index
from rag_serving.errors import UnknownScope
from rag_serving.http.api_keys import create_key
from tests.fake_llm import StandIn
from tests.serving_process import Service, service_environment, serving

QUESTION = "How many weeks of parental leave are on full pay?"


@pytest.fixture(scope="module")
def key(keys_file: Path) -> str:
    return create_key(keys_file, "Oslo alone", shards=["oslo/*"])[1]


@pytest.fixture(scope="module")
def service(
    sample_lake: str, stand_in: StandIn, keys_file: Path, key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    assert key
    environment = service_environment(sample_lake, stand_in, keys_file)
    with serving(tmp_path_factory.mktemp("retrievers"), environment) as running:
        yield running


@pytest.fixture
def client(service: Service, key: str) -> Iterator[RagClient]:
    with RagClient(base_url=service.url, key=key) as client:
        yield client


def test_a_chain_of_langchain_retrieves_passages_with_their_sources(client: RagClient) -> None:
    hits = client.search(QUESTION, k=3, departments=["people"])
    retriever = langchain.RagShardsRetriever(client=client, options={"k": 3, "departments": ["people"]})

    def sources(found: list[Document]) -> list[str]:
        return [document.metadata["source"] for document in found]

    found = retriever.invoke(QUESTION)
    assert [document.page_content for document in found] == [hit.text for hit in hits]
    assert {document.metadata["shard"] for document in found} == {"oslo/people"}
    chain = retriever | RunnableLambda(sources)
    assert chain.invoke(QUESTION) == asyncio.run(chain.ainvoke(QUESTION)) == [hit.source for hit in hits]


def test_a_retriever_of_llama_index_returns_nodes_in_order(client: RagClient) -> None:
    hits = client.search(QUESTION, k=3)
    retriever = llama_index.RagShardsRetriever(client, k=3)
    nodes = retriever.retrieve(QUESTION)
    assert [node.get_content() for node in nodes] == [hit.text for hit in hits]
    assert [node.score for node in nodes] == [hit.fused for hit in hits]
    assert nodes[0].metadata["page"] == hits[0].page
    assert [node.node_id for node in asyncio.run(retriever.aretrieve(QUESTION))] == [hit.chunk_id for hit in hits]


def test_a_pipeline_of_haystack_can_be_saved_without_the_key(
    client: RagClient, service: Service, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAG_SERVICE_KEY", key)
    pipeline = Pipeline()
    secret = Secret.from_env_var("RAG_SERVICE_KEY")
    pipeline.add_component("search", haystack.RagShardsRetriever(service.url, secret, k=3))
    saved = pipeline.dumps()
    assert key not in saved
    loaded = Pipeline.loads(saved, allowed_modules=["rag_serving.clients.retrievers.haystack"])
    documents = loaded.run({"search": {"query": QUESTION, "departments": ["people"]}})["search"]
    loaded.get_component("search").close()
    hits = client.search(QUESTION, k=3, departments=["people"])
    assert [document.content for document in documents["documents"]] == [hit.text for hit in hits]
    assert documents["documents"][0].meta["title"] == hits[0].title


def test_a_retriever_finds_nothing_beyond_its_key(client: RagClient) -> None:
    retriever = langchain.RagShardsRetriever(client=client, options={"k": 50})
    assert {document.metadata["shard"].split("/")[0] for document in retriever.invoke(QUESTION)} == {"oslo"}
    with pytest.raises(UnknownScope, match="lisbon"):
        retriever.invoke(QUESTION, regions=["lisbon"])
