"""The OpenVINO runtime of exported embedders, without torch. The protocol and the identity are in `base`.

The pipeline and serving load the same exported files, so their vectors are comparable.
"""

import os
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt

from rag_serving.concurrency.thread_priority import lower_priority, with_low_priority
from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.lake.embedders.batching import (
    BATCH_ROWS,
    BATCH_TOKENS,
    CALL_TOKENS,
    WIDTH_STEP,
    batches_by_length,
    batches_of_few_shapes,
    rounded_up,
)

_TELEMETRY = "openvino_telemetry"
_LAYERS_KEPT = 64
"""Layers compiled for a shape that OpenVINO caches for throughput. Compiling those of a batch takes 1 to 2 ms; its
default of 5,000 layers took 350 MB more at the same speed."""


@contextmanager
def no_usage_reports() -> Generator[None]:
    """Disable OpenVINO's usage statistics while it is imported or converts a model.

    OpenVINO reports from a forked process on every import. Its only opt-outs are a file in the home folder and
    variables of continuous integration, which child processes would inherit. If its telemetry package cannot be
    imported, it uses a stub; None in `sys.modules` is Python's documented way to make an import fail. This has no
    effect if the process has imported OpenVINO before.
    """
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        if before is None:
            sys.modules.pop(_TELEMETRY, None)
        else:
            sys.modules[_TELEMETRY] = before


class OpenVinoEmbedder:
    """An exported graph (transformer, pooling, normalization) run by OpenVINO on the CPU.

    OpenVINO computes in bf16 if the CPU supports it, otherwise in fp32. `streams` is the number of concurrent batches:
    one for low latency, two for throughput. All calling threads share the streams; call from two threads to tokenize
    one text while another is embedded. With `low_priority`, its threads yield to the rest of the process.
    """

    def __init__(
        self,
        identity: EmbedderIdentity,
        graph: bytes,
        weights: bytes,
        tokenizer: bytes,
        *,
        streams: int = 1,
        cores: int | None = None,
        low_priority: bool = False,
    ) -> None:
        from tokenizers import Tokenizer

        with no_usage_reports():
            import openvino
        self._identity = identity
        self._tokenizer: Tokenizer = Tokenizer.from_str(tokenizer.decode())
        self._tokenizer.enable_truncation(identity.window)
        self._tokenizer.no_padding()
        core = openvino.Core()
        model = core.read_model(graph, weights)
        hint = "LATENCY" if streams == 1 else "THROUGHPUT"
        config: dict[str, Any] = {"PERFORMANCE_HINT": hint, "NUM_STREAMS": str(streams)}
        if cores is not None and cores < (os.cpu_count() or 1):
            config["INFERENCE_NUM_THREADS"] = str(max(streams, cores))  # OpenVINO knows nothing of a container's quota
        if streams > 1:
            # Several processes may embed at the same time, and all would be pinned to the same cores.
            config["ENABLE_CPU_PINNING"] = "NO"

        def compiled() -> Any:
            if streams > 1:
                # An undocumented property; without it a version only uses more memory.
                with suppress(RuntimeError):
                    return core.compile_model(model, "CPU", {**config, "CPU_RUNTIME_CACHE_CAPACITY": str(_LAYERS_KEPT)})
            return core.compile_model(model, "CPU", config)

        self._compiled: Any = with_low_priority(compiled) if low_priority else compiled()
        # Twice as many threads as streams: the next batch waits inside OpenVINO while Python handles the last one.
        self._threads = ThreadPoolExecutor(
            2 * streams, thread_name_prefix="embed", initializer=lower_priority if low_priority else None
        )
        self._local = local()

    @property
    def identity(self) -> EmbedderIdentity:
        """The embedder's identity."""
        return self._identity

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed passages in batches of similar length."""
        return self.embed_tokens(self._tokens([self._identity.document_prompt + text for text in texts]))

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """Embed one question."""
        return self.embed_queries([text])[0]

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed questions in batches of few distinct shapes."""
        encoded = self._tokens([self._identity.query_prompt + text for text in texts])
        # OpenVINO keeps kernels and memory for every shape, so memory would grow with the variety of questions.
        batches = batches_of_few_shapes([len(tokens) for tokens in encoded])
        return self._embed_batches(encoded, batches, width_step=WIDTH_STEP)

    def fits(self, text: str) -> bool:
        """Return whether a question fits into the window."""
        encoding = self._tokenizer.encode(self._identity.query_prompt + text)
        return not encoding.overflowing

    def embed_tokens(self, encoded: Sequence[Sequence[int]], *, most_rows: int = BATCH_ROWS) -> npt.NDArray[np.float32]:
        """Embed tokenized texts, which include special tokens and must fit into the window."""
        batches = batches_by_length(encoded, most_tokens=BATCH_TOKENS, most_rows=most_rows, most_padding=CALL_TOKENS)
        return self._embed_batches(encoded, batches, width_step=1)

    def _embed_batches(
        self, encoded: Sequence[Sequence[int]], batches: Sequence[Sequence[int]], *, width_step: int
    ) -> npt.NDArray[np.float32]:
        vectors = np.empty((len(encoded), self._identity.dimensions), dtype=np.float32)
        running = [
            (rows, self._threads.submit(self._infer, [encoded[row] for row in rows], width_step)) for rows in batches
        ]
        try:
            for rows, batch in running:
                vectors[rows] = batch.result()
        finally:
            for _, batch in running:
                batch.cancel()
        return vectors

    def _tokens(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def _infer(self, batch: Sequence[Sequence[int]], width_step: int) -> npt.NDArray[np.float32]:
        request: Any = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer(self._padded(batch, width_step), share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    def _padded(self, batch: Sequence[Sequence[int]], width_step: int) -> dict[str, npt.NDArray[np.int64]]:
        width = max(len(batch[0]), min(rounded_up(len(batch[0]), width_step), self._identity.window))
        ids = np.zeros((len(batch), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: known[name] for name in self._identity.inputs}
