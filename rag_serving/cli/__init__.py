"""The `rag-serving` command line."""
