"""The pipeline: Dagster assets that turn arriving documents into published LanceDB tables.

Plain modules do the work and know nothing of Dagster; `rag_assets.defs` holds the thin Dagster objects over them.
"""
