"""JSON and JSON Lines: values with the path of their keys; a block per object, or per line."""

import json
from typing import Any, Final

from rag_assets.extraction.decoding import decode
from rag_assets.extraction.document import BlockKind, DocumentBuilder, ExtractedDocument
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.data.records import Number, add_records, too_deep

JSON_MEDIA_TYPE: Final = "application/json"
JSON_LINES_MEDIA_TYPE: Final = "application/jsonl"


def extract_json(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is invalid, nested too deeply or too large."""
    document = DocumentBuilder(JSON_MEDIA_TYPE)
    add_records(document, parse_json(decode(data)))
    return document.build()


def extract_json_lines(data: bytes) -> ExtractedDocument:
    """Parse a file with a value per line; invalid lines are kept as text, because logs often end in half a line."""
    document = DocumentBuilder(JSON_LINES_MEDIA_TYPE)
    for line in decode(data).split("\n"):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ExtractionError:
            document.add(BlockKind.PARAGRAPH, line)
        else:
            add_records(document, value)
    return document.build()


def parse_json(text: str) -> Any:
    """Return the value of a text; raise ExtractionError if it is invalid or nested too deeply."""
    try:
        return json.loads(text, parse_int=Number, parse_float=Number)
    except json.JSONDecodeError as error:
        detail = f"invalid JSON in line {error.lineno}, column {error.colno}: {error.msg}; correct it"
        raise ExtractionError(QuarantineReason.MALFORMED, detail) from error
    except RecursionError as error:
        raise too_deep() from error
