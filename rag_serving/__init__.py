"""Answers from the published tables: client, cache and command line. Never imports dagster, torch or rag_assets."""
