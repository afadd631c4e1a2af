"""The embedder protocol, the identity of an embedder, and the model files in the lake."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from rag_serving.errors import EmbedderUnavailable, LakeCorrupt
from rag_serving.lake.field_types import FileName, Fingerprint, GraphInput, ModelName, Sha256
from rag_serving.lake.object_store import ObjectStore

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODELS = "models"
MANIFEST = "manifest.json"
GRAPH = "graph.xml"
WEIGHTS = "graph.bin"
TOKENIZER = "tokenizer.json"

_ENGLISH_MODELS = frozenset({
    "all-minilm-l6-v2", "all-minilm-l12-v2", "all-mpnet-base-v2", "all-distilroberta-v1", "multi-qa-mpnet-base-dot-v1",
    "multi-qa-minilm-l6-cos-v1", "e5-small", "e5-base", "e5-large", "e5-small-v2", "e5-base-v2", "e5-large-v2",
    "gte-small", "gte-base", "gte-large",
})  # fmt: skip
_ENGLISH_NAME = r"(?:^|[-_])en(?:glish)?(?:[-_.]|$)"

SELF_TEST_TEXT = "The quarterly report is due on the third working day of the month."
SELF_TEST_COSINE = 0.999
"""Minimum cosine of the stored self-test vector and the one computed on load; bf16 arithmetic stays above 0.9999."""


class EmbedderIdentity(BaseModel):
    """What makes vectors comparable; `fingerprint` is computed from it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    model: ModelName = Field(description="configured name of the model; for display, not part of the fingerprint")
    weights_sha256: Sha256
    dimensions: int = Field(ge=1, le=65_536)
    window: int = Field(ge=8, le=1_000_000, description="maximum tokens of an input, including special tokens")
    pooling: str
    normalized: bool
    query_prompt: str = ""
    document_prompt: str = ""
    precision: str = Field("float", description="arithmetic: cosines of fp32 and bf16 exceed 0.9999, int8 differs")
    runtime: Literal["openvino", "litellm"] = Field("openvino", description="local graph (openvino) or API (litellm)")
    inputs: tuple[GraphInput, ...] = Field((), description="names of the graph's inputs, in order")
    files: dict[FileName, Sha256] = Field(description="sha256 by file name")
    self_test: tuple[FiniteFloat, ...] = Field(
        description="unit vector of SELF_TEST_TEXT by the reference implementation"
    )

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that identify the embedder."""
        identity = {
            "weights": self.weights_sha256,
            "dimensions": self.dimensions,
            "window": self.window,
            "pooling": self.pooling,
            "normalized": self.normalized,
            "prompts": [self.query_prompt, self.document_prompt],
            "precision": self.precision,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def reads(self) -> tuple[str, ...] | None:
        """Languages that the model was trained on (ISO 639-1); None if any, or if they are not known."""
        name = self.model.rpartition("/")[2].lower()
        return ("en",) if name in _ENGLISH_MODELS or re.search(_ENGLISH_NAME, name) else None


class Embedder(Protocol):
    """Maps texts to unit vectors of one space. Thread-safe."""

    @property
    def identity(self) -> EmbedderIdentity:
        """The embedder's identity."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return vectors of shape ``(len(texts), dimensions)``; texts are cut at the window."""
        ...

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """Return a vector of shape ``(dimensions,)``."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return vectors of shape ``(len(texts), dimensions)``."""
        ...

    def fits(self, text: str) -> bool:
        """Return whether a question fits into the window."""
        ...


def is_fingerprint(text: str) -> bool:
    """Return whether the text can be the fingerprint of an embedder."""
    try:
        TypeAdapter(Fingerprint).validate_python(text)
    except ValidationError:
        return False
    return True


def read_manifest(objects: ObjectStore, fingerprint: str) -> EmbedderIdentity | None:
    """Return the identity of a stored embedder, or None; raises `LakeCorrupt`.

    Raises `EmbedderUnavailable` for what is not a fingerprint, because it becomes a path.
    """
    if not is_fingerprint(fingerprint):
        raise EmbedderUnavailable(f"{fingerprint[:80]!r} is not the fingerprint of an embedder: it has 32 hex digits")
    stored = objects.get(f"{MODELS}/{fingerprint}/{MANIFEST}")
    if stored is None:
        return None
    try:
        identity = EmbedderIdentity.model_validate_json(stored.data)
    except ValidationError as error:
        raise LakeCorrupt(f"the manifest of embedder {fingerprint} is malformed; export the model again") from error
    if identity.fingerprint != fingerprint:
        raise LakeCorrupt(f"the manifest under {fingerprint} describes {identity.fingerprint}; export the model again")
    return identity


def load_tokenizer(objects: ObjectStore, identity: EmbedderIdentity) -> "Tokenizer":
    """Return the model's tokenizer without truncation and padding; raises `LakeCorrupt`."""
    from tokenizers import Tokenizer

    tokenizer: Tokenizer = Tokenizer.from_str(read_model_file(objects, identity, TOKENIZER).decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def passage_tokens(identity: EmbedderIdentity, tokenizer: "Tokenizer") -> int:
    """Return the maximum tokens of a passage, including special tokens: the window less the document prompt."""
    prompt = identity.document_prompt
    return identity.window - (len(tokenizer.encode(prompt, add_special_tokens=False)) if prompt else 0)


def read_model_file(objects: ObjectStore, identity: EmbedderIdentity, name: str) -> bytes:
    """Read a model file and check its hash; raises `LakeCorrupt`."""
    stored = objects.get(f"{MODELS}/{identity.fingerprint}/{name}")
    if stored is None or hashlib.sha256(stored.data).hexdigest() != identity.files.get(name):
        raise LakeCorrupt(f"{name} of embedder {identity.fingerprint} is missing or altered; export the model again")
    return stored.data


def check_self_test(embedder: Embedder) -> float:
    """Return the cosine of the self-test's vector with the stored one; raises `LakeCorrupt` if it is too low."""
    vector = embedder.embed_documents([SELF_TEST_TEXT])[0]
    stored = np.asarray(embedder.identity.self_test, dtype=np.float32)
    cosine = float(vector @ stored) if vector.shape == stored.shape else 0.0
    if not cosine >= SELF_TEST_COSINE:  # also if the model returns what is not a number
        raise LakeCorrupt(
            f"embedder {embedder.identity.fingerprint} fails its self-test (cosine {cosine:.4f}); export it again"
        )
    return cosine
