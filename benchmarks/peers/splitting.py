"""Split texts with other projects' splitters; `benchmarks.quality.peers` runs this program.

``python -m benchmarks.peers.splitting NAME SIZE MODEL_FOLDER`` reads one line of JSON, texts by name, and prints one
line, the spans of each text. If a splitter needs vectors, the program requests them on separate lines, so that all
splitters use the same embedder.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

SEPARATORS = ["\n\n", "\n", ".", "?", "!", " ", ""]
"""The separators with which the paper's recursive splitter scored best."""
WINDOW = 256
BATCH = 2048

Spans = list[tuple[int, int]]
Split = Callable[[str], Spans]


def ask(texts: list[str]) -> Any:
    """Request the vectors of the texts, of shape ``(texts, dimensions)``."""
    import numpy as np

    vectors: list[Any] = []
    for start in range(0, len(texts), BATCH):
        print(json.dumps({"embed": texts[start : start + BATCH]}), flush=True)
        answer = json.loads(sys.stdin.readline())
        flat = np.frombuffer(base64.b64decode(answer["vectors"]), np.float32)
        vectors.append(flat.reshape(-1, answer["dimensions"]))
    return np.concatenate(vectors)


def located(text: str, pieces: list[str]) -> Spans:
    """Return the spans of consecutive pieces in the text."""
    spans: Spans = []
    at = 0
    for piece in pieces:
        piece = piece.strip()
        if not piece:
            continue
        start = text.find(piece, at)
        if start < 0:
            raise ValueError(f"a chunk is not in the text: {piece[:80]!r}")
        spans.append((start, start + len(piece)))
        at = start + len(piece)
    return spans


def tokenizer_in(model: Path) -> Any:
    """Load the model's tokenizer without truncation and padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def recursive(model: Path, size: int) -> Split:
    """Return LangChain's `RecursiveCharacterTextSplitter`, with sizes in the model's tokens."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    tokenizer = tokenizer_in(model)
    splitter = RecursiveCharacterTextSplitter(
        separators=SEPARATORS,
        chunk_size=size,
        chunk_overlap=0,
        length_function=lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
    )
    return lambda text: located(text, splitter.split_text(text))


def chonkie(model: Path, size: int) -> Split:
    """Return Chonkie's `SemanticChunker` with its defaults, except for a size within the model's window."""
    from chonkie import SemanticChunker
    from chonkie.embeddings import BaseEmbeddings

    class Asked(BaseEmbeddings):
        def embed(self, text: str) -> Any:
            return ask([text])[0]

        def embed_batch(self, texts: list[str]) -> Any:
            return list(ask(texts)) if texts else []

        @property
        def dimension(self) -> int:
            return 384

        def get_tokenizer(self) -> Any:
            return tokenizer_in(model)

    chunker = SemanticChunker(embedding_model=Asked(), chunk_size=size)
    return lambda text: located(text, [chunk.text for chunk in chunker.chunk(text)])


def llama_index(_model: Path, _size: int) -> Split:
    """Return LlamaIndex's `SemanticSplitterNodeParser` with its defaults; it has no maximum size."""
    from llama_index.core import Document
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.node_parser import SemanticSplitterNodeParser

    class Asked(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return ask([text])[0].tolist()

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return ask(texts).tolist()

        def _get_query_embedding(self, query: str) -> list[float]:
            return ask([query])[0].tolist()

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

    splitter = SemanticSplitterNodeParser.from_defaults(embed_model=Asked(embed_batch_size=BATCH))
    return lambda text: located(
        text, [node.get_content() for node in splitter.get_nodes_from_documents([Document(text=text)])]
    )


SPLITTERS: dict[str, tuple[Callable[[Path, int], Split], str]] = {
    "recursive": (recursive, "langchain-text-splitters"),
    "chonkie": (chonkie, "chonkie"),
    "llama_index": (llama_index, "llama-index-core"),
}


def main() -> None:
    """Split the texts of standard input."""
    name, size, model = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    make, distribution = SPLITTERS[name]
    split = make(model, size)
    texts: dict[str, str] = json.loads(sys.stdin.readline())
    spans = {key: split(text) for key, text in texts.items()}
    print(json.dumps({"version": version(distribution), "spans": spans}), flush=True)


if __name__ == "__main__":
    main()
