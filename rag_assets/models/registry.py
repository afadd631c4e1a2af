"""The models that this process has loaded, so that its runs share them.

They are cached by fingerprint, which is read from the lake each time, so that a running process uses a new export.
"""

from functools import lru_cache

from rag_assets.chunking.options import ChunkerOptions, make_chunker
from rag_assets.chunking.passage import Chunker
from rag_assets.models.export import ensure_exported, exported_fingerprint
from rag_assets.models.static_vectors import load_vectors
from rag_assets.models.torch_embedder import TorchEmbedder, gpu_is_there
from rag_assets.options import RuntimeName
from rag_assets.storage.lake import open_lake
from rag_serving.errors import EmbedderUnavailable
from rag_serving.lake.embedders.base import (
    Embedder,
    EmbedderIdentity,
    check_self_test,
    load_tokenizer,
    passage_tokens,
    read_manifest,
)
from rag_serving.lake.embedders.hosted import hosted_name
from rag_serving.lake.embedders.loading import load_embedder


def warm_identity(lake_uri: str, model: str) -> EmbedderIdentity:
    """Return the identity of the model's embedder; export it into the lake if needed."""
    objects = open_lake(lake_uri).objects
    fingerprint = exported_fingerprint(objects, model)
    if fingerprint is not None:
        try:
            return _identity(lake_uri, fingerprint)
        except EmbedderUnavailable:  # its files were removed; export them again
            pass
    return ensure_exported(objects, model).identity


def warm_embedder(lake_uri: str, model: str, runtime: RuntimeName = "auto", cores: int = 2) -> Embedder:
    """Return the model's embedder; `auto` uses torch if there is a GPU. Hosted models ignore `runtime`."""
    return _embedder(lake_uri, warm_identity(lake_uri, model).fingerprint, model, runtime, cores)


def warm_chunker(lake_uri: str, model: str, options: ChunkerOptions) -> Chunker:
    """Return the chunker for the model's window and tokens; distil its static vectors into the lake if needed."""
    return _chunker(lake_uri, warm_identity(lake_uri, model).fingerprint, options)


@lru_cache(maxsize=4)
def _identity(lake_uri: str, fingerprint: str) -> EmbedderIdentity:
    identity = read_manifest(open_lake(lake_uri).objects, fingerprint)
    if identity is None:
        raise EmbedderUnavailable(f"the lake {lake_uri} does not contain embedder {fingerprint}")
    return identity


@lru_cache(maxsize=2)
def _embedder(lake_uri: str, fingerprint: str, model: str, runtime: RuntimeName, cores: int) -> Embedder:
    identity = _identity(lake_uri, fingerprint)
    if identity.runtime == "openvino" and (runtime == "torch" or (runtime == "auto" and gpu_is_there())):
        embedder = TorchEmbedder(identity)
        check_self_test(embedder)
        return embedder
    objects = open_lake(lake_uri).objects
    # RAG_EMBEDDING_MODEL is the permission to send texts to a hosted model.
    return load_embedder(objects, fingerprint, streams=max(2, cores), cores=cores, hosted=(hosted_name(model),))


@lru_cache(maxsize=2)
def _chunker(lake_uri: str, fingerprint: str, options: ChunkerOptions) -> Chunker:
    identity = _identity(lake_uri, fingerprint)
    objects = open_lake(lake_uri).objects
    tokenizer = load_tokenizer(objects, identity)
    vectors = load_vectors(objects, identity) if options.name == "semantic" else None
    return make_chunker(options, tokenizer, passage_tokens(identity, tokenizer), vectors)
