"""The read contract: how published shards, catalog entries and models are stored in the lake.

The pipeline writes what this package reads, so `rag_assets` imports it too (with `errors` and `settings`, and nothing
else of `rag_serving`).
"""
