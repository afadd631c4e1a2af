"""Parse a document in the test's own process."""

from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.registry import read_object


def extract(data: bytes, key: str) -> ExtractedDocument:
    """Return the document of an object without its attachments."""
    return read_object(data, key).parts[0].document
