"""Static vectors: what they distinguish, how the lake stores them, and how a run creates missing ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import numpy.typing as npt
import pytest

from rag_assets.chunking.static_vectors import StaticVectors
from rag_assets.defs.build import build_definitions
from rag_assets.models.export import ensure_exported, find_exported
from rag_assets.models.static_vectors import (
    DIMENSIONS,
    VectorsManifest,
    are_distilled,
    distil,
    ensure_distilled,
    load_vectors,
)
from rag_assets.options import PACKAGED_MODEL
from rag_assets.storage.schemas import CHUNKS
from rag_serving.errors import LakeCorrupt
from rag_serving.lake.embedders.base import MODELS, EmbedderIdentity, load_tokenizer
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.object_store import ObjectStore, open_object_store
from tests.pipelines import failure_of, metadata_of, publication, run_shard, seed_model, settings_for, stage_rows

ALIKE = (
    ("Parental leave is forty-nine weeks for each child.", "Mothers and fathers get a year off after a birth."),
    ("The pump stops when its valve freezes.", "Ice in the valve makes the compressor fail."),
    ("Invoices are paid within thirty days.", "Suppliers receive their money a month after billing."),
)


def identity_in(lake: str) -> EmbedderIdentity:
    identity = find_exported(open_object_store(lake), PACKAGED_MODEL)
    assert identity is not None
    return identity


def without_vectors(model_lake: str, lake: str) -> ObjectStore:
    """Create a lake with the exported model but without its static vectors."""
    seed_model(model_lake, lake)
    objects = open_object_store(lake)
    for entry in objects.list(MODELS):
        if "boundary_vectors" in entry.key:
            objects.delete(entry.key)
    return objects


def drawn(seed: int) -> Any:
    """Return a stand-in for the distillation, for tests in which its result does not matter."""

    def make(_objects: ObjectStore, _identity: EmbedderIdentity) -> npt.NDArray[np.float32]:
        return np.random.default_rng(seed).standard_normal((40, 4), dtype=np.float32)

    return make


def units(vectors: StaticVectors, lake: str, texts: list[str]) -> npt.NDArray[np.float32]:
    tokenizer = load_tokenizer(open_object_store(lake), identity_in(lake))
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    starts = np.cumsum([0, *map(len, encoded[:-1])])
    return vectors.units(np.array([token for ids in encoded for token in ids], np.int64), starts.astype(np.int64))


def test_sentences_about_the_same_subject_are_nearer_than_others(model_lake: str) -> None:
    vectors = load_vectors(open_object_store(model_lake), identity_in(model_lake))
    one, other = (units(vectors, model_lake, [pair[side] for pair in ALIKE]) for side in (0, 1))
    cosines = one @ other.T
    assert np.array_equal(cosines.argmax(axis=1), np.arange(len(ALIKE)))
    assert cosines.diagonal().min() > np.max(cosines[~np.eye(len(ALIKE), dtype=bool)]) + 0.05


def test_spans_without_known_tokens_are_zero_and_all_others_have_unit_length() -> None:
    vectors = StaticVectors(np.eye(4, dtype=np.float16), "0" * 64)
    ids = np.array([0, 1, 2, 9, 9, 3] * 5000, np.int64)
    made = vectors.units(ids, np.array([0, 3, 3, 5, 6, 20_000], np.int64))
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), [1, 0, 0, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(made[0], np.array([1, 1, 1, 0]) / np.sqrt(3), rtol=1e-6)
    assert vectors.units(ids[:0], np.array([0], np.int64)).tolist() == [[0, 0, 0, 0]]


def test_vectors_are_distilled_once_and_loaded_unchanged(model_lake: str, tmp_path: Path) -> None:
    objects = without_vectors(model_lake, str(tmp_path))
    identity = identity_in(str(tmp_path))
    assert not are_distilled(objects, identity)
    first = ensure_distilled(objects, identity, drawn(1))
    assert are_distilled(objects, identity)
    assert (first.created, first.manifest.tokens, first.manifest.dimensions) == (True, 40, 4)
    again = ensure_distilled(objects, identity, drawn(2))
    assert (again.created, again.manifest, again.bytes) == (False, first.manifest, first.bytes)
    loaded = load_vectors(objects, identity)
    assert loaded.version == first.manifest.sha256[:8]
    expected = drawn(1)(objects, identity).astype(np.float16).astype(np.float32)
    made = loaded.units(np.arange(40), np.arange(40))
    np.testing.assert_allclose(made, expected / np.linalg.norm(expected, axis=1)[:, None], rtol=1e-5)


def test_of_two_concurrent_distillations_the_first_wins(model_lake: str, tmp_path: Path) -> None:
    objects = without_vectors(model_lake, str(tmp_path))
    identity = identity_in(str(tmp_path))
    won: list[VectorsManifest] = []

    def overtaken(objects: ObjectStore, identity: EmbedderIdentity) -> npt.NDArray[np.float32]:
        won.append(ensure_distilled(objects, identity, drawn(1)).manifest)
        return drawn(2)(objects, identity)

    late = ensure_distilled(objects, identity, overtaken)
    assert (late.created, late.manifest) == (False, won[0])
    assert load_vectors(objects, identity).version == won[0].sha256[:8]


def test_an_altered_or_missing_file_is_lake_corrupt_and_repaired_by_distilling_again(
    model_lake: str, tmp_path: Path
) -> None:
    objects = without_vectors(model_lake, str(tmp_path))
    identity = identity_in(str(tmp_path))
    manifest = ensure_distilled(objects, identity, drawn(1)).manifest
    key = f"{MODELS}/{identity.fingerprint}/{manifest.file}"
    stored = objects.get(key)
    assert stored is not None
    for damage in (stored.data[:-1] + b"?", stored.data[:100], None):
        objects.delete(key) if damage is None else objects.put(key, damage)
        with pytest.raises(LakeCorrupt, match=r"boundary_vectors-.* missing or altered; materialize boundary_vectors"):
            load_vectors(objects, identity)
        assert ensure_distilled(objects, identity, drawn(1)).created
        assert load_vectors(objects, identity).version == manifest.sha256[:8]


@pytest.mark.parametrize("data", [b"", b"{", b'{"format": 1}', b"another fingerprint"])
def test_a_malformed_manifest_is_lake_corrupt(model_lake: str, tmp_path: Path, data: bytes) -> None:
    objects = without_vectors(model_lake, str(tmp_path))
    identity = identity_in(str(tmp_path))
    manifest = ensure_distilled(objects, identity, drawn(1)).manifest
    if data == b"another fingerprint":
        data = manifest.model_copy(update={"fingerprint": "f" * 32}).model_dump_json().encode()
    objects.put(f"{MODELS}/{identity.fingerprint}/boundary_vectors.json", data)
    with pytest.raises(LakeCorrupt, match="materialize boundary_vectors again"):
        load_vectors(objects, identity)
    assert ensure_distilled(objects, identity, drawn(1)).created


def test_a_hosted_model_uses_the_packaged_models_vectors_and_embeds_no_vocabulary(
    model_lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def embedding(*, input: list[str], **_: Any) -> Any:  # noqa: A002
        asked.extend(input)
        return {"data": [{"index": at, "embedding": [1.0, 0.0]} for at in range(len(input))]}

    monkeypatch.setattr("rag_serving.lake.embedders.hosted._litellm_embedding", lambda: embedding)
    facts = identity_in(model_lake).model_dump()
    identity = EmbedderIdentity.model_validate({**facts, "runtime": "litellm", "weights_sha256": "a" * 64})
    objects = open_object_store(model_lake)
    assert identity.fingerprint != identity_in(model_lake).fingerprint
    assert are_distilled(objects, identity)
    assert load_vectors(objects, identity).version == load_vectors(objects, identity_in(model_lake)).version
    assert ensure_distilled(objects, identity).created is False
    assert asked == []


@pytest.mark.usefixtures("distilled_before")
def test_a_shards_run_distils_missing_vectors_and_the_asset_reuses_them(
    instance: dg.DagsterInstance, model_lake: str, tmp_path: Path
) -> None:
    lake, source = str(tmp_path / "lake"), tmp_path / "source" / "oslo" / "people"
    objects = without_vectors(model_lake, lake)
    source.mkdir(parents=True)
    (source / "leave.txt").write_text("Parental leave is 49 weeks.")
    settings = settings_for(str(tmp_path / "source"), lake)
    result = run_shard(instance, settings, "oslo/people")
    assert result.success, failure_of(result)
    made = load_vectors(objects, identity_in(lake))
    assert metadata_of(result)["chunks"]["chunker"].startswith(f"semantic-1/{made.version}/")
    assert {row["chunker"] for row in stage_rows(lake, CHUNKS, "oslo/people")} == {
        metadata_of(result)["chunks"]["chunker"]
    }
    asset = build_definitions(settings).resolve_implicit_global_asset_job_def()
    found = asset.execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey("boundary_vectors")],
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    said = metadata_of(found)["boundary_vectors"]
    assert (said["created"], said["dimensions"], said["sha256"][:8]) == (False, DIMENSIONS, made.version)
    assert said["tokens"] == load_tokenizer(objects, identity_in(lake)).get_vocab_size()


def test_changing_the_chunker_or_context_rechunks_and_the_context_is_embedded_but_not_shown(
    instance: dg.DagsterInstance, model_lake: str, tmp_path: Path
) -> None:
    from rag_assets.storage.lake import Lake
    from tests.pipelines import published_rows

    lake, source = str(tmp_path / "lake"), tmp_path / "source" / "oslo" / "people"
    seed_model(model_lake, lake)
    source.mkdir(parents=True)
    words = "Everyone may stay at home after a birth, and is paid as before. " * 20
    (source / "leave.md").write_text(f"# Handbook\n\n## Parental leave\n\n{words}")
    published: dict[str, list[dict[str, Any]]] = {}
    for context in ("none", "headings", "neighbours"):
        settings = settings_for(str(tmp_path / "source"), lake, chunk_context=context, chunk_tokens=128)
        result = run_shard(instance, settings, "oslo/people")
        assert result.success, failure_of(result)
        published[context] = published_rows(lake, "oslo/people")
        chunks = {row["chunk_id"]: row for row in stage_rows(lake, CHUNKS, "oslo/people")}
        embedder = load_embedder(open_object_store(lake), identity_in(lake).fingerprint)
        for row in published[context]:
            assert row["text"] in (source / "leave.md").read_text()
            embedded = chunks[row["chunk_id"]]["context"] + row["text"]
            assert row["tokens"] == chunks[row["chunk_id"]]["tokens"] <= 256
            assert float(embedder.embed_documents([embedded])[0] @ np.array(row["vector"], np.float32)) > 0.999
        assert any(row["context"] for row in chunks.values()) == (context != "none")
    assert Lake(lake).open(CHUNKS, _shard()) is not None
    texts = [[row["text"] for row in rows] for rows in published.values()]
    assert texts[0] == texts[1] == texts[2]
    digests = {tuple(row["chunk_id"] for row in rows) for rows in published.values()}
    assert len(digests) == 3
    again = run_shard(instance, settings, "oslo/people")
    assert metadata_of(again)["chunks"]["chunks_written"] == 0
    structure = settings.model_copy(update={"chunker": "structure", "chunk_context": "none"})
    result = run_shard(instance, structure, "oslo/people")
    assert metadata_of(result)["chunks"]["chunker"].startswith("structure-1/128/")


def _shard() -> Any:
    from rag_serving.lake.shards import Shard

    return Shard.parse("oslo/people")


def test_a_chunks_table_with_an_older_schema_is_rebuilt(
    instance: dg.DagsterInstance, model_lake: str, tmp_path: Path
) -> None:
    from rag_assets.storage.schemas import CHUNK_SCHEMA
    from tests.pipelines import assert_same_tables, published_rows, writer_of

    lake, source = str(tmp_path / "lake"), tmp_path / "source" / "oslo" / "people"
    seed_model(model_lake, lake)
    source.mkdir(parents=True)
    for name in ("leave", "canteen"):
        (source / f"{name}.txt").write_text(f"A few words about the {name}.")
    settings = settings_for(str(tmp_path / "source"), lake)
    assert run_shard(instance, settings, "oslo/people").success
    before = published_rows(lake, "oslo/people")

    with writer_of(lake, "oslo/people") as writer:
        table = writer.table(CHUNKS)
        assert table is not None
        old = table.to_arrow().drop_columns(["context"])
        writer.overwrite(CHUNKS, old.schema)
        writer.append(CHUNKS, old)
    result = run_shard(instance, settings, "oslo/people")
    assert result.success, failure_of(result)
    assert metadata_of(result)["chunks"]["documents_chunked"] == 2
    assert metadata_of(result)["embeddings"]["embedded"] == 0
    assert {row["context"] for row in stage_rows(lake, CHUNKS, "oslo/people")} == {"Canteen\n", "Leave\n"}
    assert set(stage_rows(lake, CHUNKS, "oslo/people")[0]) == set(CHUNK_SCHEMA.names)
    assert_same_tables(published_rows(lake, "oslo/people"), before)
    current = publication(lake, "oslo/people")
    assert current is not None
    assert current.documents == 2


def test_distilling_is_reproducible(model_lake: str) -> None:
    objects, identity = open_object_store(model_lake), identity_in(model_lake)
    assert ensure_exported(objects, PACKAGED_MODEL).identity == identity
    ids = np.arange(1000, 5000)
    stored = load_vectors(objects, identity).units(ids, np.arange(len(ids)))
    fresh = StaticVectors(distil(objects, identity).astype(np.float16), "0" * 64)
    cosines = stored @ stored.T
    made = fresh.units(ids, np.arange(len(ids)))
    assert np.abs(cosines - made @ made.T).max() < 0.05
