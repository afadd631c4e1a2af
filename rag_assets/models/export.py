"""Export an embedding model into the lake: OpenVINO graph, tokenizer, manifest with fingerprint.

The graph includes pooling and normalization, so running it needs neither torch nor sentence-transformers.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rag_assets.errors import ExportError
from rag_assets.models.model_source import PROBES, is_packaged
from rag_assets.models.packaged import packaged_model, packaged_tokenizer
from rag_assets.models.torch_export import converted_model
from rag_serving.lake.embedders.base import (
    GRAPH,
    MANIFEST,
    MODELS,
    SELF_TEST_COSINE,
    SELF_TEST_TEXT,
    TOKENIZER,
    WEIGHTS,
    EmbedderIdentity,
    is_fingerprint,
    read_manifest,
)
from rag_serving.lake.embedders.hosted import HOSTED, embed_hosted
from rag_serving.lake.embedders.openvino import OpenVinoEmbedder, no_usage_reports
from rag_serving.lake.object_store import ObjectStore

if TYPE_CHECKING:
    from openvino import Model

POINTER = f"{MODELS}/by-name"
HOSTED_WINDOW = 512
"""Maximum tokens of a passage for a hosted model: it reads more, but retrieval is worse with long passages."""


@dataclass(frozen=True, slots=True)
class Export:
    """An embedder in the lake, and whether this call exported it."""

    identity: EmbedderIdentity
    created: bool
    bytes: int
    lowest_cosine: float | None


def ensure_exported(objects: ObjectStore, model: str, *, force: bool = False) -> Export:
    """Return the embedder of `model` in the lake; export it if it is missing, or with `force`.

    Concurrent or interrupted exports are harmless: the files of a fingerprint are reproducible, and the manifest is
    written last. Raises `ExportError`.
    """
    if not force:
        identity = find_exported(objects, model)
        if identity is not None:
            return Export(identity, created=False, bytes=0, lowest_cosine=None)
    return _export(objects, model)


def find_exported(objects: ObjectStore, model: str) -> EmbedderIdentity | None:
    """Return the embedder that `model` was last exported as, or None."""
    fingerprint = exported_fingerprint(objects, model)
    return None if fingerprint is None else read_manifest(objects, fingerprint)


def exported_fingerprint(objects: ObjectStore, model: str) -> str | None:
    """Return the fingerprint that `model` was last exported as; its files may be gone."""
    pointer = objects.get(_pointer_key(model))
    fingerprint = "" if pointer is None else pointer.data.decode(errors="replace").strip()
    return fingerprint if is_fingerprint(fingerprint) else None


def _pointer_key(model: str) -> str:
    return f"{POINTER}/{hashlib.sha256(model.encode()).hexdigest()[:32]}"


def _export(objects: ObjectStore, model: str) -> Export:
    if model.startswith(HOSTED):
        return _export_hosted(objects, model)
    source = packaged_model() if is_packaged(model) else converted_model(model)
    files = {**_graph_files(source.graph), TOKENIZER: source.tokenizer}
    identity = EmbedderIdentity(
        format=1,
        model=model,
        weights_sha256=source.weights_sha256,
        dimensions=int(source.probes.shape[1]),
        window=source.window,
        pooling=source.pooling,
        normalized=True,
        query_prompt=source.query_prompt,
        document_prompt=source.document_prompt,
        precision="float",
        runtime="openvino",
        inputs=source.inputs,
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        self_test=tuple(float(value) for value in source.self_test),
    )
    exported = OpenVinoEmbedder(
        identity.model_copy(update={"document_prompt": ""}), files[GRAPH], files[WEIGHTS], files[TOKENIZER]
    )
    cosines = (exported.embed_documents(PROBES) * source.probes).sum(axis=1)
    if float(cosines.min()) < SELF_TEST_COSINE:
        raise ExportError(
            f"the exported graph of {model} does not reproduce the model's vectors (lowest cosine {cosines.min():.4f}, "
            f"minimum {SELF_TEST_COSINE}); choose another RAG_EMBEDDING_MODEL"
        )
    return _store(objects, identity, files, float(cosines.min()))


def _graph_files(graph: "Model") -> dict[str, bytes]:
    with no_usage_reports():
        import openvino

    # OpenVINO names nodes by a counter of the process, but the file must be reproducible.
    graph.set_friendly_name("embedder")
    for number, node in enumerate(graph.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
    with tempfile.TemporaryDirectory(prefix="rag-export-") as scratch:
        openvino.save_model(graph, Path(scratch) / GRAPH, compress_to_fp16=False)
        return {name: (Path(scratch) / name).read_bytes() for name in (GRAPH, WEIGHTS)}


def _export_hosted(objects: ObjectStore, model: str) -> Export:
    """Write the manifest of a hosted model, identified by its name; a stored vector detects later changes.

    Passages are cut with the packaged model's tokenizer, whose counts are similar to any other's.
    """
    vector = embed_hosted(model, [SELF_TEST_TEXT])[0]
    tokenizer = packaged_tokenizer()
    identity = EmbedderIdentity(
        format=1,
        model=model,
        weights_sha256=hashlib.sha256(model.encode()).hexdigest(),
        dimensions=len(vector),
        window=HOSTED_WINDOW,
        pooling="hosted",
        normalized=True,
        precision="float",
        runtime="litellm",
        inputs=(),
        files={TOKENIZER: hashlib.sha256(tokenizer).hexdigest()},
        self_test=tuple(float(value) for value in vector),
    )
    return _store(objects, identity, {TOKENIZER: tokenizer}, None)


def _store(objects: ObjectStore, identity: EmbedderIdentity, files: dict[str, bytes], lowest: float | None) -> Export:
    for name, data in files.items():
        objects.put(f"{MODELS}/{identity.fingerprint}/{name}", data)
    objects.put(f"{MODELS}/{identity.fingerprint}/{MANIFEST}", identity.model_dump_json(indent=1).encode())
    objects.put(_pointer_key(identity.model), identity.fingerprint.encode())
    return Export(identity, True, sum(len(data) for data in files.values()), lowest)
