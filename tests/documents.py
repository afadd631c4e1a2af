"""Parse a document in the test's own process."""

from pathlib import Path
from typing import Final

import pytest

from rag_assets.extraction.document import ExtractedDocument
from rag_assets.extraction.errors import ExtractionError
from rag_assets.extraction.registry import read_object

_CASES: Final = Path(__file__).parent / "unit/extraction/cases"


def extract(data: bytes, key: str) -> ExtractedDocument:
    """Return the document of an object without its attachments."""
    return read_object(data, key).parts[0].document


def pieces(data: bytes, key: str) -> list[tuple[str, str]]:
    """Return kind and text of the blocks of an object."""
    document = extract(data, key)
    return [(str(block.kind), document.text[block.start : block.end]) for block in document.blocks]


def refusal(data: bytes, key: str) -> ExtractionError:
    """Return the error of an object that cannot be read."""
    with pytest.raises(ExtractionError) as caught:
        extract(data, key)
    return caught.value


def case(name: str) -> ExtractedDocument:
    """Return the document of a file in `tests/unit/extraction/cases`, without its attachments."""
    return extract(case_bytes(name), name)


def case_bytes(name: str) -> bytes:
    """Return the content of a file in `tests/unit/extraction/cases`."""
    return (_CASES / name).read_bytes()


def blocks_of(document: ExtractedDocument) -> list[tuple[str, str]]:
    """Return the kind and the text of each block."""
    return [(str(block.kind), document.text[block.start : block.end]) for block in document.blocks]
