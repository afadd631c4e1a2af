"""Nested data as readable text: a line per value with the path of its keys, and a block per object."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from rag_assets.extraction.document import BlockKind, DocumentBuilder, one_line
from rag_assets.extraction.errors import ExtractionError, QuarantineReason

MAX_DEPTH: Final = 100
MAX_CHARACTERS: Final = 64 * 1024 * 1024
"""Limit of the text, because every value repeats the path of its keys."""
_MAX_KEY: Final = 100
_SHOWN_NUMBERS: Final = 20
_MANY_NUMBERS: Final = 100
_SHORT: Final = 80


class Number(str):
    """A number as the file has it, so that no digit is lost."""

    __slots__ = ()


def add_records(document: DocumentBuilder, value: object) -> None:
    """Append the blocks of a value made of mappings, lists and scalars.

    Values without words (null, empty) are left out, and of long lists of numbers only the first ones are kept. Raises
    ExtractionError: malformed if it is nested too deeply, too_large if its text is.
    """
    writer = _RecordWriter(document)
    writer.add("", value, 0)
    writer.end_block()


def too_deep() -> ExtractionError:
    """Return the error of data that is nested too deeply to be read."""
    detail = f"values are nested more than {MAX_DEPTH} levels deep; check that brackets are closed"
    return ExtractionError(QuarantineReason.MALFORMED, detail)


@dataclass(slots=True)
class _RecordWriter:
    document: DocumentBuilder
    characters: int = 0
    _lines: list[str] = field(default_factory=list[str])

    def add(self, path: str, value: object, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise too_deep()
        if isinstance(value, Mapping):
            self._add_mapping(path, cast("Mapping[str, object]", value), depth)
        elif isinstance(value, list):
            self._add_list(path, cast("list[object]", value), depth)
        else:
            self._add_line(path, _scalar(value))

    def end_block(self) -> None:
        lines, self._lines = self._lines, []
        self.document.add(BlockKind.PARAGRAPH, "\n".join(lines))

    def _add_mapping(self, path: str, value: Mapping[str, object], depth: int) -> None:
        for key, child in value.items():
            name = one_line(str(key), _MAX_KEY)
            if _is_nested(child):
                self.end_block()
            self.add(f"{path}.{name}" if path else name, child, depth + 1)
            if _is_nested(child):
                self.end_block()

    def _add_list(self, path: str, items: list[object], depth: int) -> None:
        if len(items) > _MANY_NUMBERS and _is_numeric(items):
            shown = ", ".join(_scalar(item) for item in items[:_SHOWN_NUMBERS])
            self._add_line(path, f"{shown}, … ({len(items)} values)")
        elif all(not _is_nested(item) and len(_scalar(item)) <= _SHORT for item in items):
            self._add_line(path, ", ".join(filter(None, map(_scalar, items))))
        else:
            for item in items:
                self.add(path, item, depth + 1)
                if _is_nested(item):
                    self.end_block()

    def _add_line(self, path: str, text: str) -> None:
        if not text:
            return
        line = f"{path}: {text}" if path else text
        self.characters += len(line)
        if self.characters > MAX_CHARACTERS:
            detail = f"its values have more than {MAX_CHARACTERS // 2**20} million characters; split the file"
            raise ExtractionError(QuarantineReason.TOO_LARGE, detail)
        self._lines.append(line)


def _is_nested(value: object) -> bool:
    """Return whether a value has objects inside, so that it gets blocks of its own."""
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list) and any(isinstance(item, Mapping | list) for item in cast("list[object]", value))


def _is_numeric(items: list[Any]) -> bool:
    """Return whether a list has only numbers, such as a vector, or lists of numbers, such as a line on a map."""
    return all(
        isinstance(number, Number)
        for item in items
        for number in (cast("list[object]", item) if isinstance(item, list) else [item])
    )


def _scalar(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(str, cast("list[object]", value))) + "]"
    return str(value).strip()
