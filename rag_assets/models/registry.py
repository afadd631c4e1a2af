"""Models that this process has loaded, so that runs in one process share them."""

from __future__ import annotations

import os
from functools import lru_cache

from rag_assets.chunking.options import DEFAULT_CHUNKER, ChunkerOptions, make_chunker
from rag_assets.chunking.passage import Chunker
from rag_assets.models.export import ensure_exported
from rag_assets.models.static_vectors import load_vectors
from rag_assets.models.torch_embedder import TorchEmbedder, gpu_is_there
from rag_assets.options import RuntimeName
from rag_assets.storage.lake import Lake
from rag_serving.lake.embedders.base import Embedder, EmbedderIdentity, check_self_test, load_tokenizer, passage_tokens
from rag_serving.lake.embedders.loading import load_embedder


@lru_cache(maxsize=4)
def warm_identity(lake_uri: str, model: str) -> EmbedderIdentity:
    """What the embedder of that model is, exported into the lake if it is not there yet."""
    return ensure_exported(Lake(lake_uri).objects, model).identity


@lru_cache(maxsize=2)
def warm_embedder(lake_uri: str, model: str, runtime: RuntimeName = "auto") -> Embedder:
    """The embedder of that model, loaded once for the life of the process.

    `auto` takes torch where there is a GPU. Hosted models have one runtime only.
    """
    identity = warm_identity(lake_uri, model)
    if identity.runtime == "openvino" and (runtime == "torch" or (runtime == "auto" and gpu_is_there())):
        embedder = TorchEmbedder(identity)
        check_self_test(embedder)
        return embedder
    return load_embedder(Lake(lake_uri).objects, identity.fingerprint, streams=max(2, os.cpu_count() or 1))


@lru_cache(maxsize=2)
def warm_chunker(lake_uri: str, model: str, options: ChunkerOptions = DEFAULT_CHUNKER) -> Chunker:
    """The chunker that fits the model's window, in the model's own tokens.

    The semantic one's vectors are distilled into the lake if they are not there yet.
    """
    identity = warm_identity(lake_uri, model)
    objects = Lake(lake_uri).objects
    tokenizer = load_tokenizer(objects, identity)
    vectors = load_vectors(objects, identity) if options.name == "semantic" else None
    return make_chunker(options, tokenizer, passage_tokens(identity, tokenizer), vectors)
