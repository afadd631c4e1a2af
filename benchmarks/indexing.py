"""Run the job `index_shard` with everything loaded, in this process or in one that a stress test kills.

The program ``python -m benchmarks.indexing SOURCE MODEL_LAKE SHARD`` prints "ready", reads the URI of a lake from each
line of standard input, indexes into it, and prints "done" or "failed". Imports take seconds at the start; indexing then
begins immediately, so that a kill hits the indexing.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import dagster as dg

from rag_assets.chunking.options import ChunkerOptions
from rag_assets.defs.build import build_definitions
from rag_assets.models.registry import warm_chunker, warm_embedder, warm_identity
from rag_assets.pipeline import Pipeline
from rag_assets.runs.names import INDEX_SHARD, Names
from rag_assets.settings import PipelineSettings
from rag_serving.lake.embedders.base import Embedder, EmbedderIdentity
from rag_serving.lake.shards import Shard


@dataclass(frozen=True)
class PipelineWithModel(Pipeline):
    """Loads the embedder from one lake, so that the lakes that it writes to need no model."""

    model_lake: str = ""

    def identity(self) -> EmbedderIdentity:
        return warm_identity(self.model_lake, self.settings.embedding_model)

    def embedder(self) -> Embedder:
        return warm_embedder(self.model_lake, self.settings.embedding_model)

    def chunker(self) -> Any:
        return warm_chunker(self.model_lake, self.settings.embedding_model, ChunkerOptions())


class Indexer:
    """Indexes one shard of one source into any lake."""

    def __init__(self, source: str, model_lake: str, shard: Shard) -> None:
        self.source = source
        self.model_lake = model_lake
        self.shard = shard

    def load(self) -> None:
        """Load everything that a run loads on first use."""
        import lancedb  # noqa: F401

        self._job(self.model_lake)
        pipeline = self._pipeline(self.model_lake)
        pipeline.embedder().embed_documents(["A first text costs more than any other."])
        pipeline.chunker()

    def index(self, lake: str) -> dg.ExecuteInProcessResult:
        """Run the job once; check `.success` of the result."""
        job = self._job(lake)
        with dg.DagsterInstance.ephemeral() as instance:
            Names().add_shards(instance, [self.shard])
            return job.execute_in_process(
                partition_key=self.shard.key,
                instance=instance,
                raise_on_error=False,
                tags={"rag/allow_mass_delete": "true"},
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )

    def _job(self, lake: str) -> dg.JobDefinition:
        return build_definitions(self._settings(lake), {"pipeline": self._pipeline(lake)}).resolve_job_def(INDEX_SHARD)

    def _settings(self, lake: str) -> PipelineSettings:
        return PipelineSettings.model_validate({"source_uri": self.source, "lake_uri": lake})

    def _pipeline(self, lake: str) -> PipelineWithModel:
        return PipelineWithModel(self._settings(lake), model_lake=self.model_lake)


def main() -> None:
    """Index into the lakes named on standard input."""
    warnings.simplefilter("ignore")
    source, model_lake, shard = sys.argv[1:]
    indexer = Indexer(source, model_lake, Shard.parse(shard))
    indexer.load()
    print("ready", flush=True)
    for line in sys.stdin:
        result = indexer.index(line.strip())
        print("done" if result.success else "failed", flush=True)


if __name__ == "__main__":
    main()
