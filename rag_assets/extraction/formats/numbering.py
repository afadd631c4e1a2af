"""The numbers of list items and headings in Word documents, computed from the definitions in `numbering.xml`."""

import re
from dataclasses import dataclass, field
from typing import Any, Final

W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"

_LEVELS: Final = 9
_MAX_TEXT: Final = 60
_MAX_DIGITS: Final = 6
_PLACEHOLDER = re.compile(r"%([1-9])")
_ALPHABET: Final = 26
_MAX_REPEATED_LETTERS: Final = 3
_LARGEST_ROMAN: Final = 3999
_ROMAN: Final = (
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"),
    (9, "ix"), (5, "v"), (4, "iv"), (1, "i"),
)  # fmt: skip


def value_of(element: Any, name: str) -> str | None:
    """Return the `val` attribute of a child; None if there is no such child."""
    child = None if element is None else element.find(f"{W}{name}")
    return None if child is None else child.get(f"{W}val")


def small_number(value: str | None, default: int) -> int:
    """Return a number from markup, or the default if it is missing, negative or absurdly large."""
    return int(value) if value is not None and value.isdecimal() and len(value) <= _MAX_DIGITS else default


@dataclass(frozen=True, slots=True)
class _Level:
    """One level of a list: its first number, its format, and its text such as `%1.%2)`."""

    start: int = 1
    number_format: str = "bullet"
    text: str = ""
    legal: bool = False
    """Whether the numbers of the outer levels are written as decimals."""


@dataclass(slots=True)
class _List:
    """A list definition, its levels by paragraph style, and how far it has counted."""

    levels: dict[int, _Level] = field(default_factory=dict[int, _Level])
    styles: dict[str, int] = field(default_factory=dict[str, int])
    counts: dict[int, int] = field(default_factory=dict[int, int])


class Numbering:
    """The lists of one document; `mark` must be called for each numbered paragraph in order.

    Paragraphs refer to a `num`, which refers to a definition and may restart its numbers. All nums of one definition
    continue the same numbers.
    """

    def __init__(self, root: Any) -> None:
        """Read the root of `numbering.xml`; None if the document has no such part."""
        self._lists: dict[str, _List] = {}
        self._restarts: dict[str, dict[int, int]] = {}
        if root is None:
            return
        definitions: dict[str, _List] = {}
        links: dict[str, str] = {}
        for element in root.iterchildren(f"{W}abstractNum"):
            identifier = element.get(f"{W}abstractNumId", "")
            definitions[identifier] = _read_list(element)
            link = value_of(element, "numStyleLink") or value_of(element, "styleLink")
            if definitions[identifier].levels and link:
                links.setdefault(link, identifier)
        for element in root.iterchildren(f"{W}abstractNum"):
            target = links.get(value_of(element, "numStyleLink") or "")
            identifier = element.get(f"{W}abstractNumId", "")
            if target is not None and not definitions[identifier].levels:
                definitions[identifier] = definitions[target]
        for element in root.iterchildren(f"{W}num"):
            self._add_num(element, definitions)

    def _add_num(self, element: Any, definitions: dict[str, _List]) -> None:
        identifier = element.get(f"{W}numId", "")
        found = definitions.get(value_of(element, "abstractNumId") or "", _List())
        replaced: dict[int, _Level] = {}
        restarts: dict[int, int] = {}
        for override in element.iterchildren(f"{W}lvlOverride"):
            number = small_number(override.get(f"{W}ilvl"), 0)
            level = override.find(f"{W}lvl")
            if level is not None:
                replaced[number] = _read_level(level)
            start = value_of(override, "startOverride")
            if start is not None:
                restarts[number] = small_number(start, 1)
        if replaced:
            found = _List({**found.levels, **replaced}, found.styles, found.counts)
        self._lists[identifier] = found
        self._restarts[identifier] = restarts

    def level_of_style(self, number: str, style: str) -> int:
        """Return the level that the list links to a paragraph style."""
        found = self._lists.get(number)
        return 0 if found is None else found.styles.get(style, 0)

    def mark(self, number: str, depth: int) -> str:
        """Count one more paragraph of a list and return its number as displayed; empty for bullets."""
        found = self._lists.get(number)
        if found is None or depth >= _LEVELS:
            return ""
        restarts = self._restarts[number]
        if depth in restarts:
            # The override applies to the first paragraph of this num only.
            found.counts[depth] = restarts.pop(depth) - 1
        level = found.levels.get(depth, _Level())
        found.counts[depth] = found.counts.get(depth, level.start - 1) + 1
        for deeper in range(depth + 1, _LEVELS):
            found.counts.pop(deeper, None)
        if level.number_format in ("bullet", "none"):
            return ""

        def number_at(match: re.Match[str]) -> str:
            outer = int(match[1]) - 1
            definition = found.levels.get(outer, _Level())
            count = found.counts.get(outer, definition.start)
            return _formatted(count, "decimal" if level.legal else definition.number_format)

        return _PLACEHOLDER.sub(number_at, level.text).strip()


def _read_list(element: Any) -> _List:
    found = _List()
    for level in element.iterchildren(f"{W}lvl"):
        number = small_number(level.get(f"{W}ilvl"), 0)
        found.levels[number] = _read_level(level)
        style = value_of(level, "pStyle")
        if style is not None:
            found.styles[style] = number
    return found


def _read_level(element: Any) -> _Level:
    return _Level(
        small_number(value_of(element, "start"), 1),
        value_of(element, "numFmt") or "decimal",
        (value_of(element, "lvlText") or "")[:_MAX_TEXT],
        element.find(f"{W}isLgl") is not None,
    )


def _formatted(number: int, number_format: str) -> str:
    if number_format == "decimalZero":
        return f"{number:02}"
    if number_format in ("lowerLetter", "upperLetter") and 0 < number <= _MAX_REPEATED_LETTERS * _ALPHABET:
        letters = chr(ord("a") + (number - 1) % _ALPHABET) * (1 + (number - 1) // _ALPHABET)
        return letters if number_format == "lowerLetter" else letters.upper()
    if number_format in ("lowerRoman", "upperRoman") and 0 < number <= _LARGEST_ROMAN:
        roman = ""
        for value, letters in _ROMAN:
            roman += letters * (number // value)
            number %= value
        return roman if number_format == "lowerRoman" else roman.upper()
    return str(number)
