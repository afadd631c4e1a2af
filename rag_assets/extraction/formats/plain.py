"""Plain text: empty lines separate paragraphs, and the text is kept as it is."""

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import ExtractedDocument, paragraphs

TEXT_MEDIA_TYPE = "text/plain"


def extract_text(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is too large or its encoding is unknown."""
    return text_document(decode(data))


def text_document(text: str) -> ExtractedDocument:
    """Return the document of a decoded text."""
    text = normalise(text).strip()
    return ExtractedDocument(text, "", TEXT_MEDIA_TYPE, tuple(paragraphs(text, 0, len(text))))
