"""The quality gate must judge the same rankings that clients get."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag_assets.evaluation.ranking import rankings
from rag_serving import RagClient
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.lake.catalog_entry import read_catalog_entry
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.search.plan import shard_target
from rag_serving.lake.search.query import Mode
from rag_serving.lake.shards import Shard
from rag_serving.settings import ServingSettings

MODES: tuple[Mode, ...] = ("vector", "text", "hybrid")


@pytest.fixture(scope="module")
def rag(sample_lake: str) -> Iterator[RagClient]:
    with RagClient(lambda: AsyncRagClient(ServingSettings(lake_uri=sample_lake, redis_url=None))) as client:
        yield client


@pytest.mark.parametrize("shard", [Shard("oslo", "people"), Shard("lisbon", "engineering")])
def test_gate_and_client_rank_golden_questions_identically(sample_lake: str, rag: RagClient, shard: Shard) -> None:
    lines = (Path(__file__).parents[3] / "examples" / "questions.jsonl").read_text("utf-8").splitlines()
    questions = list(dict.fromkeys(json.loads(line)["question"] for line in lines))[:10]
    assert len(questions) == 10
    objects = open_object_store(sample_lake)
    found = read_catalog_entry(objects, shard)
    assert found is not None
    embedder = load_embedder(objects, found[0].current.fingerprint)
    pairs = [(question, embedder.embed_query(question)) for question in questions]
    for question, ranked in zip(questions, rankings(sample_lake, shard_target(found[0]), pairs), strict=True):
        for mode in MODES:
            hits = rag.search(question, regions=[shard.region], departments=[shard.department], k=10, mode=mode)
            assert [candidate.row["chunk_id"] for candidate in ranked[mode]] == [hit.chunk_id for hit in hits]
            assert hits or mode == "text"
