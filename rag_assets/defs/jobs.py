"""The one job over the whole chain of a shard, and the one that exports the model."""

import dagster as dg

from rag_assets.defs.assets import SHARD_ASSETS, boundary_vectors, embedding_model

INDEX_SHARD = "index_shard"
EXPORT_MODEL = "export_model"

index_shard = dg.define_asset_job(
    INDEX_SHARD,
    selection=dg.AssetSelection.assets(*SHARD_ASSETS),
    description="Bring one shard from its source objects to its published table. Safe to run again at any time.",
)

export_model = dg.define_asset_job(
    EXPORT_MODEL,
    selection=dg.AssetSelection.assets(embedding_model, boundary_vectors),
    description="Export the configured embedding model into the lake, and distil its static vectors.",
)
