"""The `rag-assets` command line."""
