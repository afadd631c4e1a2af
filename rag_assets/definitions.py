"""The Dagster code location: the pipeline's definitions, and any that you add to `rag_assets/defs`."""

from pathlib import Path

import dagster as dg

from rag_assets.defs.build import build_definitions


@dg.definitions
def defs() -> dg.Definitions:
    """Return every definition of the code location."""
    project = Path(__file__).resolve().parents[1]
    if (project / "pyproject.toml").exists():
        return dg.load_from_defs_folder(path_within_project=project)
    return build_definitions()  # installed from a wheel, where there is no project folder to load
