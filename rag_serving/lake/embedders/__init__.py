"""Embedders for serving and the pipeline, loaded from the lake."""
