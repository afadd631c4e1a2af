"""Virtual environments of the peers, created on first use, and never with torch's CUDA packages."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "benchmarks" / "peers-requirements.txt"
FOLDER = ROOT / ".venv-peers"
_SILENT = {
    "ANONYMIZED_TELEMETRY": "False",
    "COCOINDEX_DISABLE_USAGE_TRACKING": "1",
    "DO_NOT_TRACK": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "TRANSFORMERS_OFFLINE": "1",
}


class EnvironmentUnavailable(Exception):
    """The peers cannot be installed; the message is the reason."""


def peers_python(folder: Path = FOLDER, requirements: Path = REQUIREMENTS) -> Path:
    """Return the Python of the peers' environment; install the environment if it is missing or out of date.

    Raises `EnvironmentUnavailable`.
    """
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = folder / ".requirements.sha256"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing the peers into {folder.name} (takes minutes the first time)", file=sys.stderr)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    _refuse_cuda(python, requirements)
    _run([*_pip(python), "--requirement", str(requirements)])
    stamp.write_text(wanted)
    return python


def quiet_environment() -> dict[str, str]:
    """Return this process's variables with downloads and telemetry of the peers turned off."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | _SILENT


def _refuse_cuda(python: Path, requirements: Path) -> None:
    torch = next((line for line in requirements.read_text().splitlines() if line.startswith("torch==")), None)
    if torch is None:
        return
    planned = json.loads(_run([*_pip(python), "--dry-run", "--report", "-", torch]))
    names = [package["metadata"]["name"] for package in planned["install"]]
    if any(name.startswith(("nvidia", "cuda")) for name in names):
        raise EnvironmentUnavailable(
            "pip would install torch with CUDA packages; set PIP_EXTRA_INDEX_URL to PyTorch's CPU index"
        )


def _pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise EnvironmentUnavailable("; ".join(errors or done.stderr.splitlines()[-1:])[:300])
    return done.stdout
