"""Static token vectors, distilled once from the embedding model and stored beside its graph in the lake.

The sum of a sentence's token vectors represents its subject at a hundredth of the model's cost, which is enough to
detect changes of subject. The method is that of model2vec (Minish Lab, 2024): embed each token of the vocabulary alone,
then apply PCA and weights by frequency. The weights are those of SIF (Arora et al., 2017), with frequencies estimated
from the rank in the vocabulary by Zipf's law.
"""

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from rag_assets.chunking.static_vectors import StaticVectors
from rag_assets.models.export import ensure_exported, find_exported
from rag_assets.options import PACKAGED_MODEL
from rag_serving.errors import LakeCorrupt, WriteConflict
from rag_serving.lake.embedders.base import MODELS, EmbedderIdentity, load_tokenizer
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.embedders.openvino import OpenVinoEmbedder
from rag_serving.lake.field_types import Sha256
from rag_serving.lake.object_store import ABSENT, ObjectStore

Make = Callable[[ObjectStore, EmbedderIdentity], npt.NDArray[np.float32]]

VECTORS_MANIFEST: Final = "boundary_vectors.json"
DIMENSIONS: Final = 256
_SIF: Final = 1e-4
_ROWS_OF_A_BATCH: Final = 512
_STREAMS: Final = 2


class VectorsManifest(BaseModel):
    """The manifest of a model's static vectors; their file is named by its content."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    fingerprint: str = Field(description="the embedder that they were distilled from")
    sha256: Sha256
    tokens: int = Field(ge=1)
    dimensions: int = Field(ge=1)

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"boundary_vectors-{self.sha256[:16]}.npy"


@dataclass(frozen=True, slots=True)
class Distillation:
    """A model's static vectors in the lake, and whether this call distilled them."""

    manifest: VectorsManifest
    created: bool
    bytes: int
    seconds: float


def ensure_distilled(objects: ObjectStore, identity: EmbedderIdentity, make: Make | None = None) -> Distillation:
    """Return the static vectors of the model; distil them if they are missing or altered.

    Concurrent or interrupted calls are harmless: the file is named by its content, and the manifest is written last,
    conditionally, so that the first call wins.
    """
    started = time.monotonic()
    identity = _distillable(objects, identity)
    key = _key(identity)
    stored = objects.get(key)
    if stored is not None:
        try:
            manifest = _manifest(stored.data, identity)
            size = len(_read(objects, identity, manifest))
            return Distillation(manifest, False, size, time.monotonic() - started)
        except LakeCorrupt:
            pass
    matrix = (make or distil)(objects, identity).astype(np.float16)
    file = io.BytesIO()
    np.save(file, matrix, allow_pickle=False)
    data = file.getvalue()
    manifest = VectorsManifest(
        format=1,
        fingerprint=identity.fingerprint,
        sha256=hashlib.sha256(data).hexdigest(),
        tokens=matrix.shape[0],
        dimensions=matrix.shape[1],
    )
    objects.put(_path(identity, manifest), data)
    try:
        objects.put(key, manifest.model_dump_json(indent=1).encode(), expect=ABSENT if stored is None else stored.etag)
    except WriteConflict:
        return ensure_distilled(objects, identity, make)
    return Distillation(manifest, True, len(data), time.monotonic() - started)


def are_distilled(objects: ObjectStore, identity: EmbedderIdentity) -> bool:
    """Return whether the lake contains the model's static vectors."""
    source = identity if identity.runtime == "openvino" else find_exported(objects, PACKAGED_MODEL)
    return source is not None and objects.get(_key(source)) is not None


def load_vectors(objects: ObjectStore, identity: EmbedderIdentity) -> StaticVectors:
    """Load the model's static vectors; distil them if there are none. Raises `LakeCorrupt` if they are altered."""
    identity = _distillable(objects, identity)
    stored = objects.get(_key(identity))
    manifest = ensure_distilled(objects, identity).manifest if stored is None else _manifest(stored.data, identity)
    matrix = np.load(io.BytesIO(_read(objects, identity, manifest)), allow_pickle=False)
    return StaticVectors(matrix, manifest.sha256)


def distil(objects: ObjectStore, identity: EmbedderIdentity) -> npt.NDArray[np.float32]:
    """Return a weighted vector per token of the model's vocabulary, with at most `DIMENSIONS` dimensions."""
    embedder = load_embedder(objects, identity.fingerprint, streams=_STREAMS)
    if not isinstance(embedder, OpenVinoEmbedder):
        raise TypeError(f"{identity.model} is a hosted model; its vocabulary is not embedded through an API")
    tokenizer = load_tokenizer(objects, identity)
    count = max(tokenizer.get_vocab().values()) + 1
    before, after = _around(tokenizer)
    alone = [[*before, token, *after] for token in range(count)]
    vectors = embedder.embed_tokens(alone, most_rows=_ROWS_OF_A_BATCH)
    return weighted(reduced(vectors, DIMENSIONS), unseen={*before, *after, *_markers(tokenizer)})


def reduced(vectors: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """Project the centred vectors onto their principal axes."""
    centred = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / len(centred)
    _, axes = np.linalg.eigh(covariance)  # by increasing variance
    return centred @ axes[:, ::-1][:, :dimensions].astype(np.float32)


def weighted(vectors: npt.NDArray[np.float32], *, unseen: set[int]) -> npt.NDArray[np.float32]:
    """Apply SIF's weights ``a / (a + p)`` to a vocabulary sorted by frequency; `unseen` tokens get 0."""
    ranks = np.arange(1, len(vectors) + 1, dtype=np.float64)
    probabilities = (1 / ranks) / (1 / ranks).sum()
    weights = _SIF / (_SIF + probabilities)
    weights[list(unseen)] = 0
    return vectors * weights[:, None].astype(np.float32)


def _distillable(objects: ObjectStore, identity: EmbedderIdentity) -> EmbedderIdentity:
    """Return the embedder to distil: for a hosted model the packaged one, whose tokenizer cuts the passages."""
    return identity if identity.runtime == "openvino" else ensure_exported(objects, PACKAGED_MODEL).identity


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens before and after every text."""
    encoding = tokenizer.encode("a")
    words = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    return encoding.ids[: words[0]], encoding.ids[words[-1] + 1 :]


def _markers(tokenizer: Tokenizer) -> set[int]:
    """Return the special tokens, which have no meaning in a text."""
    added = tokenizer.get_added_tokens_decoder()
    return {number for number, token in added.items() if token.special}


def _key(identity: EmbedderIdentity) -> str:
    return f"{MODELS}/{identity.fingerprint}/{VECTORS_MANIFEST}"


def _path(identity: EmbedderIdentity, manifest: VectorsManifest) -> str:
    return f"{MODELS}/{identity.fingerprint}/{manifest.file}"


def _manifest(data: bytes, identity: EmbedderIdentity) -> VectorsManifest:
    try:
        manifest = VectorsManifest.model_validate_json(data)
    except ValidationError as error:
        raise LakeCorrupt(f"{VECTORS_MANIFEST} of embedder {identity.fingerprint} is malformed; {_MEND}") from error
    if manifest.fingerprint != identity.fingerprint:
        raise LakeCorrupt(f"{VECTORS_MANIFEST} of embedder {identity.fingerprint} belongs to another embedder; {_MEND}")
    return manifest


def _read(objects: ObjectStore, identity: EmbedderIdentity, manifest: VectorsManifest) -> bytes:
    stored = objects.get(_path(identity, manifest))
    if stored is None or hashlib.sha256(stored.data).hexdigest() != manifest.sha256:
        raise LakeCorrupt(f"{manifest.file} of embedder {identity.fingerprint} is missing or altered; {_MEND}")
    return stored.data


_MEND: Final = "materialize boundary_vectors again"
