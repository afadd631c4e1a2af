"""An embedder without a model, for benchmarks of everything around the embedding."""

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
    """Returns random unit vectors seeded by a hash of the text; only equal texts have equal vectors."""

    def __init__(self, identity: EmbedderIdentity) -> None:
        self.identity = identity

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return unit vectors of shape ``(len(texts), dimensions)``."""
        return np.stack([self._vector(text) for text in texts])

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """Return a unit vector of shape ``(dimensions,)``."""
        return self._vector(text)

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return unit vectors of shape ``(len(texts), dimensions)``."""
        return self.embed_documents(texts)

    def fits(self, text: str) -> bool:
        """Return whether the text is not empty."""
        return bool(text)

    def _vector(self, text: str) -> npt.NDArray[np.float32]:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        drawn = np.random.default_rng(seed).standard_normal(self.identity.dimensions, dtype=np.float32)
        return drawn / np.linalg.norm(drawn)


class StubPipeline(Pipeline):
    """The pipeline with the stub embedder; its identity, tokenizer and everything else are real."""

    def embedder(self) -> Embedder:
        return StubEmbedder(self.identity())
