"""LlamaIndex: `IngestionPipeline` of `SentenceSplitter` and `HuggingFaceEmbedding` into `LanceDBVectorStore`.

The splitter counts with the model's tokenizer, as in the guide on tokenization. The default batch of ten is raised.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.peers.contract import BATCH_ROWS, MAX_TOKENS, WARM_UP, Task, answer


def prepare(task: Task) -> Callable[[], int]:
    """Load the model and return the ingestion."""
    from llama_index.core import Document
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from llama_index.vector_stores.lancedb import LanceDBVectorStore
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(task.model))
    embedding = HuggingFaceEmbedding(model_name=str(task.model), device="cpu", embed_batch_size=BATCH_ROWS)
    embedding.get_text_embedding(WARM_UP)

    def ingest() -> int:
        documents = [Document(text=path.read_text("utf-8"), id_=key) for key, path in task.files()]
        pipeline = IngestionPipeline(
            transformations=[
                SentenceSplitter(chunk_size=MAX_TOKENS, chunk_overlap=0, tokenizer=tokenizer.encode),
                embedding,
            ],
            vector_store=LanceDBVectorStore(uri=str(task.target), table_name="chunks"),
        )
        pipeline.run(documents=documents)
        return len(documents)

    return ingest


if __name__ == "__main__":
    answer(prepare, distribution="llama-index-core")
