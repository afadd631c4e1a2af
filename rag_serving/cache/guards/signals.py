"""What speaks softly for or against a hit: numbers between nought and a few, each the greater the more doubtful.

The names and their order are the model's contract; a calibration file names those that it weighs. Words are compared by
stems, with a few spelling mistakes and synonyms forgiven.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from rag_serving.cache.guards import lexicon
from rag_serving.cache.guards.particulars import Question
from rag_serving.cache.guards.words import singular, spaced

EVIDENCE_DEPTH: Final = 5
"""Passages of each question that are compared: below them the ranking is noise."""

NAMES: Final = (
    "distance",
    "other_words",
    "swapped_words",
    "other_light",
    "letters",
    "kind",
    "tense",
    "order",
    "one_sided",
)
"""The signals in order; see `wording`."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One passage that was retrieved for a question; a question has a sequence of them, best first."""

    chunk_id: str
    content_hash: str
    score: float | None = None
    cited: bool = False
    """Whether the answer rests on it; known for cached questions alone."""


def wording(asked: Question, cached: Question, similarity: float) -> tuple[float, ...]:
    """The signals of `NAMES`.

    - `distance`: the angle between the questions' vectors in radians, from the cosine.
    - `other_words`: content words of the cached question that the asked one lacks, and half of the reverse, which
      counts as one word at most: what is asked for beyond the answered is often an aside. One that is spelt nearly the
      same counts 0.3.
    - `swapped_words`: the lesser of the words that either lacks, for a word in another's place.
    - `other_light`: as `other_words`, of words that seldom decide what is asked.
    - `letters`: 1 less the Dice coefficient of the character trigrams.
    - `kind`: 1 where the question words differ.
    - `tense`: 1 where one asks for what was, the other for what is or will be.
    - `order`: the share of common content words that stand in another order.
    - `one_sided`: opposites ("before", "manager", "last year") that one of the questions has and the other has not.
    """
    left, right = _content(asked.tokens), _content(cached.tokens)
    more, less = _missing(left.heavy, right), _missing(right.heavy, left)
    added, dropped = _weight(more, less, right.heavy), _weight(less, more, left.heavy)
    light = len(_missing(right.light, left)) + 0.5 * min(len(_missing(left.light, right)), 1)
    sides = len(asked.comparisons ^ cached.comparisons) + len(asked.scopes ^ cached.scopes)
    return (
        math.acos(min(1.0, max(-1.0, similarity))),
        dropped + 0.5 * min(added, 1.0),
        min(added, dropped),
        light,
        1.0 - _dice(_trigrams(asked.text), _trigrams(cached.text)),
        float(asked.kind != cached.kind),
        float(asked.tense != cached.tense and bool(asked.tense and cached.tense)),
        _disorder(list(left.heavy), list(right.heavy)),
        float(min(sides, 4)),
    )


def supported(asked: Sequence[Evidence], cached: Sequence[Evidence]) -> bool:
    """Whether the asked question finds a passage that the cached answer rests on: a cited one, else its best one."""
    right = [passage.content_hash for passage in cached]
    cited = {passage.content_hash for passage in cached if passage.cited} or set(right[:1])
    return not cited or bool(cited & {passage.content_hash for passage in asked})


def common(asked: Sequence[Evidence], cached: Sequence[Evidence]) -> tuple[int, int]:
    """How many of the cached question's best passages the asked one finds among its best, and of how many."""
    left = {passage.content_hash for passage in asked[:EVIDENCE_DEPTH]}
    right = [passage.content_hash for passage in cached[:EVIDENCE_DEPTH]]
    return sum(content in left for content in right), len(right)


# --- words -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Content:
    heavy: Mapping[str, int]
    """Content words by their stem in order, and how often each occurs."""
    light: Mapping[str, int]

    def count(self, root: str) -> int:
        return self.heavy.get(root, 0) + self.light.get(root, 0)


def stem(word: str) -> str:
    """A word without its most frequent English endings: plural, -ing, -ed, -ly, -ment, -ation, final e.

    Lighter than Porter's, which joins words as far apart as "organ" and "organization".
    """
    word = singular(word)
    for ending, least in (("ation", 4), ("ement", 4), ("ment", 4), ("ing", 3), ("ed", 3), ("ly", 4), ("ion", 4)):
        if word.endswith(ending) and len(word) - len(ending) >= least:
            word = word[: -len(ending)]
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls":
                word = word[:-1]
            break
    if len(word) > 5 and word.endswith("ll"):
        word = word[:-1]  # cancelled, canceled
    return word.removesuffix("e") if len(word) > 3 else word


def _meanings() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for row in lexicon.SYNONYMS:
        stems = [stem(word) for word in row.split()]
        target = next((found[s] for s in stems if s in found), stems[0])
        for one in stems:
            found.setdefault(one, target)
    return found


_MEANINGS: Final = _meanings()
_LIGHT: Final = frozenset(stem(word) for word in lexicon.LIGHT_WORDS)
_IGNORED: Final = lexicon.STOP_WORDS | frozenset(
    ["what's", "who's", "how's", "where's", "i'm", "i've", "i'd", "i'll", "it's"]
)


@lru_cache(maxsize=1024)
def _content(tokens: tuple[str, ...]) -> _Content:
    heavy: dict[str, int] = {}
    light: dict[str, int] = {}
    for token in tokens:
        parts = spaced(token) if any(c.isdigit() for c in token) else re.split(r"[-/_]", " ".join(spaced(token)))
        for part in (word for run in parts for word in run.split()):
            if part and part not in _IGNORED:
                root = stem(part)
                words, meaning = light if root in _LIGHT else heavy, _MEANINGS.get(root, root)
                words[meaning] = words.get(meaning, 0) + 1
    return _Content(heavy, light)


def _missing(words: Mapping[str, int], other: _Content) -> list[tuple[str, bool]]:
    """Stems that the other question lacks or has less often, each with whether it knows the word at all."""
    less = [root for root, count in words.items() if count > other.count(root)]
    return [(root, other.count(root) > 0) for root in less]


def _weight(missing: Sequence[tuple[str, bool]], others: Sequence[tuple[str, bool]], known: Mapping[str, int]) -> float:
    """How much is missing: 1 a word, 0.3 for one that is spelt nearly the same, or is only said more often.

    Where the others lack a word as well, a repeated one stands in its place: "the steam event" for "the exhaust event"
    in a question that names both.
    """
    weight = 0.0
    for root, repeated in missing:
        if repeated:
            weight += 1.0 if others else 0.3
        else:
            weight += 0.3 if any(_misspelt(root, candidate) for candidate in known) else 1.0
    return weight


def _misspelt(word: str, other: str) -> bool:
    """Whether two words of five letters or more differ by one letter, or by two that are exchanged.

    The first letter must be the same, and no digit in them: "affect" and "effect" are two words, and so are codes.
    """
    if min(len(word), len(other)) < 5 or abs(len(word) - len(other)) > 1 or word[0] != other[0]:
        return False
    if not (word.isalpha() and other.isalpha()):
        return False
    start = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    one, two = word[start:], other[start:]
    return one[1:] == two[1:] or one[1:] == two or one == two[1:] or (one[:2] == two[1::-1] and one[2:] == two[2:])


@lru_cache(maxsize=1024)
def _trigrams(text: str) -> frozenset[str]:
    padded = f"  {text.casefold().strip(' ?!.')} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def _dice(left: frozenset[str], right: frozenset[str]) -> float:
    return 2 * len(left & right) / ((len(left) + len(right)) or 1)


def _disorder(left: Sequence[str], right: Sequence[str]) -> float:
    """1 less the longest common subsequence of the words in common over their number."""
    shared = [word for word in left if word in set(right)]
    if len(shared) < 2:
        return 0.0
    places = [right.index(word) for word in shared]
    longest: list[int] = []
    for place, value in enumerate(places):
        longest.append(1 + max((longest[i] for i in range(place) if places[i] < value), default=0))
    return 1.0 - max(longest) / len(shared)
