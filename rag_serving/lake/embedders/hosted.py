"""An embedder behind an API, reached by litellm: for lakes whose vectors a hosted model made.

The lake still holds its manifest, so pipeline and serving agree on it, and a self-test vector that tells when a
provider has changed the model under its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_serving.errors import EmbedderUnavailable

if TYPE_CHECKING:
    import numpy.typing as npt

    from rag_serving.lake.embedders.base import EmbedderIdentity

HOSTED = "litellm:"
"""What the name of a hosted model begins with in RAG_EMBEDDING_MODEL; the rest is litellm's name of it."""

_BATCH_TEXTS = 64
_CALLS_AT_ONCE = 4
_RETRIES = 4
_TIMEOUT_SECONDS = 60

Call = Callable[..., Any]
"""litellm.embedding, or what stands for it: takes model, input and options, gives an answer with `data`."""


class HostedEmbedder:
    """A model behind litellm; keys come from the provider's own variables. `call` is litellm's unless it is given."""

    def __init__(self, identity: EmbedderIdentity, call: Call | None = None) -> None:
        self._identity = identity
        self._call = call
        self._threads = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="embed")

    @property
    def identity(self) -> EmbedderIdentity:
        return self._identity

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """See `Embedder`; raises `EmbedderUnavailable` once litellm has given up retrying."""
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
        return self.embed_queries([text])[0]

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self._embed([self._identity.query_prompt + text for text in texts])

    def fits(self, text: str) -> bool:
        """Hosted models read thousands of tokens; no question that is accepted here is cut."""
        return bool(text)

    def _embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return embed_hosted(self._identity.model, texts, self._call, self._identity.dimensions)


def embed_hosted(
    model: str, texts: Sequence[str], call: Call | None = None, dimensions: int | None = None
) -> npt.NDArray[np.float32]:
    """Unit vectors of shape ``(len(texts), dimensions)`` from the API; raises `EmbedderUnavailable`.

    litellm retries what can be retried, with growing pauses. An answer of another shape is refused, too.
    """
    call = call or _litellm_embedding()
    name = model.removeprefix(HOSTED)
    try:
        answer = call(model=name, input=list(texts), num_retries=_RETRIES, timeout=_TIMEOUT_SECONDS)
        vectors = np.asarray([item["embedding"] for item in _in_order(answer.data)], dtype=np.float32)
    except Exception as error:
        # litellm's errors come from every provider's own tree; all of them mean that there is no vector. Their texts
        # may hold what was sent, so that only the kind is told.
        raise EmbedderUnavailable(
            f"the embedding model {name!r} gave no vectors ({type(error).__name__}); check its key and limits"
        ) from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or (dimensions is not None and vectors.shape[1] != dimensions):
        raise EmbedderUnavailable(
            f"the embedding model {name!r} gave vectors of shape {vectors.shape} for {len(texts)} texts, not of "
            f"{dimensions} dimensions"
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(vectors).all() or not lengths.all():
        raise EmbedderUnavailable(f"the embedding model {name!r} gave vectors that are no numbers, or all zero")
    return vectors / lengths


def _in_order(data: Sequence[Any]) -> list[Any]:
    return sorted(data, key=lambda item: item["index"])


def _litellm_embedding() -> Call:
    # Without this, importing litellm fetches a price list from the network and waits for it.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm
    except ImportError as error:
        raise EmbedderUnavailable("hosted embedding models need litellm: pip install 'rag-shards[serving]'") from error
    embedding: Any = litellm.embedding
    return embedding
