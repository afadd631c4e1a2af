"""The lake is untrusted: no bytes in it raise anything but the named errors, or lead outside of it."""

from __future__ import annotations

import json
import math
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_serving.errors import EmbedderUnavailable, LakeCorrupt
from rag_serving.lake.catalog import Catalog
from rag_serving.lake.catalog_entry import CATALOG, catalog_key, read_entry
from rag_serving.lake.company_index import RECORDS, CompanyRecord, IndexedShard, read_record
from rag_serving.lake.embedders.base import MANIFEST, MODELS, EmbedderIdentity, check_self_test, read_manifest
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.search.plan import plan
from rag_serving.lake.search.query import Query
from rag_serving.lake.search.statistics import WordStatistics
from rag_serving.lake.shards import Shard
from tests.answers import IDENTITY, FakeEmbedder
from tests.unit.lake.test_catalog import CountedObjects, entry

SHARD = Shard("london", "people")
FINGERPRINT = "f" * 32
ENTRY: dict[str, Any] = json.loads(entry(SHARD).to_json())
RECORD: dict[str, Any] = json.loads(
    CompanyRecord(
        fingerprint=FINGERPRINT,
        version=1,
        epoch=1,
        table_format=2,
        format=1,
        shards={SHARD.key: IndexedShard(content_digest="digest-0", version=1, chunks=1)},
    ).model_dump_json()
)
MANIFEST_OF: dict[str, Any] = json.loads(IDENTITY.model_dump_json())

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**53, 2**63, 2**64, -1])
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["../../etc/passwd", "a'b", "a\n", "}", "*", "f" * 32, "\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=5,
)


def paths_in(value: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [prefix]
    return [path for name, inner in value.items() for path in paths_in(inner, (*prefix, name))]


@st.composite
def altered(draw: st.DrawFn, valid: dict[str, Any]) -> bytes:
    """Return arbitrary bytes, or a valid object in which one value or one name is replaced."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=200))
    changed = json.loads(json.dumps(valid))
    *parents, name = draw(st.sampled_from(paths_in(valid)))
    inside = changed
    for parent in parents:
        inside = inside[parent]
    if draw(st.integers(0, 3)) == 0:
        inside[draw(st.text(max_size=20))] = inside.pop(name)
    else:
        inside[name] = draw(VALUES)
    return json.dumps(changed).encode()


def inside_the_lake(*parts: object) -> bool:
    path = PurePosixPath("/lake", *map(str, parts))
    return ".." not in path.parts and path.parts[:2] == ("/", "lake") and "\x00" not in str(path)


@given(altered(ENTRY), altered(RECORD), st.text(max_size=30))
def test_any_catalog_object_or_record_leaves_the_other_shards_searchable(
    damaged: bytes, record: bytes, name: str
) -> None:
    objects = CountedObjects()
    healthy = Shard("oslo", "people")
    objects.put(catalog_key(healthy), entry(healthy).to_json())
    objects.put(catalog_key(SHARD), damaged)
    objects.put(f"{CATALOG}/{name}.json", damaged)
    objects.put(f"{RECORDS}/{FINGERPRINT}.json", record)
    objects.put(f"{RECORDS}/{name}.json", record)
    snapshot = Catalog(objects).snapshot()
    assert healthy in snapshot.entries
    assert SHARD in snapshot.entries or "catalog_broken:london/people" in snapshot.broken_in(None, None)
    for target in plan(snapshot.route(None, None), snapshot.companies, Query("leave", 8), 0):
        assert inside_the_lake(target.folder, target.table)
        assert 1 <= target.version < 2**63


@given(altered(ENTRY))
def test_any_bytes_of_a_catalog_object_are_an_entry_or_corrupt(data: bytes) -> None:
    try:
        found = read_entry(SHARD, data)
    except LakeCorrupt:
        return
    assert found.table == SHARD.table_name
    assert inside_the_lake(MODELS, found.current.fingerprint, MANIFEST)


@given(altered(RECORD))
def test_any_bytes_of_a_company_record_are_a_record_or_corrupt(data: bytes) -> None:
    try:
        found = read_record(FINGERPRINT, data)
    except LakeCorrupt:
        return
    assert [Shard.parse(key).key for key in found.shards] == list(found.shards)


@given(altered(MANIFEST_OF))
def test_any_bytes_of_a_manifest_are_an_embedder_or_a_named_error(data: bytes) -> None:
    objects = CountedObjects()
    objects.put(f"{MODELS}/{IDENTITY.fingerprint}/{MANIFEST}", data)
    with pytest.raises((LakeCorrupt, EmbedderUnavailable)):  # the files are missing in any case
        load_embedder(objects, IDENTITY.fingerprint)
    assert all(inside_the_lake(key) for key in objects.gets)


@given(st.text(max_size=60))
def test_what_is_not_a_fingerprint_never_becomes_a_path(text: str) -> None:
    objects = CountedObjects()
    with pytest.raises(EmbedderUnavailable, match="not the fingerprint"):
        read_manifest(objects, text)
    assert objects.gets == []


@given(st.binary(max_size=300))
def test_any_bytes_of_word_statistics_are_statistics_or_corrupt(data: bytes) -> None:
    with pytest.raises(LakeCorrupt):
        WordStatistics.from_bytes(data)


def test_an_array_in_place_of_word_statistics_is_corrupt() -> None:
    with pytest.raises(LakeCorrupt):
        WordStatistics.from_bytes(array_file())


def array_file() -> bytes:
    import io

    import numpy as np

    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


@pytest.mark.parametrize("graph", [b"", b"<net>", b"\x00\xff"])
def test_model_files_that_cannot_be_loaded_are_corrupt(graph: bytes) -> None:
    import hashlib

    files = {"graph.xml": graph, "graph.bin": b"", "tokenizer.json": b"{}"}
    identity = IDENTITY.model_copy(update={"files": {n: hashlib.sha256(data).hexdigest() for n, data in files.items()}})
    objects = CountedObjects()
    objects.put(f"{MODELS}/{identity.fingerprint}/{MANIFEST}", identity.model_dump_json().encode())
    for name, data in files.items():
        objects.put(f"{MODELS}/{identity.fingerprint}/{name}", data)
    with pytest.raises(LakeCorrupt, match="cannot be loaded"):
        load_embedder(objects, identity.fingerprint)


@pytest.mark.parametrize("vector", [(math.nan, math.nan), (1.0,), ()])
def test_a_self_test_that_is_no_vector_of_the_model_fails(vector: tuple[float, ...]) -> None:
    class Embedder(FakeEmbedder):
        identity = EmbedderIdentity.model_construct(**{**IDENTITY.model_dump(), "self_test": vector})

    with pytest.raises(LakeCorrupt, match="self-test"):
        check_self_test(Embedder("report"))
