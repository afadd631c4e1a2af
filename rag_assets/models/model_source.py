"""What an embedding model consists of before it is exported, whatever its origin.

`packaged` provides the default model and `torch_export` every other one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rag_assets.options import PACKAGED_MODEL
from rag_serving.lake.embedders.base import SELF_TEST_TEXT

if TYPE_CHECKING:
    from openvino import Model

PROBES = (
    SELF_TEST_TEXT,
    "Parental leave",
    "会議は毎週火曜日の午前十時に行われます。",
    "Set `timeout = 30` in config.toml; error E-4012 means that the pump's certificate has expired.",
    "Travel within the region is reimbursed at cost up to 85 euros a day. Receipts are kept for ten years. " * 12,
)
"""Texts that an exported graph must embed like the reference implementation."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model as an OpenVINO graph from token ids to unit vectors, with what identifies it."""

    graph: "Model"
    inputs: tuple[str, ...]
    tokenizer: bytes
    """The tokenizer.json."""
    weights_sha256: str
    window: int
    """Maximum tokens of a text, including special tokens."""
    pooling: str
    probes: npt.NDArray[np.float32]
    """Unit vectors of `PROBES` by sentence-transformers in fp32, shape ``(len(PROBES), dimensions)``."""
    self_test: npt.NDArray[np.float32]
    """Unit vector of the self-test's text, with the document prompt in front."""
    query_prompt: str = ""
    document_prompt: str = ""


def is_packaged(model: str) -> bool:
    """Return whether the name is that of the packaged model."""
    return model in (PACKAGED_MODEL, f"sentence-transformers/{PACKAGED_MODEL}")
