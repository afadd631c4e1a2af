"""The jobs over assets and checks."""

from typing import Any

import dagster as dg

from rag_assets.runs.names import EXPORT_MODEL, INDEX_SHARD, REFRESH, SHARD_ASSETS, WATCH, Names

AssetJob = Any
"""The result of `dg.define_asset_job`, whose type is not public."""


def build_asset_jobs(names: Names) -> dict[str, AssetJob]:
    """Return the jobs by their names without the prefix."""

    def job(name: str, assets: tuple[str, ...], description: str) -> AssetJob:
        selection = dg.AssetSelection.assets(*(names.asset(asset) for asset in assets))
        return dg.define_asset_job(names.job(name), selection=selection, description=description)

    watched = dg.AssetCheckKey(names.asset("source_objects"), "no_shard_left_behind")
    return {
        INDEX_SHARD: job(
            INDEX_SHARD,
            SHARD_ASSETS,
            "Index one shard, from its source objects to its published table. Idempotent.",
        ),
        EXPORT_MODEL: job(
            EXPORT_MODEL,
            ("embedding_model", "boundary_vectors"),
            "Export the configured embedding model into the lake and distil its static vectors.",
        ),
        REFRESH: job(
            REFRESH,
            ("company_index",),
            "Update the company index to the published versions. Idempotent.",
        ),
        WATCH: dg.define_asset_job(
            names.job(WATCH),
            selection=dg.AssetSelection.checks(watched),
            description="Check that no shard is left behind. Changes nothing.",
        ),
    }
