"""Plain text: empty lines separate paragraphs, and the text is kept as it is."""

import re

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import Block, BlockKind, ExtractedDocument

TEXT_MEDIA_TYPE = "text/plain"

# A line that is not blank and all such lines that follow it.
_PARAGRAPH = re.compile(r"^[^\n]*\S[^\n]*(?:\n[^\n]*\S[^\n]*)*", re.MULTILINE)


def extract_text(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its encoding is unknown."""
    return text_document(decode(data))


def text_document(text: str) -> ExtractedDocument:
    """Return the document of a decoded text."""
    text = normalise(text).strip()
    return ExtractedDocument(text, "", TEXT_MEDIA_TYPE, tuple(paragraphs(text, 0, len(text))))


def paragraphs(text: str, start: int, end: int) -> list[Block]:
    """Return the paragraphs of `text[start:end]` as blocks without surrounding white space."""
    blocks: list[Block] = []
    for match in _PARAGRAPH.finditer(text, start, end):
        found = match.group()
        first = match.start() + len(found) - len(found.lstrip())
        blocks.append(Block(BlockKind.PARAGRAPH, first, match.start() + len(found.rstrip())))
    return blocks
