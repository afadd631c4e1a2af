"""Forgive one typo in a word of a question that no passage found has."""

from collections.abc import Iterable
from typing import Any, Final, cast

import pyarrow as pa

_SHORTEST: Final = 5
"""Letters of the shortest word to correct: shorter ones have too many neighbours."""


def misspelt(asked: Iterable[str], found: Iterable[pa.Table]) -> list[str]:
    """Return the words of a question that are long enough to correct and missing from all rows that it found."""
    missing = [word for word in asked if len(word) >= _SHORTEST and word.isalpha()]
    for rows in found:
        present = _present(rows) if missing else {}
        missing = [word for word in missing if word not in present]
    return missing


def corrections(unknown: Iterable[str], rows: pa.Table) -> dict[str, str]:
    """Return the word of the rows that differs by one typo, for each unknown one that no row has as it is."""
    present = _present(rows)
    corrected: dict[str, str] = {}
    for word in unknown:
        near = [other for other in present if is_one_edit(word, other)]
        if word not in present and near:
            corrected[word] = near[0]
    return corrected


def _present(rows: pa.Table) -> dict[str, None]:
    """Return the words of the rows, those of the first row first."""
    stored: list[str] = cast("Any", rows["words"]).to_pylist()
    return dict.fromkeys(word for words in stored for word in words.split(" "))


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
