"""YAML: values with the path of their keys. Only the parser's events are read.

No object is constructed, whatever tag the file has, and aliases are not followed, so they cannot multiply.
"""

from collections.abc import Iterator
from typing import Any, Final

import yaml

from rag_assets.extraction.decoding import decode, normalise
from rag_assets.extraction.document import DocumentBuilder, ExtractedDocument
from rag_assets.extraction.errors import ExtractionError, QuarantineReason
from rag_assets.extraction.formats.data.records import MAX_DEPTH, add_records, too_deep
from rag_assets.extraction.formats.plain import text_document

YAML_MEDIA_TYPE: Final = "application/yaml"

MAX_PARSED_CHARACTERS: Final = 16 * 1024 * 1024
"""The parser reads about two megabytes a second. Longer files, which programs write, are read as plain text."""
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})


def extract_yaml(data: bytes) -> ExtractedDocument:
    """Parse a file; raise ExtractionError if it is nested too deeply or too large.

    Files that are not valid YAML, such as templates of it, are read as plain text.
    """
    source = normalise(decode(data))
    document = DocumentBuilder(YAML_MEDIA_TYPE)
    if len(source) > MAX_PARSED_CHARACTERS:
        return text_document(source)
    try:
        for value in _documents(source):
            add_records(document, value)
    except yaml.YAMLError:
        return text_document(source)
    return document.build()


def _documents(source: str) -> Iterator[object]:
    """Yield the value of each document in a file, as dictionaries, lists and strings."""
    parser: Any = yaml
    loader = getattr(parser, "CSafeLoader", parser.SafeLoader)  # libyaml is ten times as fast, if PyYAML has it
    events: Iterator[Any] = parser.parse(source, Loader=loader)
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            yield _value(next(events), events, 0)


def _value(event: Any, events: Iterator[Any], depth: int) -> object:
    if depth > MAX_DEPTH:
        raise too_deep()
    if isinstance(event, yaml.ScalarEvent):
        plain_null = event.implicit[0] and event.value in _NULLS
        return None if plain_null else event.value
    if isinstance(event, yaml.AliasEvent):
        return f"*{event.anchor}"
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[object] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_value(event, events, depth + 1))
        return items
    if isinstance(event, yaml.MappingStartEvent):
        mapping: dict[str, object] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = _value(event, events, depth + 1)
            mapping[str(key)] = _value(next(events), events, depth + 1)
        return mapping
    raise ExtractionError(QuarantineReason.MALFORMED, "unexpected YAML event; save the file again")
