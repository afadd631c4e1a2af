"""An embedder without a model: for benchmarks whose question is what everything around the embedding costs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rag_assets.pipeline import Pipeline
from rag_serving.lake.embedders.base import Embedder, EmbedderIdentity

if TYPE_CHECKING:
    import numpy.typing as npt


class StubEmbedder:
    """Unit vectors drawn by a hash of the text: equal texts get equal vectors, and that is all that they mean."""

    def __init__(self, identity: EmbedderIdentity) -> None:
        self.identity = identity

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of shape ``(len(texts), dimensions)``, unit length."""
        return np.stack([self._vector(text) for text in texts])

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """A vector of shape ``(dimensions,)``, unit length."""
        return self._vector(text)

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of shape ``(len(texts), dimensions)``, unit length."""
        return self.embed_documents(texts)

    def fits(self, text: str) -> bool:
        """Any text will do."""
        return bool(text)

    def _vector(self, text: str) -> npt.NDArray[np.float32]:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        drawn = np.random.default_rng(seed).standard_normal(self.identity.dimensions, dtype=np.float32)
        return drawn / np.linalg.norm(drawn)


class StubPipeline(Pipeline):
    """The pipeline with that embedder; model, tokenizer and everything else are the real ones."""

    def embedder(self) -> Embedder:
        return StubEmbedder(self.identity())
