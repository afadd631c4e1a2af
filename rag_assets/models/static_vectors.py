"""Static token vectors, distilled once from the embedding model and kept beside its graph in the lake.

The sum of a sentence's token vectors says what it is about at a hundredth of the model's cost, which is enough to find
where a text changes its subject. The recipe is model2vec's (Minish Lab, 2024: each token of the vocabulary embedded
alone, then PCA and weights by frequency), with the weights of SIF (Arora et al., 2017) and frequencies that follow from
the rank in the vocabulary by Zipf's law.
"""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_assets.chunking.static_vectors import StaticVectors
from rag_assets.models.export import ensure_exported, find_exported
from rag_assets.options import PACKAGED_MODEL
from rag_serving.errors import LakeCorrupt, WriteConflict
from rag_serving.lake.embedders.base import MODELS, EmbedderIdentity, load_tokenizer
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.embedders.openvino import OpenVinoEmbedder
from rag_serving.lake.object_store import ABSENT, ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from tokenizers import Tokenizer

    Make = Callable[[ObjectStore, EmbedderIdentity], npt.NDArray[np.float32]]

VECTORS_MANIFEST: Final = "boundary_vectors.json"
DIMENSIONS: Final = 256
_SIF: Final = 1e-4
_ROWS_OF_A_BATCH: Final = 512
_STREAMS: Final = 2


class VectorsManifest(BaseModel):
    """What the lake says of one model's static vectors: the file that holds them, named by its content."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    fingerprint: str = Field(description="the embedder that they were distilled from")
    sha256: str = Field(min_length=64, max_length=64)
    tokens: int = Field(ge=1)
    dimensions: int = Field(ge=1)

    @property
    def file(self) -> str:
        return f"boundary_vectors-{self.sha256[:16]}.npy"


@dataclass(frozen=True, slots=True)
class Distillation:
    """A model's static vectors in the lake, and whether this call put them there."""

    manifest: VectorsManifest
    created: bool
    bytes: int
    seconds: float


def ensure_distilled(objects: ObjectStore, identity: EmbedderIdentity, make: Make | None = None) -> Distillation:
    """The static vectors of the model, distilled now if they are not in the lake or not as they were written.

    The file is named by its content and the manifest is written last, only where there is none yet: of two makers at
    once the first decides, and one that is killed midway leaves nothing that is read.
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
    data = _as_file((make or distil)(objects, identity))
    matrix = np.load(io.BytesIO(data))
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
    """Whether the lake holds the model's static vectors."""
    source = identity if identity.runtime == "openvino" else find_exported(objects, PACKAGED_MODEL)
    return source is not None and objects.get(_key(source)) is not None


def load_vectors(objects: ObjectStore, identity: EmbedderIdentity) -> StaticVectors:
    """The model's static vectors, made now if there are none; raises `LakeCorrupt` where the file is altered."""
    identity = _distillable(objects, identity)
    stored = objects.get(_key(identity))
    manifest = ensure_distilled(objects, identity).manifest if stored is None else _manifest(stored.data, identity)
    matrix = np.load(io.BytesIO(_read(objects, identity, manifest)), allow_pickle=False)
    return StaticVectors(matrix, manifest.sha256)


def distil(objects: ObjectStore, identity: EmbedderIdentity) -> npt.NDArray[np.float32]:
    """One weighted vector for each token of the model's vocabulary, shape ``(tokens, DIMENSIONS)`` at most."""
    embedder = load_embedder(objects, identity.fingerprint, streams=_STREAMS)
    if not isinstance(embedder, OpenVinoEmbedder):
        raise TypeError(f"{identity.model} runs elsewhere; its vocabulary is not embedded through an API")
    tokenizer = load_tokenizer(objects, identity)
    count = max(tokenizer.get_vocab().values()) + 1
    before, after = _around(tokenizer)
    alone = [[*before, token, *after] for token in range(count)]
    vectors = embedder.embed_tokens(alone, most_rows=_ROWS_OF_A_BATCH)
    return weighted(reduced(vectors, DIMENSIONS), unseen={*before, *after, *_markers(tokenizer)})


def reduced(vectors: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """The vectors less their mean, along their principal axes."""
    centred = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / len(centred)
    _, axes = np.linalg.eigh(covariance)  # by rising variance
    return centred @ axes[:, ::-1][:, :dimensions].astype(np.float32)


def weighted(vectors: npt.NDArray[np.float32], *, unseen: set[int]) -> npt.NDArray[np.float32]:
    """The vectors by SIF's weights ``a / (a + p)``, where vocabularies are sorted by frequency; none for `unseen`."""
    ranks = np.arange(1, len(vectors) + 1, dtype=np.float64)
    probabilities = (1 / ranks) / (1 / ranks).sum()
    weights = _SIF / (_SIF + probabilities)
    weights[list(unseen)] = 0
    return vectors * weights[:, None].astype(np.float32)


def _distillable(objects: ObjectStore, identity: EmbedderIdentity) -> EmbedderIdentity:
    """The embedder to distil; a hosted model's passages are cut by the packaged one's tokenizer, so by its vectors."""
    return identity if identity.runtime == "openvino" else ensure_exported(objects, PACKAGED_MODEL).identity


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the model sees before and after every text."""
    encoding = tokenizer.encode("a")
    words = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    return encoding.ids[: words[0]], encoding.ids[words[-1] + 1 :]


def _markers(tokenizer: Tokenizer) -> set[int]:
    """Tokens that no text means anything by."""
    added = tokenizer.get_added_tokens_decoder()
    return {number for number, token in added.items() if token.special}


def _as_file(matrix: npt.NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, matrix.astype(np.float16), allow_pickle=False)
    return file.getvalue()


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
        raise LakeCorrupt(f"{VECTORS_MANIFEST} of embedder {identity.fingerprint} is of another; {_MEND}")
    return manifest


def _read(objects: ObjectStore, identity: EmbedderIdentity, manifest: VectorsManifest) -> bytes:
    stored = objects.get(_path(identity, manifest))
    if stored is None or hashlib.sha256(stored.data).hexdigest() != manifest.sha256:
        raise LakeCorrupt(f"{manifest.file} of embedder {identity.fingerprint} is missing or altered; {_MEND}")
    return stored.data


_MEND: Final = "materialize boundary_vectors again"
