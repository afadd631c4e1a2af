"""The embedder protocol, its identity, and the model files of the lake."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_serving.errors import LakeCorrupt
from rag_serving.lake.object_store import ObjectStore

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

MODELS = "models"
MANIFEST = "manifest.json"
GRAPH = "graph.xml"
WEIGHTS = "graph.bin"
TOKENIZER = "tokenizer.json"

SELF_TEST_TEXT = "The quarterly report is due on the third working day of the month."
SELF_TEST_COSINE = 0.999
"""Least cosine between the stored self-test vector and the one made at load; bf16 arithmetic stays above 0.9999."""


class EmbedderIdentity(BaseModel):
    """What makes two vectors comparable. Everything here except `model` and `files` enters the fingerprint."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    model: str = Field(description="name the model was configured by; for people, not part of the fingerprint")
    weights_sha256: str = Field(min_length=64, max_length=64)
    dimensions: int = Field(ge=1, le=65_536)
    window: int = Field(ge=8, description="most tokens the model reads, special tokens included")
    pooling: str
    normalized: bool
    query_prompt: str = ""
    document_prompt: str = ""
    precision: str = Field("float", description="class of arithmetic: fp32 and bf16 agree to 0.9999, int8 does not")
    runtime: Literal["openvino", "litellm"] = Field("openvino", description="what runs it: a graph here, or an API")
    inputs: tuple[str, ...] = Field((), description="names of the graph's inputs, in order")
    files: dict[str, str] = Field(description="file name to sha256")
    self_test: tuple[float, ...] = Field(description="unit vector of SELF_TEST_TEXT by the reference implementation")

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits naming this embedder."""
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


class Embedder(Protocol):
    """Turns texts into vectors of one space. Safe between threads."""

    @property
    def identity(self) -> EmbedderIdentity: ...

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of shape ``(len(texts), dimensions)``, unit length; texts beyond the window are cut."""
        ...

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """A vector of shape ``(dimensions,)``, unit length."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of shape ``(len(texts), dimensions)``, unit length, of questions that came at the same time."""
        ...

    def fits(self, text: str) -> bool:
        """Whether a question is read whole, or would be cut at the window."""
        ...


def read_manifest(objects: ObjectStore, fingerprint: str) -> EmbedderIdentity | None:
    """The stored identity of an embedder, or None; raises `LakeCorrupt`."""
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


def load_tokenizer(objects: ObjectStore, identity: EmbedderIdentity) -> Tokenizer:
    """The model's own tokenizer, neither truncating nor padding; raises `LakeCorrupt`."""
    from tokenizers import Tokenizer

    tokenizer: Tokenizer = Tokenizer.from_str(read_model_file(objects, identity, TOKENIZER).decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def passage_tokens(identity: EmbedderIdentity, tokenizer: Tokenizer) -> int:
    """Most tokens a passage may have, special tokens included: the window less the document prompt."""
    prompt = identity.document_prompt
    return identity.window - (len(tokenizer.encode(prompt, add_special_tokens=False)) if prompt else 0)


def read_model_file(objects: ObjectStore, identity: EmbedderIdentity, name: str) -> bytes:
    stored = objects.get(f"{MODELS}/{identity.fingerprint}/{name}")
    if stored is None or hashlib.sha256(stored.data).hexdigest() != identity.files.get(name):
        raise LakeCorrupt(f"{name} of embedder {identity.fingerprint} is missing or altered; export the model again")
    return stored.data


def check_self_test(embedder: Embedder) -> float:
    """Cosine of the self-test text's vector with the stored one; raises `LakeCorrupt` below `SELF_TEST_COSINE`."""
    vector = embedder.embed_documents([SELF_TEST_TEXT])[0]
    cosine = float(vector @ np.asarray(embedder.identity.self_test, dtype=np.float32))
    if cosine < SELF_TEST_COSINE:
        raise LakeCorrupt(
            f"embedder {embedder.identity.fingerprint} fails its self-test (cosine {cosine:.4f}); export it again"
        )
    return cosine
