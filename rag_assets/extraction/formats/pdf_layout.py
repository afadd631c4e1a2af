"""Positions on a PDF page: columns that were drawn row by row, and the labels of form fields."""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from statistics import mean, median
from typing import Any, Final

# In heights of a line: the least gap between columns, and how far lines of a column are indented or apart.
_GAP: Final = 1.0
_INDENT: Final = 2.5
_STEP: Final = 2.5
# Columns of prose differ from those of a table: their lines are many, long, of similar length and equally spaced.
_MIN_LINES: Final = 4
_FULL_LINES: Final = 0.6
_WORDS: Final = 3
_NUMBERS: Final = 0.3
_LONG: Final = 0.7
_LONG_LINES: Final = 0.6
_EVEN: Final = 0.25
_EVEN_STEPS: Final = 0.85
# Pages with more lines are drawings or made to take time.
_MAX_LINES: Final = 2_000
_MAX_COMPARISONS: Final = 400_000
"""Of the lines with the fields of a page; beyond it, values follow the text."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on a page, in points from the lower left corner."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def height(self) -> float:
        """Return the height in points."""
        return self.top - self.bottom


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a line without a large gap."""

    text: str
    box: Box


Line = tuple[Segment, ...]
"""The segments of a line from left to right."""


def read_lines(text_page: Any, texts: list[str]) -> list[Line]:
    """Return the lines of a page that are not blank, split at large gaps; empty if there are too many.

    `texts` are the lines of PDFium's text of the page.
    """
    if len(texts) > _MAX_LINES:
        return []
    characters = _Characters(text_page)
    return [line for text, start in _with_starts(texts) if (line := tuple(_segments(characters, text, start)))]


def may_have_columns(text_page: Any, texts: list[str]) -> bool:
    """Return whether two successive ones of every second line have large gaps, which is quicker than to read all."""
    characters = _Characters(text_page)
    sample = [(text, start) for text, start in _with_starts(texts[:_MAX_LINES]) if " " in text.strip()][::2]
    has_gap = False
    for text, start in sample:
        had_gap, has_gap = has_gap, len(list(islice(_segments(characters, text, start), 2))) > 1
        if had_gap and has_gap:
            return True
    return False


def _with_starts(texts: list[str]) -> Iterator[tuple[str, int]]:
    start = 0
    for text in texts:
        yield text, start
        start += len(text) + len("\r\n")


class _Characters:
    """The boxes of a page's characters, by their positions in its text."""

    def __init__(self, text_page: Any) -> None:
        import pypdfium2.raw  # pyright: ignore[reportMissingTypeStubs]

        raw: Any = pypdfium2.raw
        self._index_at = raw.FPDFText_GetCharIndexFromTextIndex
        self._box_of = raw.FPDFText_GetCharBox
        self._page = text_page.raw
        self._left, self._right, self._bottom, self._top = (ctypes.c_double() for _ in range(4))

    def box(self, position: int) -> Box:
        character = self._index_at(self._page, position)
        if not self._box_of(self._page, character, self._left, self._right, self._bottom, self._top):
            return Box(0, 0, 0, 0)
        return Box(self._left.value, self._bottom.value, self._right.value, self._top.value)


def _segments(characters: _Characters, text: str, start: int) -> Iterator[Segment]:
    words: list[str] = []
    boxes: list[Box] = []
    position = start
    for word in text.split(" "):
        if word:
            first = characters.box(position)
            last = first if len(word) == 1 else characters.box(position + len(word) - 1)
            box = Box(first.left, min(first.bottom, last.bottom), last.right, max(first.top, last.top))
            if boxes and box.left - boxes[-1].right > _GAP * max(box.height, boxes[-1].height):
                yield _segment(words, boxes)
                words, boxes = [], []
            words.append(word)
            boxes.append(box)
        position += len(word) + 1
    if words:
        yield _segment(words, boxes)


def _segment(words: list[str], boxes: list[Box]) -> Segment:
    bottom, top = min(box.bottom for box in boxes), max(box.top for box in boxes)
    return Segment(" ".join(words), Box(boxes[0].left, bottom, boxes[-1].right, top))


def columns_in_order(lines: list[Line]) -> list[Line] | None:
    """Return the lines with each column of prose as lines of its own; None if there are no such columns.

    Tables, which have columns, too, are left as they are.
    """
    ordered: list[Line] = []
    found = False
    position = 0
    while position < len(lines):
        end = _end_of_columns(lines, position)
        run = lines[position:end]
        if _is_prose(run):
            found = True
            starts = [segment.box.left for segment in max(run, key=len)]
            for column in range(len(starts)):
                ordered += [(segment,) for line in run for segment in line if _column_of(segment, starts) == column]
        else:
            ordered += run
        position = end
    return ordered if found else None


def _end_of_columns(lines: list[Line], position: int) -> int:
    """Return where the lines end whose segments start at the same places as those of the line at `position`."""
    first = lines[position]
    end = position + 1
    if len(first) == 1:
        return end
    starts = [segment.box.left for segment in first]
    while end < len(lines) and _is_below(lines[end - 1], lines[end]) and _fits(lines[end], starts):
        end += 1
    return end


def _is_below(line: Line, following: Line) -> bool:
    step = line[0].box.top - following[0].box.top
    return 0 < step <= _STEP * max(following[0].box.height, line[0].box.height)


def _fits(line: Line, starts: list[float]) -> bool:
    columns = [_column_of(segment, starts) for segment in line]
    return -1 not in columns and all(before < after for before, after in pairwise(columns))


def _column_of(segment: Segment, starts: list[float]) -> int:
    """Return the column that a segment starts in and does not leave; -1 if there is none."""
    tolerance = _INDENT * segment.box.height
    for column, start in enumerate(starts):
        following = starts[column + 1] if column + 1 < len(starts) else float("inf")
        if abs(segment.box.left - start) <= tolerance and segment.box.right < following:
            return column
    return -1


def _is_prose(run: list[Line]) -> bool:
    columns = max(map(len, run))
    full = [line for line in run if len(line) == columns]
    if columns == 1 or len(full) < max(_MIN_LINES, _FULL_LINES * len(run)):
        return False
    steps = [above[0].box.top - below[0].box.top for above, below in pairwise(run)]
    usual = median(steps)
    if mean(abs(step - usual) <= _EVEN * usual for step in steps) < _EVEN_STEPS:
        return False
    return all(_is_prose_column([line[column] for line in full]) for column in range(columns))


def _is_prose_column(segments: list[Segment]) -> bool:
    words = [word for segment in segments for word in segment.text.split()]
    numbers = sum(not any(map(str.isalpha, word)) for word in words)
    widths = [segment.box.right - segment.box.left for segment in segments]
    long = mean(width >= _LONG * max(widths) for width in widths)
    return len(words) >= _WORDS * len(segments) and numbers <= _NUMBERS * len(words) and long >= _LONG_LINES


def with_values(lines: list[Line], values: list[Segment]) -> list[Line]:
    """Return the lines with the values of form fields, each after the label to the left of it or above it."""
    segments = [list(line) for line in lines]
    few = len(lines) * len(values) <= _MAX_COMPARISONS
    for value in values:
        place = _label_of(value.box, segments) if few else None
        if place is None:
            segments.append([value])
            continue
        line, index = place
        label = segments[line][index]
        segments[line][index] = replace(label, text=f"{label.text} {value.text}")
    return [tuple(line) for line in segments]


def _label_of(box: Box, lines: list[list[Segment]]) -> tuple[int, int] | None:
    """Return the line and the index of the segment beside a field, else of the one above it; None if there is none."""
    middle = (box.bottom + box.top) / 2
    best: tuple[float, int, int] | None = None
    for number, line in enumerate(lines):
        for index, segment in enumerate(line):
            label = segment.box
            distance = box.left - label.left
            is_beside = label.bottom - label.height / 2 <= middle <= label.top + label.height / 2 and distance >= 0
            is_above = 0 <= label.bottom - box.top + label.height / 2 <= 2 * label.height and label.right > box.left
            if is_above and label.left < box.right and not is_beside:
                distance = 10_000 + label.bottom - box.top
            elif not is_beside:
                continue
            if best is None or distance < best[0]:
                best = distance, number, index
    return None if best is None else best[1:]
