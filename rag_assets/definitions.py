"""The code location: one `Definitions`, nothing else."""

import dagster as dg

from rag_assets.defs.build import build_definitions


@dg.definitions
def defs() -> dg.Definitions:
    return build_definitions()
