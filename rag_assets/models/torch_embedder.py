"""Embed with torch on a GPU: the original model in half precision and large batches.

Its vectors equal those of the exported graph (fp16 on a GPU agrees with fp32 to 0.9999), so it shares the fingerprint;
a self-test at load checks that.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from rag_assets.errors import ExportError
from rag_assets.models.model_source import is_packaged
from rag_assets.models.packaged import WEIGHTS_SHA256
from rag_assets.models.torch_export import load_reference, weights_hash
from rag_serving.errors import MissingExtra
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.lake.embedders.batching import batches_by_length
from rag_serving.requirements import needs_extra

_log = logging.getLogger(__name__)

_BATCH_TOKENS = 65_536
"""A GPU needs tens of thousands of tokens per batch; a CPU's caches only hold a few thousand."""
_CPU_BATCH_TOKENS = 4_096
_BATCH_ROWS = 1_024
_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def gpu_is_there() -> bool:
    """Return whether torch can use a GPU; imports torch, which takes seconds, only if there is a driver.

    Logs a warning if there is a driver but no torch.
    """
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return False
    try:
        with needs_extra("torch", "embedding on the GPU"):
            import torch
    except MissingExtra as error:
        _log.warning("%s; embedding on the CPU", error)
        return False
    return torch.cuda.is_available()


class TorchEmbedder:
    """The sentence-transformers model that was exported; raises `ExportError` if its weights have changed."""

    def __init__(self, identity: EmbedderIdentity, *, device: str | None = None) -> None:
        self._model = load_reference(identity.model)
        import torch

        self._identity = identity
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # The names of weights depend on sentence-transformers; those of the packaged model are verified as files.
        found = WEIGHTS_SHA256 if is_packaged(identity.model) else weights_hash(self._model)
        if found != identity.weights_sha256:
            raise ExportError(
                f"the weights of {identity.model!r} have changed since the export; materialize embedding_model again"
            )
        self._model = self._model.to(self._device).eval()
        if self._device != "cpu":
            self._model = self._model.half()
        self._lock = Lock()

    @property
    def identity(self) -> EmbedderIdentity:
        """The identity of the exported embedder."""
        return self._identity

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return unit vectors of passages, shape ``(len(texts), dimensions)``."""
        return self._embed([self._identity.document_prompt + text for text in texts])

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """Return the unit vector of a question."""
        return self.embed_queries([text])[0]

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return unit vectors of questions, shape ``(len(texts), dimensions)``."""
        return self._embed([self._identity.query_prompt + text for text in texts])

    def fits(self, text: str) -> bool:
        """Return whether the question fits into the window, so that it is not truncated."""
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
        # One thread at a time: a GPU runs batches one after another. The next batch is sent while one is computed.
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
