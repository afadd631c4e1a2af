"""Write a distribution with entry points into a folder, as an installer does."""

from __future__ import annotations

from pathlib import Path


def install_package(folder: Path, name: str, code: str, entry_points: str, *, version: str = "1.2") -> None:
    """Write the module `name` with its metadata; it is installed once the folder is on the path."""
    (folder / f"{name}.py").write_text(code)
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(entry_points)
