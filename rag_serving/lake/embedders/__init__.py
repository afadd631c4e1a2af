"""Embedders that serving and the pipeline share, and how they are loaded from the lake."""
