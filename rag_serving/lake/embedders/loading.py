"""Load an embedder by fingerprint."""

from rag_serving.errors import EmbedderUnavailable
from rag_serving.lake.embedders.base import (
    GRAPH,
    TOKENIZER,
    WEIGHTS,
    Embedder,
    check_self_test,
    read_manifest,
    read_model_file,
)
from rag_serving.lake.embedders.hosted import HostedEmbedder
from rag_serving.lake.embedders.openvino import OpenVinoEmbedder
from rag_serving.lake.object_store import ObjectStore


def load_embedder(
    objects: ObjectStore,
    fingerprint: str,
    *,
    streams: int = 1,
    cores: int | None = None,
    low_priority: bool = False,
) -> Embedder:
    """Load an exported embedder from the lake; checks the hashes of its files and its self-test.

    It uses no more than `cores`, or all of the machine. Raises `EmbedderUnavailable` if it does not exist, or
    `LakeCorrupt` if a file is missing or altered.
    """
    identity = read_manifest(objects, fingerprint)
    if identity is None:
        raise EmbedderUnavailable(
            f"the lake has no embedder {fingerprint}; materialize embedding_model, or set RAG_LAKE_URI to its lake"
        )
    if identity.runtime == "litellm":
        embedder: Embedder = HostedEmbedder(identity)
    else:
        graph, weights, tokenizer = (read_model_file(objects, identity, name) for name in (GRAPH, WEIGHTS, TOKENIZER))
        embedder = OpenVinoEmbedder(
            identity, graph, weights, tokenizer, streams=streams, cores=cores, low_priority=low_priority
        )
    check_self_test(embedder)
    return embedder
