"""Splits text into words and maps words to meanings: endings, typing mistakes, synonyms. Lists are in `lexicon`."""

import re
from collections.abc import Mapping
from functools import cache, lru_cache

from rag_serving.cache.guards import lexicon

TOKEN = re.compile(
    r"[\w.+-]+@[\w-]+\.[\w.-]+"  # addresses
    r"|\.?[^\W_]+(?:[.:/_&#@+'-]+[^\W_]+)*(?:\+\+|\+|#)?"
    r"|[%°$€£¥₹]"
)
_ABBREVIATION = re.compile(r"(?:[^\W\d]\.)+[^\W\d]?")
_LEAST_MISSPELT = 5
"""Letters from which a word that differs by one edit is a typing mistake; shorter ones are mostly other words."""


def bare(token: str) -> str:
    """Return a word in lower case, without its possessive ending and the dots of an abbreviation."""
    word = token.lower().removesuffix("'s").removesuffix("'")
    if _ABBREVIATION.fullmatch(word):
        word = word.replace(".", "")
    return word.strip(".'-")


def singular(word: str) -> str:
    """Remove the plural ending by Harman's S stemmer ("How effective is suffixing?", JASIS 1991)."""
    if len(word) > 3 and word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("us", "ss", "is")):
        return word[:-1]
    return word


@lru_cache(maxsize=4096)
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
    if len(word) > 3 and word.endswith("y"):
        word = word[:-1] + "i"  # supply, supplied
    return word.removesuffix("e") if len(word) > 3 else word


def meaning(word: str) -> str:
    """Return the stem that represents the meaning of a stem; the stem itself without synonyms."""
    return _meanings().get(word, word)


@cache
def _meanings() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for row in lexicon.synonyms():
        stems = [stem(word) for word in row]
        first = next((found[root] for root in stems if root in found), stems[0])
        for root in stems:
            found.setdefault(root, first)
    return found


def is_misspelt(word: str, other: str) -> bool:
    """Return whether two words differ by one typing mistake: a letter more, less or changed, or two swapped.

    The first letter must agree ("affect" and "effect" are different words), and words with digits are codes.
    """
    if min(len(word), len(other)) < _LEAST_MISSPELT or abs(len(word) - len(other)) > 1 or word[0] != other[0]:
        return False
    if not (word.isalpha() and other.isalpha()) or {word, other} <= lexicon.words("not_mistakes"):
        return False
    same = 0
    while same < min(len(word), len(other)) and word[same] == other[same]:
        same += 1
    one, two = word[same:], other[same:]
    exchanged = one[:2] == two[1::-1] and one[2:] == two[2:]
    return exchanged or one[1:] == two[1:] or one[1:] == two or one == two[1:]
