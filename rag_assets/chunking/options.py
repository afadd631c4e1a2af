"""Build the chunker of the settings."""

from dataclasses import dataclass
from typing import Final

from tokenizers import Tokenizer

from rag_assets.chunking.passage import Chunker
from rag_assets.chunking.semantic import SemanticChunker
from rag_assets.chunking.static_vectors import StaticVectors
from rag_assets.chunking.structure import DEFAULT_MIN_TOKENS, StructureChunker
from rag_assets.options import CHUNK_TOKENS, SMALLEST_WINDOW, ChunkerName, ContextName

_CONTEXT_ROOM: Final = {"none": 0, "headings": 32, "neighbours": 32}
"""Tokens of the window that are reserved for the context."""


@dataclass(frozen=True, slots=True)
class ChunkerOptions:
    """The chunker, the maximum tokens of a passage, and the context that is embedded with it."""

    name: ChunkerName = "semantic"
    tokens: int = CHUNK_TOKENS
    context: ContextName = "headings"


def make_chunker(
    options: ChunkerOptions, tokenizer: Tokenizer, window: int, vectors: StaticVectors | None = None
) -> Chunker:
    """Return the chunker for a model that reads `window` tokens; the semantic one needs `vectors`."""
    room = max(SMALLEST_WINDOW, window - _CONTEXT_ROOM[options.context])
    most = min(options.tokens, room)
    if options.name == "structure":
        least = min(DEFAULT_MIN_TOKENS, most)
        return StructureChunker(tokenizer, max_tokens=most, min_tokens=least, window=window, context=options.context)
    if vectors is None:
        raise ValueError("the semantic chunker needs static vectors")
    return SemanticChunker(tokenizer, vectors, max_tokens=most, window=window, context=options.context)
