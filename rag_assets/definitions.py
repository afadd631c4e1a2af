"""The Dagster code location: everything in `rag_assets/defs`, the pipeline's definitions and those that you add."""

from pathlib import Path

import dagster as dg

from rag_assets.defs.build import build_definitions


@dg.definitions
def defs() -> dg.Definitions:
    project = Path(__file__).resolve().parents[1]
    if (project / "pyproject.toml").exists():
        return dg.load_from_defs_folder(path_within_project=project)
    return build_definitions()  # installed from a wheel: there is no project to look for definitions in
