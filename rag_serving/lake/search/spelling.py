"""Forgive one typo in a word of a question that no passage found has."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import pyarrow as pa

_SHORTEST: Final = 5
"""Letters of the shortest word to correct: shorter ones have too many neighbours."""


def may_be_misspelt(word: str, rows: pa.Table) -> bool:
    """Return whether a word of a question is long enough to correct and missing from all rows that it was sought in."""
    return len(word) >= _SHORTEST and word.isalpha() and not any(f" {word} " in stored for stored in _padded(rows))


def corrections(misspelt: Sequence[str], rows: pa.Table) -> dict[str, str]:
    """Return the word of the rows that differs by one typo, for each misspelt one that no row has as it is."""
    present = list(dict.fromkeys(word for stored in _padded(rows) for word in stored.split()))
    corrected: dict[str, str] = {}
    for word in misspelt:
        near = [other for other in present if is_one_edit(word, other)]
        if word not in present and near:
            corrected[word] = near[0]
    return corrected


def _padded(rows: pa.Table) -> Iterator[str]:
    stored: list[str] = cast("Any", rows["words"]).to_pylist()
    return (f" {words} " for words in stored)


def is_one_edit(one: str, other: str) -> bool:
    """Return whether a letter added, left out, replaced or swapped with the next turns one word into the other."""
    if one == other or abs(len(one) - len(other)) > 1:
        return False
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    rest, other_rest = one[same:], other[same:]
    if len(one) != len(other):
        return rest[1:] == other_rest or rest == other_rest[1:]
    swapped = rest[:2] == other_rest[1::-1]
    return rest[1:] == other_rest[1:] or (swapped and rest[2:] == other_rest[2:])
