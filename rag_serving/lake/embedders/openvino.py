"""The OpenVINO runtime of exported embedders; it needs no torch. The protocol and the identity are in `base`.

The pipeline and serving load the very same exported files, so a question and a passage meet in one vector space.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np

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

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

_TELEMETRY = "openvino_telemetry"
_LAYERS_KEPT = 64
"""Layers prepared for a shape that OpenVINO keeps, for throughput: preparing a batch's anew takes 1 to 2 ms, and the
5,000 of its default took 350 MB more at the same speed."""


@contextmanager
def no_usage_reports() -> Generator[None]:
    """Import OpenVINO, or convert a model, without its usage statistics.

    OpenVINO reports from a forked process each time it is imported. Its only opt-outs are a file in the home folder and
    variables that mark continuous integration, which child processes would inherit. Where its telemetry package cannot
    be imported it uses a stub instead; None in `sys.modules` is Python's documented way to make an import fail. A
    process that imported OpenVINO before, elsewhere, has reported that already and keeps its telemetry.
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
    """An exported graph (transformer, pooling, normalisation) run by OpenVINO on the CPU.

    OpenVINO computes in bf16 where the CPU has it and in fp32 elsewhere. `streams` is how many batches run at once:
    one for questions, two for throughput. Batches of all threads that call at the same time share the streams; whoever
    wants them without a gap calls from two threads, so that one text's tokens are made while another's are embedded.
    With `low_priority`, all of it leaves the processor to whatever else this process has to do.
    """

    def __init__(
        self,
        identity: EmbedderIdentity,
        graph: bytes,
        weights: bytes,
        tokenizer: bytes,
        *,
        streams: int = 1,
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
        if streams > 1:
            # Several processes may embed at once, and each would be pinned to the same first cores.
            config["ENABLE_CPU_PINNING"] = "NO"

        def compiled() -> Any:
            if streams > 1:
                # Not among its documented properties: where a version does without, it costs memory alone.
                with suppress(RuntimeError):
                    return core.compile_model(model, "CPU", {**config, "CPU_RUNTIME_CACHE_CAPACITY": str(_LAYERS_KEPT)})
            return core.compile_model(model, "CPU", config)

        self._compiled: Any = with_low_priority(compiled) if low_priority else compiled()
        # Twice as many threads as streams: the next batch waits inside OpenVINO while Python sees to the last.
        self._threads = ThreadPoolExecutor(
            2 * streams, thread_name_prefix="embed", initializer=lower_priority if low_priority else None
        )
        self._local = local()

    @property
    def identity(self) -> EmbedderIdentity:
        return self._identity

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self.embed_tokens(self._tokens([self._identity.document_prompt + text for text in texts]))

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        return self.embed_queries([text])[0]

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        encoded = self._tokens([self._identity.query_prompt + text for text in texts])
        # OpenVINO keeps kernels and memory for each shape that it met: with many, a client grows with its questions.
        batches = batches_of_few_shapes([len(tokens) for tokens in encoded])
        return self._embed_batches(encoded, batches, width_step=WIDTH_STEP)

    def fits(self, text: str) -> bool:
        """Whether the question is read whole, or would be cut at the window."""
        encoding = self._tokenizer.encode(self._identity.query_prompt + text)
        return not encoding.overflowing

    def embed_tokens(self, encoded: Sequence[Sequence[int]], *, most_rows: int = BATCH_ROWS) -> npt.NDArray[np.float32]:
        """Vectors of texts that are tokens already, special ones included; none may be beyond the window."""
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
