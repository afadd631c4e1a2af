"""Parse a document in the process of the test."""

from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.registry import read_object


def extract(data: bytes, key: str) -> ExtractedDocument:
    """Return the document of the object itself, without its attachments."""
    return read_object(data, key).parts[0].document
