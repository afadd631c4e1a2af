"""An embedder behind an API, called by litellm.

The lake stores its manifest, so that pipeline and serving agree on it, and a self-test vector that reveals when a
provider changes the model without changing its name.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from rag_serving.errors import EmbedderUnavailable
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.litellm_calls import import_litellm

HOSTED = "litellm:"
"""Prefix of hosted models in RAG_EMBEDDING_MODEL; the rest is litellm's name of the model."""

_BATCH_TEXTS = 64
_CALLS_AT_ONCE = 4
_RETRIES = 4
_TIMEOUT_SECONDS = 60

Call = Callable[..., Any]
"""litellm.embedding or a replacement: takes model, input and options; its response has `data`."""


def hosted_name(model: str) -> str:
    """Return litellm's name of a model, given with or without `HOSTED`."""
    return model.removeprefix(HOSTED)


class HostedEmbedder:
    """A model called by litellm; its key is in the provider's usual variables. `call` replaces litellm's function."""

    def __init__(self, identity: EmbedderIdentity, call: Call | None = None) -> None:
        self._identity = identity
        self._call = call
        self._threads = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="embed")

    @property
    def identity(self) -> EmbedderIdentity:
        """The embedder's identity."""
        return self._identity

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed in concurrent batches; raises `EmbedderUnavailable` after litellm's retries."""
        prompted = [self._identity.document_prompt + text for text in texts]
        batches = [prompted[at : at + _BATCH_TEXTS] for at in range(0, len(prompted), _BATCH_TEXTS)]
        running = [self._threads.submit(self._embed, batch) for batch in batches]
        try:
            made = [batch.result() for batch in running]
        finally:
            for batch in running:
                batch.cancel()
        return np.concatenate(made) if made else np.empty((0, self._identity.dimensions), dtype=np.float32)

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """Embed one question."""
        return self.embed_queries([text])[0]

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed questions in one call; raises `EmbedderUnavailable`."""
        return self._embed([self._identity.query_prompt + text for text in texts])

    def fits(self, text: str) -> bool:
        """Return True: the windows of hosted models exceed the longest question that is accepted."""
        return bool(text)

    def _embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return embed_hosted(self._identity.model, texts, self._call, self._identity.dimensions)


def embed_hosted(
    model: str, texts: Sequence[str], call: Call | None = None, dimensions: int | None = None
) -> npt.NDArray[np.float32]:
    """Return unit vectors of shape ``(len(texts), dimensions)`` from the API.

    Raises `EmbedderUnavailable` after litellm's retries, and for a response of another shape.
    """
    call = call or _litellm_embedding()
    name = hosted_name(model)
    try:
        answer = call(model=name, input=list(texts), num_retries=_RETRIES, timeout=_TIMEOUT_SECONDS)
        vectors = np.asarray([item["embedding"] for item in _in_order(answer.data)], dtype=np.float32)
    except Exception as error:
        # litellm's errors have no common base class; only the class is shown, because messages may quote what was sent.
        raise EmbedderUnavailable(
            f"the embedding model {name!r} failed ({type(error).__name__}); check its API key and limits"
        ) from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or (dimensions is not None and vectors.shape[1] != dimensions):
        raise EmbedderUnavailable(
            f"the embedding model {name!r} returned vectors of shape {vectors.shape} for {len(texts)} texts; "
            f"expected {dimensions or 'any'} dimensions"
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(vectors).all() or not lengths.all():
        raise EmbedderUnavailable(f"the embedding model {name!r} returned vectors that are zero or not finite")
    return vectors / lengths


def _in_order(data: Sequence[Any]) -> list[Any]:
    return sorted(data, key=lambda item: item["index"])


def _litellm_embedding() -> Call:
    return import_litellm().embedding
