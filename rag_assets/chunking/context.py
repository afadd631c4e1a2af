"""The context that is embedded in front of a passage: what it is about, which its own text may not say."""

from collections.abc import Iterator, Sequence
from typing import Final

from rag_assets.chunking.boundaries import sentence_starts
from rag_assets.chunking.tokens import DocumentTokens
from rag_assets.options import ContextName

CONTEXT_VERSIONS: Final[dict[str, str]] = {"headings": "headings-1", "neighbours": "neighbours-1"}
NEIGHBOUR_TOKENS: Final = 20
_NEIGHBOUR_CHARACTERS: Final = 1000
_HEADING_CHARACTERS: Final = 400


def contexts(
    name: ContextName,
    title: str,
    path: tuple[str, ...],
    section_start: int,
    tokens: DocumentTokens,
    start: int,
) -> Iterator[str]:
    """Yield possible contexts of the passage that starts there, the longest first."""
    if name == "headings":
        words = [title, *path] if path[:1] != (title,) else [*path]
        # A passage that begins with its heading needs no context for it.
        yield from _headings(words[:-1] if path and start == section_start else words)
    elif name == "neighbours":
        yield from _neighbours(tokens, section_start, start)


def _headings(words: Sequence[str]) -> Iterator[str]:
    words = [word[:_HEADING_CHARACTERS] for word in words if word]
    for first in range(len(words)):
        yield " > ".join(words[first:]) + "\n"


def _neighbours(tokens: DocumentTokens, section_start: int, start: int) -> Iterator[str]:
    low = max(section_start, start - _NEIGHBOUR_CHARACTERS)
    for cut in sentence_starts(tokens.text, low, start):
        if tokens.count(cut, start) <= NEIGHBOUR_TOKENS:
            yield tokens.text[cut:start].lstrip()
