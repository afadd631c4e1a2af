"""Compare the wording and the evidence of two questions.

Words are compared by stem; misspellings and known synonyms count as equal. Rules about particulars such as numbers and
names belong to `rules`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

from rag_serving.cache.evidence_record import Evidence
from rag_serving.cache.guards import lexicon
from rag_serving.cache.guards.question import Question
from rag_serving.cache.guards.tokens import singular, spaced

EVIDENCE_DEPTH: Final = 5
"""Number of passages per question that `common` compares. The order of lower ranks is mostly noise."""

# --- evidence ----------------------------------------------------------------------------------------------------


def supported(asked: Sequence[Evidence], cached: Sequence[Evidence]) -> bool:
    """Return whether the new question retrieves a passage that the cached answer cites.

    If it cites none, the best passage of the cached question counts.
    """
    cited = {passage.content_hash for passage in cached if passage.cited}
    needed = cited or {passage.content_hash for passage in cached[:1]}
    return not needed or bool(needed & {passage.content_hash for passage in asked})


def common(asked: Sequence[Evidence], cached: Sequence[Evidence]) -> tuple[int, int]:
    """Return how many of the cached question's best passages the new question retrieves, too, and their number."""
    found = {passage.content_hash for passage in asked[:EVIDENCE_DEPTH]}
    best = [passage.content_hash for passage in cached[:EVIDENCE_DEPTH]]
    return sum(content in found for content in best), len(best)


# --- wording -----------------------------------------------------------------------------------------------------


def has_swapped_words(asked: Question, cached: Question) -> bool:
    """Return whether each question has a content word that the other lacks: one word was replaced by another."""
    left, right = _content(asked.tokens), _content(cached.tokens)
    return _lacks_word(left, right) and _lacks_word(right, left)


@dataclass(frozen=True, slots=True)
class _Content:
    counts: Mapping[str, int]
    """How often each meaning occurs."""
    decisive: frozenset[str]
    """Meanings of words that decide what is asked."""


def _lacks_word(question: _Content, other: _Content) -> bool:
    """Return whether the question lacks a decisive word of the other.

    A word that occurs in both, but less often in the question, counts only if the other question lacks a word, too. An
    example is "the steam event" instead of "the exhaust event" in a question that names both.
    """
    missing = _rarer(question, other)
    replaced = bool(_rarer(other, question))
    for meaning in missing:
        if meaning in question.counts:
            if replaced:
                return True
        elif not any(_is_misspelt(meaning, known) for known in question.decisive):
            return True
    return False


def _rarer(question: _Content, other: _Content) -> list[str]:
    """Return the decisive meanings of the other question that are rarer in this one."""
    return [meaning for meaning in other.decisive if other.counts[meaning] > question.counts.get(meaning, 0)]


@lru_cache(maxsize=1024)
def _content(tokens: tuple[str, ...]) -> _Content:
    counts: Counter[str] = Counter()
    decisive: set[str] = set()
    for word in _parts(tokens):
        root = stem(word)
        meaning = _meanings().get(root, root)
        counts[meaning] += 1
        if root not in _light_stems():
            decisive.add(meaning)
    return _Content(counts, frozenset(decisive))


def _parts(tokens: Iterable[str]) -> Iterable[str]:
    """Split compounds and yield their words, without stop words. A token with a digit is not split."""
    for token in tokens:
        words = " ".join(spaced(token))
        if not any(c.isdigit() for c in token):
            words = re.sub(r"[-/_]", " ", words)
        for word in words.split():
            if word not in lexicon.words("stop_words"):
                yield word


def stem(word: str) -> str:
    """Remove the most frequent English endings: plural, -ing, -ed, -ly, -ment, -ation, final e.

    Porter's stemmer removes more, and conflates words as different as "organ" and "organization".
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


@cache
def _meanings() -> Mapping[str, str]:
    """Map stems to the stem that represents their meaning."""
    found: dict[str, str] = {}
    for row in lexicon.strings("synonyms"):
        stems = [stem(word) for word in row.split()]
        meaning = next((found[root] for root in stems if root in found), stems[0])
        for root in stems:
            found.setdefault(root, meaning)
    return found


@cache
def _light_stems() -> frozenset[str]:
    return frozenset(stem(word) for word in lexicon.words("light_words"))


def _is_misspelt(word: str, other: str) -> bool:
    """Return whether two words of at least five letters differ by one letter or by two swapped ones.

    The first letter must agree ("affect" and "effect" are different words), and words with digits are codes.
    """
    if min(len(word), len(other)) < 5 or abs(len(word) - len(other)) > 1 or word[0] != other[0]:
        return False
    if not (word.isalpha() and other.isalpha()):
        return False
    same = 0
    while same < min(len(word), len(other)) and word[same] == other[same]:
        same += 1
    one, two = word[same:], other[same:]
    exchanged = one[:2] == two[1::-1] and one[2:] == two[2:]
    return exchanged or one[1:] == two[1:] or one[1:] == two or one == two[1:]
