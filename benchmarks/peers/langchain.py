"""LangChain: `RecursiveCharacterTextSplitter` on the model's tokenizer, `HuggingFaceEmbeddings`, and `LanceDB`.

The vector store is from langchain-community, as in LangChain's documentation.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.peers.contract import MAX_TOKENS, WARM_UP, Task, answer


def prepare(task: Task) -> Callable[[], int]:
    """Load the model and return the ingestion."""
    from langchain_community.vectorstores import LanceDB
    from langchain_core.documents import Document
    from langchain_huggingface import HuggingFaceEmbeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(task.model))
    embeddings = HuggingFaceEmbeddings(
        model_name=str(task.model), model_kwargs={"device": "cpu"}, encode_kwargs={"normalize_embeddings": True}
    )
    embeddings.embed_documents([WARM_UP])

    def ingest() -> int:
        documents = [
            Document(page_content=path.read_text("utf-8"), metadata={"source": key}) for key, path in task.files()
        ]
        # The splitter does not count special tokens.
        splitter = RecursiveCharacterTextSplitter.from_huggingface_tokenizer(
            tokenizer, chunk_size=MAX_TOKENS - tokenizer.num_special_tokens_to_add(), chunk_overlap=0
        )
        LanceDB.from_documents(
            splitter.split_documents(documents), embeddings, uri=str(task.target), table_name="chunks"
        )
        return len(documents)

    return ingest


if __name__ == "__main__":
    answer(prepare, distribution="langchain-core")
