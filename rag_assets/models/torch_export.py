"""Convert a sentence-transformers model into an OpenVINO graph. Needs the extra ``rag-shards[torch]``."""

import hashlib
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_assets.errors import ExportError
from rag_assets.models.model_source import PROBES, ModelSource, is_packaged
from rag_assets.models.packaged import packaged_files
from rag_serving.errors import first_line
from rag_serving.lake.embedders.base import SELF_TEST_TEXT
from rag_serving.lake.embedders.openvino import no_usage_reports
from rag_serving.requirements import needs_extra

if TYPE_CHECKING:
    from openvino import Model
    from sentence_transformers import SentenceTransformer


def converted_model(model: str) -> ModelSource:
    """Convert the sentence-transformers model of that name or folder; raises `ExportError` or `MissingExtra`."""
    reference = load_reference(model)
    probes = np.asarray(reference.encode(list(PROBES), normalize_embeddings=True, convert_to_numpy=True))
    with no_usage_reports():
        graph, inputs = _traced(reference)
    prompts = known_prompts(model) | {name: prompt for name, prompt in (reference.prompts or {}).items() if prompt}
    document_prompt = prompts.get("document", "") or prompts.get("passage", "")
    self_test = reference.encode([document_prompt + SELF_TEST_TEXT], normalize_embeddings=True, convert_to_numpy=True)
    return ModelSource(
        graph=graph,
        inputs=inputs,
        tokenizer=_tokenizer_file(reference),
        weights_sha256=weights_hash(reference),
        window=int(reference.max_seq_length or 512),
        pooling=" > ".join(type(module).__name__ for module in reference),
        probes=probes,
        self_test=np.asarray(self_test)[0],
        query_prompt=prompts.get("query", ""),
        document_prompt=document_prompt,
    )


def known_prompts(model: str) -> dict[str, str]:
    """Return the prompts of a family of models whose files do not name them: E5 (Wang and others, 2022)."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    is_e5 = re.search(r"(?:^|-)e5-(?:small|base|large)", name) is not None and "instruct" not in name
    return {"query": "query: ", "document": "passage: "} if is_e5 else {}


def load_reference(model: str) -> "SentenceTransformer":
    """Load the sentence-transformers model of that name or folder on the CPU.

    Raises `ExportError` if it cannot be loaded, or `MissingExtra`.
    """
    with needs_extra("torch", f"the embedding model {model!r}"):
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        if is_packaged(model):
            with packaged_files() as folder:
                return SentenceTransformer(str(folder), device="cpu")
        return SentenceTransformer(model, device="cpu")
    except (OSError, ValueError) as error:
        raise ExportError(
            f"cannot load the model {model!r}: {first_line(error)}; set RAG_EMBEDDING_MODEL to the name or folder of "
            "a sentence-transformers model"
        ) from error


def weights_hash(reference: "SentenceTransformer") -> str:
    """Return the sha256 of all weights, sorted by name, in fp32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(reference.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _tokenizer_file(reference: "SentenceTransformer") -> bytes:
    backend: Any = getattr(reference.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError("the model has no fast tokenizer; only models with a tokenizer.json can be exported")
    return backend.to_str().encode()


def _traced(reference: "SentenceTransformer") -> tuple["Model", tuple[str, ...]]:
    """Return the graph with pooling and normalization, and the names of its inputs."""
    import openvino
    import torch

    features = reference.tokenizer(["a probe of two rows", "one"], padding=True, return_tensors="pt")
    names = tuple(name for name in ("input_ids", "attention_mask", "token_type_ids") if name in features)

    class Whole(torch.nn.Module):
        """The model from token ids to unit vectors."""

        def __init__(self) -> None:
            super().__init__()
            self.reference = reference

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            output = self.reference(dict(zip(names, tensors, strict=True)))
            return torch.nn.functional.normalize(output["sentence_embedding"], p=2, dim=1)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about every fixed shape; the probes check the result
        graph = openvino.convert_model(Whole().eval(), example_input=tuple(features[name] for name in names))
    for name, port in zip(names, graph.inputs, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    graph.validate_nodes_and_infer_types()
    return graph, names
