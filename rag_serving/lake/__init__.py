"""The read contract: how published shards, catalog entries and models are stored in the lake.

The pipeline writes these objects, so `rag_assets` imports this package, too. Of the rest of `rag_serving` it imports
only `errors` and `settings`.
"""
