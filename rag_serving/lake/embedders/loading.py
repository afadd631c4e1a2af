"""Load an embedder by fingerprint."""

import logging
from collections.abc import Collection

from rag_serving.errors import EmbedderUnavailable, LakeCorrupt, first_line
from rag_serving.lake.embedders.base import (
    GRAPH,
    TOKENIZER,
    WEIGHTS,
    Embedder,
    check_self_test,
    read_manifest,
    read_model_file,
)
from rag_serving.lake.embedders.hosted import HostedEmbedder, hosted_name
from rag_serving.lake.embedders.openvino import OpenVinoEmbedder
from rag_serving.lake.object_store import ObjectStore

_log = logging.getLogger(__name__)


def load_embedder(
    objects: ObjectStore,
    fingerprint: str,
    *,
    streams: int = 1,
    cores: int | None = None,
    low_priority: bool = False,
    hosted: Collection[str] = (),
) -> Embedder:
    """Load an exported embedder from the lake; checks the hashes of its files and its self-test.

    It uses no more than `cores`, or all of the machine. `hosted` has litellm's names of the models that texts may be
    sent to: the lake alone must not decide that. Raises `EmbedderUnavailable` if the embedder does not exist or may
    not be used, or `LakeCorrupt` if a file is missing, altered or unusable.
    """
    identity = read_manifest(objects, fingerprint)
    if identity is None:
        raise EmbedderUnavailable(
            f"the lake has no embedder {fingerprint}; materialize embedding_model, or set RAG_LAKE_URI to its lake"
        )
    if identity.runtime == "litellm":
        name = hosted_name(identity.model)
        if name not in hosted:
            raise EmbedderUnavailable(
                f"texts of this lake would be sent to the hosted embedding model {name!r}; to allow that, set "
                f"RAG_HOSTED_EMBEDDERS={','.join(sorted({*hosted, name}))}"
            )
        embedder: Embedder = HostedEmbedder(identity)
        check_self_test(embedder)
        return embedder
    graph, weights, tokenizer = (read_model_file(objects, identity, name) for name in (GRAPH, WEIGHTS, TOKENIZER))
    try:
        embedder = OpenVinoEmbedder(
            identity, graph, weights, tokenizer, streams=streams, cores=cores, low_priority=low_priority
        )
        check_self_test(embedder)
    except LakeCorrupt:
        raise
    except Exception as error:  # OpenVINO's and the tokenizer's errors have no common base class
        _log.warning("cannot load embedder %s: %s", fingerprint, first_line(error))
        raise LakeCorrupt(f"the files of embedder {fingerprint} cannot be loaded; export the model again") from error
    return embedder
