"""From a text to words: folding, tokens, plural endings, and words that are too common to tell questions apart."""

from __future__ import annotations

import re
import unicodedata

from rag_serving.cache.guards import lexicon

TOKEN = re.compile(
    r"[\w.+-]+@[\w-]+\.[\w.-]+"  # addresses
    r"|\.?[^\W_]+(?:[.:/_&#@+’'-]+[^\W_]+)*(?:\+\+|\+|#)?"
    r"|[%°$€£¥₹]"
)
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
"""A letter of a script without spaces: kana or kanji."""
_JAPANESE_WORD = re.compile(r"[\u30a0-\u30ff]+|[\u3400-\u9fff]+|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_MARKS = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‑": "-", "\u00a0": " ", "\u202f": " "}
)

COMMON = (
    lexicon.STOP_WORDS
    | lexicon.LIGHT_WORDS
    | lexicon.NEGATIONS
    | frozenset(lexicon.NUMBER_WORDS)
    | frozenset(lexicon.ORDINALS)
    | frozenset(lexicon.MONTHS)
    | frozenset(lexicon.WEEKDAYS)
)


def fold(text: str) -> str:
    """Compatibility forms, quotes and dashes made plain, white space single, case kept."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_MARKS).split())


def bare(token: str) -> str:
    """A word case-folded, without its possessive ending and the dots of an abbreviation."""
    word = token.casefold().removesuffix("'s").removesuffix("'")
    if re.fullmatch(r"(?:[^\W\d]\.)+[^\W\d]?", word):
        word = word.replace(".", "")
    return word.strip(".'-")


def singular(word: str) -> str:
    """A word without its plural ending, by Harman's S stemmer ("How effective is suffixing?", JASIS 1991)."""
    if len(word) > 3 and word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("es") and not word.endswith(("aes", "ees", "oes", "ses", "xes", "hes")):
        return word[:-1]
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("us", "ss", "is")):
        return word[:-1]
    return word


def spaced(token: str) -> list[str]:
    """The words of a token: of Japanese its runs of kanji and of katakana, which carry the meaning."""
    return _JAPANESE_WORD.findall(token) if CJK.search(token) else [token]
