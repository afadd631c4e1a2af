"""Where a text can be cut: at items, lines, sentences and white space. Pure functions that do not count tokens."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from rag_assets.extraction.document import BlockKind

# A dot before a lower-case word is more often an abbreviation than an end; CJK marks have no space after them.
_SENTENCE_END = re.compile(
    r"""[.!?…]["'”’»)\]]*+(?=\s++[^\sa-z])|[。！？｡](?![。！？｡])[」』）】”’]*+""",
)
# In a text without capitals, a dot after a word that is too long for an abbreviation is an end.
_SMALL_SENTENCE_END = re.compile(
    r"""(?:[!?…]|(?:(?<=[^\W\d_]{4})|(?<=\d{4})|(?<=[)%\]"”]))\.)["'”’»)\]]*+(?=\s)|[。！？｡](?![。！？｡])[」』）】”’]*+""",
)
_CAPITAL = re.compile(r"[^\W\d_a-zß-öø-ÿ]")
_LINE_END = re.compile(r"\n")
# If the next line starts in lower case, the line was only wrapped.
_FULL_LINE_END = re.compile(r"\n(?=\s*[^\sa-z])")
_ENDS: Final = (".", "!", "?", "…", "。", "！", "？", "｡")
_CLOSING: Final = "\"'”’»)]」』）】"
_ITEM = re.compile(r"^([ \t]*)(?:[-*+•]|\d{1,9}[.)])[ \t]", re.MULTILINE)
_GAPS: Final = (" ", "\n", "\t", "\u3000", "、", "，")
LEAD_IN: Final = (":", "：")
# Combining marks, joiners and variation selectors belong to the character before them.
_JOINED = re.compile(r"[\u0300-\u036f\u200d\u3099\u309a\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]")

# Returns the offsets where text[start:end] can be cut, ascending.
Splitter = Callable[[str, int, int], list[int]]


def split_near(text: str, start: int, cut: int) -> int:
    """Return where to cut a text that begins at `start`: at `cut` or before it, but after `start`."""
    gap = _gap_before(text, (start + cut) // 2, cut)
    if gap is not None and gap > start:
        return gap
    near = cut
    while near > start + 1 and (_JOINED.match(text, near) or text[near - 1] == "\u200d"):
        near -= 1
    return near if near > start + 1 else max(cut, start + 1)


def _gap_before(text: str, low: int, high: int) -> int | None:
    """Return the offset after the last white space (or CJK comma) in `text[low:high]`."""
    found = max(text.rfind(gap, low, high) for gap in _GAPS)
    return found + 1 if found >= 0 else None


def halves(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut into two parts of about the same length; raise ValueError for a single character."""
    if end - start < 2:
        raise ValueError(f"the character U+{ord(text[start]):04X} has more tokens than fit into the window")
    middle = (start + end + 1) // 2
    return spans_between(text, start, end, [split_near(text, start, min(middle + (end - start) // 8, end - 1))])


def spans_between(text: str, start: int, end: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the spans of `text[start:end]` between the cuts, stripped, without empty ones."""
    spans: list[tuple[int, int]] = []
    for low, high in zip([start, *cuts], [*cuts, end], strict=True):
        piece = text[low:high]
        first = low + len(piece) - len(piece.lstrip())
        last = low + len(piece.rstrip())
        if first < last:
            spans.append((first, last))
    return spans


def at_sentences(text: str, start: int, end: int) -> list[int]:
    """Return the ends of sentences."""
    return [match.end() for match in _SENTENCE_END.finditer(text, start, end)]


def sentence_starts(text: str, start: int, end: int) -> list[int]:
    """Return the ends of sentences and of lines that were not only wrapped, ascending."""
    small = _CAPITAL.search(text, start, end) is None
    sentence_end, line_end = (_SMALL_SENTENCE_END, _LINE_END) if small else (_SENTENCE_END, _FULL_LINE_END)
    found = {match.end() for match in sentence_end.finditer(text, start, end)}
    found.update(match.end() for match in line_end.finditer(text, start, end))
    return sorted(found)


def ends_sentence(text: str, end: int) -> bool:
    """Return whether a sentence ends there."""
    return text[max(0, end - 4) : end].rstrip(_CLOSING).endswith(_ENDS)


def at_lines(text: str, start: int, end: int) -> list[int]:
    """Return the ends of lines."""
    return [match.end() for match in _LINE_END.finditer(text, start, end)]


def at_items(text: str, start: int, end: int) -> list[int]:
    """Return the starts of the outermost list items after `start`; another call cuts nested lists."""
    items = [match for match in _ITEM.finditer(text, start, end) if match.start() > start]
    indents = [len(match[1].expandtabs(4)) for match in items]
    outermost = min(indents, default=0)
    return [match.start() for match, indent in zip(items, indents, strict=True) if indent == outermost]


SPLITTERS: Final[dict[BlockKind, tuple[Splitter, ...]]] = {
    BlockKind.HEADING: (at_sentences,),
    BlockKind.PARAGRAPH: (at_sentences, at_lines),
    BlockKind.LIST: (at_items, at_items, at_items, at_lines, at_sentences),
    BlockKind.TABLE: (at_lines,),
    BlockKind.CODE: (at_lines,),
}
