"""The code location: what `rag_assets/defs` holds, the pipeline and whatever a project adds beside it."""

from pathlib import Path

import dagster as dg

from rag_assets.defs.build import build_definitions


@dg.definitions
def defs() -> dg.Definitions:
    project = Path(__file__).resolve().parents[1]
    if (project / "pyproject.toml").exists():
        return dg.load_from_defs_folder(path_within_project=project)
    return build_definitions()  # installed from a wheel: there is no project to look for definitions in
