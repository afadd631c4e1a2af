"""Build small lakes for the answering benchmarks: shards of a folder, indexed by real runs of the pipeline.

Call these functions in their own process, so that the memory of Dagster and torch is not counted as the client's.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

STRUCTURE = "structure"
"""A chunker for quick runs: it needs no static vectors, which take a minute to distil."""


def build(source: str, lake: str, keys: Sequence[str] = (), chunker: str = "semantic") -> list[str]:
    """Export the packaged model into a lake, index these shards of a folder (default: all), and return their keys."""
    warnings.simplefilter("ignore")  # torch and transformers warn about their internals
    from rag_assets.models.export import ensure_exported
    from rag_assets.models.static_vectors import ensure_distilled
    from rag_assets.options import PACKAGED_MODEL
    from rag_serving.lake.object_store import open_object_store
    from tests.pipelines import listed_shards, settings_for

    objects = open_object_store(lake)
    exported = ensure_exported(objects, PACKAGED_MODEL)
    if chunker != STRUCTURE:
        ensure_distilled(objects, exported.identity)
    chosen = list(keys) or [shard.key for shard in listed_shards(settings_for(source, lake))]
    index(source, lake, chosen, chunker)
    return chosen


def built(source: str, lake: str, keys: Sequence[str], chunker: str, keep: Path | None) -> None:
    """Build a lake, or copy the one stored in the folder `keep` and index only what changed."""
    stored = None if keep is None else keep / "lake"
    if stored is not None and stored.is_dir():
        shutil.copytree(stored, lake, dirs_exist_ok=True)
        index(source, lake, keys, chunker)
        return
    build(source, lake, keys, chunker)
    if stored is not None:
        shutil.copytree(lake, stored)


def index(source: str, lake: str, keys: Sequence[str], chunker: str = "semantic") -> None:
    """Run the pipeline for each of these shards, then refresh the company index; raises if one of them fails."""
    warnings.simplefilter("ignore")
    import dagster as dg

    from rag_assets.defs.build import build_definitions
    from rag_assets.runs.backfill import refresh_company_index_here
    from tests.pipelines import failure_of, run_shard, settings_for

    settings = settings_for(source, lake, chunker=chunker)
    with dg.DagsterInstance.ephemeral() as instance:
        for key in keys:
            result = run_shard(instance, settings, key)
            if not result.success:
                raise RuntimeError(f"{key} was not indexed: {failure_of(result)}")
        problem = refresh_company_index_here(instance, settings, build_definitions(settings))
        if problem is not None:
            raise RuntimeError(f"the company index was not built: {problem}")


def published(lake: str, keys: Sequence[str]) -> dict[str, set[tuple[str, str]]]:
    """Return the chunk id and text of every published passage, by shard."""
    from tests.pipelines import published_rows

    return {key: {(row["chunk_id"], row["text"]) for row in published_rows(lake, key)} for key in keys}


def texts(lake: str, keys: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return shard, path below the shard and text of every published passage, in order."""
    from tests.pipelines import published_rows

    return [(key, row["path"], row["text"]) for key in keys for row in published_rows(lake, key)]
