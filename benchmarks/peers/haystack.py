"""Haystack: a pipeline of `DocumentSplitter`, `SentenceTransformersDocumentEmbedder` and `DocumentWriter`.

The document store is lancedb-haystack, a community package that Haystack lists among its integrations. Haystack's
splitters count words, or tokens of a vocabulary that is downloaded, but not those of the embedding model. The number of
words is chosen so that few chunks of prose exceed the window; the model does not read the excess.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.peers.contract import WARM_UP, Task, answer

WORDS = 120
DIMENSIONS = 384


def prepare(task: Task) -> Callable[[], int]:
    """Load the model and return the ingestion."""
    import pyarrow as pa
    from haystack import Document, Pipeline
    from haystack.components.preprocessors import DocumentSplitter
    from haystack.components.writers import DocumentWriter
    from haystack.utils import ComponentDevice
    from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersDocumentEmbedder
    from lancedb_haystack import LanceDBDocumentStore

    embedder = SentenceTransformersDocumentEmbedder(
        model=str(task.model), device=ComponentDevice.from_str("cpu"), progress_bar=False, normalize_embeddings=True
    )
    embedder.warm_up()
    embedder.run(documents=[Document(content=WARM_UP)])

    def ingest() -> int:
        documents = [Document(content=path.read_text("utf-8"), meta={"source": key}) for key, path in task.files()]
        store = LanceDBDocumentStore(
            database=str(task.target),
            table_name="chunks",
            metadata_schema=pa.struct([("source", pa.string()), ("source_id", pa.string())]),
            embedding_dims=DIMENSIONS,
        )
        pipeline = Pipeline()
        pipeline.add_component("splitter", DocumentSplitter(split_by="word", split_length=WORDS, split_overlap=0))
        pipeline.add_component("embedder", embedder)
        pipeline.add_component("writer", DocumentWriter(document_store=store))
        pipeline.connect("splitter", "embedder")
        pipeline.connect("embedder", "writer")
        pipeline.run({"splitter": {"documents": documents}})
        return len(documents)

    return ingest


if __name__ == "__main__":
    answer(prepare, distribution="haystack-ai")
