"""Embedders: the protocol, the identity that the lake stores, and the OpenVINO runtime that needs no torch.

The pipeline and serving load the very same exported files, so a question and a passage meet in one vector space.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from threading import local
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_serving.errors import EmbedderUnavailable, LakeCorrupt
from rag_serving.hosted_embedding import HostedEmbedder
from rag_serving.objects import Objects
from rag_serving.priority import give_way, giving_way

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer


MODELS = "models"
MANIFEST = "manifest.json"
GRAPH = "graph.xml"
WEIGHTS = "graph.bin"
TOKENIZER = "tokenizer.json"

SELF_TEST_TEXT = "The quarterly report is due on the third working day of the month."
SELF_TEST_COSINE = 0.999
"""Least cosine between the stored self-test vector and the one made at load; bf16 arithmetic stays above 0.9999."""

_BATCH_TOKENS = 2048
"""Activations of so many tokens still fit the caches; longer batches were slower, shorter ones cost calls."""
_BATCH_ROWS = 32
_CALL_TOKENS = 14
"""What a call of the graph costs beside its tokens, in tokens: 1.5 to 1.9 ms on two cores with AVX-512 bf16."""
_LAYERS_KEPT = 64
"""Layers prepared for a shape that OpenVINO keeps, for throughput: preparing a batch's anew takes 1 to 2 ms, and the
5,000 of its default took 350 MB more at the same speed."""
_WIDTH_STEP = 8
"""Questions are padded to lengths of so many tokens and their multiples."""


class EmbedderIdentity(BaseModel):
    """What makes two vectors comparable. Everything here except `model` and `files` enters the fingerprint."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(1, ge=1, le=1)
    model: str = Field(description="name the model was configured by; for people, not part of the fingerprint")
    weights_sha256: str = Field(min_length=64, max_length=64)
    dimensions: int = Field(ge=1, le=65_536)
    window: int = Field(ge=8, description="most tokens the model reads, special tokens included")
    pooling: str
    normalized: bool
    query_prompt: str = ""
    document_prompt: str = ""
    precision: str = Field("float", description="class of arithmetic: fp32 and bf16 agree to 0.9999, int8 does not")
    runtime: Literal["openvino", "litellm"] = Field("openvino", description="what runs it: a graph here, or an API")
    inputs: tuple[str, ...] = Field((), description="names of the graph's inputs, in order")
    files: dict[str, str] = Field(description="file name to sha256")
    self_test: tuple[float, ...] = Field(description="unit vector of SELF_TEST_TEXT by the reference implementation")

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits naming this embedder."""
        identity = {
            "weights": self.weights_sha256,
            "dimensions": self.dimensions,
            "window": self.window,
            "pooling": self.pooling,
            "normalized": self.normalized,
            "prompts": [self.query_prompt, self.document_prompt],
            "precision": self.precision,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


class Embedder(Protocol):
    """Turns texts into vectors of one space. Safe between threads."""

    @property
    def identity(self) -> EmbedderIdentity: ...

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of shape ``(len(texts), dimensions)``, unit length; texts beyond the window are cut."""
        ...

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """A vector of shape ``(dimensions,)``, unit length."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of shape ``(len(texts), dimensions)``, unit length, of questions that came at the same time."""
        ...

    def fits(self, text: str) -> bool:
        """Whether a question is read whole, or would be cut at the window."""
        ...


@contextmanager
def no_usage_reports() -> Generator[None]:
    """Keep OpenVINO, imported or converting, from sending usage statistics by a forked process.

    It honours no switch of its own, only the variable by which it knows continuous integration.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


class OpenVinoEmbedder:
    """An exported graph (transformer, pooling, normalisation) run by OpenVINO on the CPU.

    OpenVINO computes in bf16 where the CPU has it and in fp32 elsewhere. `streams` is how many batches run at once:
    one for questions, two for throughput. Batches of all threads that call at the same time share the streams; whoever
    wants them without a gap calls from two threads, so that one text's tokens are made while another's are embedded.
    With `gives_way`, all of it leaves the processor to whatever else this process has to do.
    """

    def __init__(
        self,
        identity: EmbedderIdentity,
        graph: bytes,
        weights: bytes,
        tokenizer: bytes,
        *,
        streams: int = 1,
        gives_way: bool = False,
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

        self._compiled: Any = giving_way(compiled) if gives_way else compiled()
        # Twice as many threads as streams: the next batch waits inside OpenVINO while Python sees to the last.
        self._threads = ThreadPoolExecutor(
            2 * streams, thread_name_prefix="embed", initializer=give_way if gives_way else None
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
        return self._embed_batches(encoded, batches, width_step=_WIDTH_STEP)

    def fits(self, text: str) -> bool:
        """Whether the question is read whole, or would be cut at the window."""
        encoding = self._tokenizer.encode(self._identity.query_prompt + text)
        return not encoding.overflowing

    def embed_tokens(
        self, encoded: Sequence[Sequence[int]], *, most_rows: int = _BATCH_ROWS
    ) -> npt.NDArray[np.float32]:
        """Vectors of texts that are tokens already, special ones included; none may be beyond the window."""
        batches = batches_by_length(encoded, most_tokens=_BATCH_TOKENS, most_rows=most_rows, most_padding=_CALL_TOKENS)
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
        width = max(len(batch[0]), min(_rounded_up(len(batch[0]), width_step), self._identity.window))
        ids = np.zeros((len(batch), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: known[name] for name in self._identity.inputs}


def batches_by_length(
    encoded: Sequence[Sequence[int]], *, most_tokens: int, most_rows: int, most_padding: int | None = None
) -> list[list[int]]:
    """Rows of token ids in batches, the longest first: neighbours in length, so that little is spent on padding.

    A batch has at most that many tokens, padding included, and rows, and, where `most_padding` is given, that many
    tokens of padding: of a few texts of all lengths, one more call costs less. A row that is longer alone is a batch of
    its own.
    """
    batches: list[list[int]] = []
    width = padding = 0
    for row in sorted(range(len(encoded)), key=lambda row: len(encoded[row]), reverse=True):
        length = len(encoded[row])
        padding += width - length
        if (
            batches
            and len(batches[-1]) < most_rows
            and (len(batches[-1]) + 1) * width <= most_tokens
            and (most_padding is None or padding <= most_padding)
        ):
            batches[-1].append(row)
        else:
            batches.append([row])
            width, padding = length, 0
    return batches


def batches_of_few_shapes(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of those many tokens in batches, the longest first, whose numbers of rows are powers of two.

    Padded to whole steps of length, questions make some dozens of shapes then, however many are asked.
    """
    rows = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
    batches: list[list[int]] = []
    while rows:
        fit = max(1, _BATCH_TOKENS // _rounded_up(lengths[rows[0]], _WIDTH_STEP))
        most = 1 << (min(len(rows), fit, _BATCH_ROWS).bit_length() - 1)
        batches.append(rows[:most])
        rows = rows[most:]
    return batches


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def read_manifest(objects: Objects, fingerprint: str) -> EmbedderIdentity | None:
    """The stored identity of an embedder, or None; raises `LakeCorrupt`."""
    stored = objects.get(f"{MODELS}/{fingerprint}/{MANIFEST}")
    if stored is None:
        return None
    try:
        identity = EmbedderIdentity.model_validate_json(stored.data)
    except ValidationError as error:
        raise LakeCorrupt(f"the manifest of embedder {fingerprint} is malformed; export the model again") from error
    if identity.fingerprint != fingerprint:
        raise LakeCorrupt(f"the manifest under {fingerprint} describes {identity.fingerprint}; export the model again")
    return identity


def load_embedder(objects: Objects, fingerprint: str, *, streams: int = 1, gives_way: bool = False) -> Embedder:
    """Load an exported embedder from the lake, check its files' hashes and its self-test vector.

    Raises `EmbedderUnavailable` where there is none, `LakeCorrupt` where a file is missing or altered.
    """
    identity = read_manifest(objects, fingerprint)
    if identity is None:
        raise EmbedderUnavailable(
            f"the lake holds no embedder {fingerprint}; materialize embedding_model, or point RAG_LAKE_URI at its lake"
        )
    if identity.runtime == "litellm":
        embedder: Embedder = HostedEmbedder(identity)
    else:
        graph, weights, tokenizer = (_read_file(objects, identity, name) for name in (GRAPH, WEIGHTS, TOKENIZER))
        embedder = OpenVinoEmbedder(identity, graph, weights, tokenizer, streams=streams, gives_way=gives_way)
    check_self_test(embedder)
    return embedder


def load_tokenizer(objects: Objects, identity: EmbedderIdentity) -> Tokenizer:
    """The model's own tokenizer, neither truncating nor padding; raises `LakeCorrupt`."""
    from tokenizers import Tokenizer

    tokenizer: Tokenizer = Tokenizer.from_str(_read_file(objects, identity, TOKENIZER).decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def passage_tokens(identity: EmbedderIdentity, tokenizer: Tokenizer) -> int:
    """Most tokens a passage may have, special tokens included: the window less the document prompt."""
    prompt = identity.document_prompt
    return identity.window - (len(tokenizer.encode(prompt, add_special_tokens=False)) if prompt else 0)


def _read_file(objects: Objects, identity: EmbedderIdentity, name: str) -> bytes:
    stored = objects.get(f"{MODELS}/{identity.fingerprint}/{name}")
    if stored is None or hashlib.sha256(stored.data).hexdigest() != identity.files.get(name):
        raise LakeCorrupt(f"{name} of embedder {identity.fingerprint} is missing or altered; export the model again")
    return stored.data


def check_self_test(embedder: Embedder) -> float:
    """Cosine of the self-test text's vector with the stored one; raises `LakeCorrupt` below `SELF_TEST_COSINE`."""
    vector = embedder.embed_documents([SELF_TEST_TEXT])[0]
    cosine = float(vector @ np.asarray(embedder.identity.self_test, dtype=np.float32))
    if cosine < SELF_TEST_COSINE:
        raise LakeCorrupt(
            f"embedder {embedder.identity.fingerprint} fails its self-test (cosine {cosine:.4f}); export it again"
        )
    return cosine
