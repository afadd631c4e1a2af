"""Embedding by torch, for machines with a GPU: the reference model itself, in half precision, in large batches.

It makes the vectors of the exported graph (fp16 on a GPU agrees with fp32 to 0.9999), so it shares its fingerprint; a
self-test at load holds it to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_assets.errors import ExportError
from rag_assets.models.export import load_reference, weights_hash
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.lake.embedders.batching import batches_by_length

if TYPE_CHECKING:
    import numpy.typing as npt

_BATCH_TOKENS = 65_536
"""A GPU is fed by the ten thousand tokens; CPU caches are not, and keep to a few."""
_CPU_BATCH_TOKENS = 4_096
_BATCH_ROWS = 1_024
_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def gpu_is_there() -> bool:
    """Whether torch can compute on a GPU here. Without a driver torch, which takes seconds to import, is not asked."""
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


class TorchEmbedder:
    """The sentence-transformers model that was exported; raises `ExportError` if it is another now."""

    def __init__(self, identity: EmbedderIdentity, *, device: str | None = None) -> None:
        import torch

        self._identity = identity
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_reference(identity.model)
        if weights_hash(self._model) != identity.weights_sha256:
            raise ExportError(
                f"the weights of {identity.model!r} are not those that were exported; materialize embedding_model again"
            )
        self._model = self._model.to(self._device).eval()
        if self._device != "cpu":
            self._model = self._model.half()
        self._lock = Lock()

    @property
    def identity(self) -> EmbedderIdentity:
        return self._identity

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self._embed([self._identity.document_prompt + text for text in texts])

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        return self.embed_queries([text])[0]

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self._embed([self._identity.query_prompt + text for text in texts])

    def fits(self, text: str) -> bool:
        """Whether the question is read whole, or would be cut at the window."""
        tokens: Any = self._model.tokenizer(self._identity.query_prompt + text)["input_ids"]
        return len(tokens) <= self._identity.window

    def _embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        import torch

        tokenizer: Any = self._model.tokenizer
        vectors = np.empty((len(texts), self._identity.dimensions), dtype=np.float32)
        encoded: list[list[int]] = (
            tokenizer(texts, truncation=True, max_length=self._identity.window)["input_ids"] if texts else []
        )
        most = _CPU_BATCH_TOKENS if self._device == "cpu" else _BATCH_TOKENS
        # One thread at a time: a GPU runs one batch after another anyway. Batches are sent while others are computed.
        with self._lock, torch.inference_mode():
            made: list[tuple[list[int], Any]] = []
            for rows in batches_by_length(encoded, most_tokens=most, most_rows=_BATCH_ROWS):
                features: Any = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
                sent = {name: tensor.to(self._device, non_blocking=True) for name, tensor in features.items()}
                output: Any = self._model(sent)["sentence_embedding"]
                made.append((rows, torch.nn.functional.normalize(output.float(), p=2, dim=1)))
            for rows, unit in made:
                vectors[rows] = unit.cpu().numpy()
        return vectors
