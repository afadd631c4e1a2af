"""Plain text: paragraphs are what empty lines set apart, and the text stays as it was written."""

import re

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import Block, BlockKind, ExtractedDocument

TEXT_MEDIA_TYPE = "text/plain"

# A line with something on it and all such lines that follow it.
_PARAGRAPH = re.compile(r"^[^\n]*\S[^\n]*(?:\n[^\n]*\S[^\n]*)*", re.MULTILINE)


def extract_text(data: bytes) -> ExtractedDocument:
    """Raises ExtractionError where the text is too large or in no known encoding."""
    return text_document(decode(data))


def text_document(text: str) -> ExtractedDocument:
    """The document of a text that is decoded already."""
    text = normalise(text).strip()
    return ExtractedDocument(text, "", TEXT_MEDIA_TYPE, tuple(paragraphs(text, 0, len(text))))


def paragraphs(text: str, start: int, end: int) -> list[Block]:
    """The paragraphs of `text[start:end]`, as blocks without surrounding white space."""
    blocks: list[Block] = []
    for match in _PARAGRAPH.finditer(text, start, end):
        found = match.group()
        first = match.start() + len(found) - len(found.lstrip())
        blocks.append(Block(BlockKind.PARAGRAPH, first, match.start() + len(found.rstrip())))
    return blocks
