"""Cuts an extracted document into passages that fit the embedding model's window.

Pure functions of text, tokenizer and static vectors: nothing here stores, embeds or knows a file format. The public
names are those in `__all__`.
"""

from rag_assets.chunking.choice import CHUNK_TOKENS, DEFAULT_CHUNKER, ChunkerName, ChunkerOptions, make_chunker
from rag_assets.chunking.context import ContextName
from rag_assets.chunking.passage import Chunker, Passage
from rag_assets.chunking.semantic import SemanticChunker
from rag_assets.chunking.structure import StructureChunker

__all__ = [
    "CHUNK_TOKENS",
    "DEFAULT_CHUNKER",
    "Chunker",
    "ChunkerName",
    "ChunkerOptions",
    "ContextName",
    "Passage",
    "SemanticChunker",
    "StructureChunker",
    "make_chunker",
]
