"""Reads one source object, and what is attached to it, into text with structure, whatever format it came in.

The public names are those in `__all__`; `registry` says how a format is added.
"""

from rag_assets.extraction.document import Block, BlockKind, ExtractedDocument
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.registry import (
    EXTRACTOR_VERSION,
    Part,
    Reading,
    RefusedPart,
    extract,
    heading_text,
    read_object,
)

__all__ = [
    "EXTRACTOR_VERSION",
    "Block",
    "BlockKind",
    "ExtractedDocument",
    "ExtractionError",
    "Part",
    "QuarantineReason",
    "Reading",
    "RefusedPart",
    "extract",
    "heading_text",
    "read_object",
]
