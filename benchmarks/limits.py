"""Measure the raw limit of this machine: the exported embedding graph alone, on batches without padding."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag_serving.lake.embedders.base import EmbedderIdentity

STREAMS = 2
"""Concurrent batches, as in the pipeline."""


def raw_limit(lake: str, *, seconds: float, length: int = 128, rows: int = 16) -> float:
    """Return the tokens per second of the exported graph alone, on batches of `rows` texts of `length` tokens."""
    import openvino

    identity, graph, weights = _exported(lake)
    core = openvino.Core()
    model = core.read_model(graph, weights)
    model.reshape({port: [rows, length] for port in model.inputs})
    compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(STREAMS)})
    queue = openvino.AsyncInferQueue(compiled, STREAMS)
    inputs = _full_batch(identity, rows, length)
    for _ in range(8):
        queue.start_async(inputs)
    queue.wait_all()
    batches, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        queue.start_async(inputs)
        batches += 1
    queue.wait_all()
    return batches * rows * length / (time.perf_counter() - started)


def best_raw_limit(lake: str, *, seconds: float, length: int, rows: Iterable[int]) -> tuple[float, int]:
    """Return the highest raw limit over several batch sizes, and the size that reached it."""
    return max((raw_limit(lake, seconds=seconds, length=length, rows=size), size) for size in rows)


def _exported(lake: str) -> tuple[EmbedderIdentity, bytes, bytes]:
    from rag_assets.models.export import find_exported
    from rag_assets.options import PACKAGED_MODEL
    from rag_serving.lake.embedders.base import GRAPH, MODELS, WEIGHTS
    from rag_serving.lake.object_store import open_object_store

    objects = open_object_store(lake)
    identity = find_exported(objects, PACKAGED_MODEL)
    assert identity is not None
    graph, weights = (objects.get(f"{MODELS}/{identity.fingerprint}/{name}") for name in (GRAPH, WEIGHTS))
    assert graph is not None
    assert weights is not None
    return identity, graph.data, weights.data


def _full_batch(identity: EmbedderIdentity, rows: int, length: int) -> dict[str, Any]:
    import numpy as np

    ids = np.random.default_rng(0).integers(1000, 20_000, (rows, length))
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: known[name] for name in identity.inputs}
