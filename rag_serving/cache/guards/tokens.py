"""Splits text into words: folding, tokens, possessive and plural endings. Word lists are in `lexicon`."""

import re
import unicodedata

TOKEN = re.compile(
    r"[\w.+-]+@[\w-]+\.[\w.-]+"  # addresses
    r"|\.?[^\W_]+(?:[.:/_&#@+’'-]+[^\W_]+)*(?:\+\+|\+|#)?"
    r"|[%°$€£¥₹]"
)
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
"""A letter of a script without spaces: kana or kanji."""
_JAPANESE_WORD = re.compile(r"[\u30a0-\u30ff]+|[\u3400-\u9fff]+|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_ABBREVIATION = re.compile(r"(?:[^\W\d]\.)+[^\W\d]?")
_MARKS = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‑": "-", "\u00a0": " ", "\u202f": " "}
)


def fold(text: str) -> str:
    """Return the text in NFKC with ASCII quotes and dashes and single spaces; case is kept."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_MARKS).split())


def bare(token: str) -> str:
    """Return a word case-folded, without its possessive ending and the dots of an abbreviation."""
    word = token.casefold().removesuffix("'s").removesuffix("'")
    if _ABBREVIATION.fullmatch(word):
        word = word.replace(".", "")
    return word.strip(".'-")


def bare_words(text: str) -> list[str]:
    """Return the `bare` words of a folded text, in order."""
    words = [bare(match[0]) for match in TOKEN.finditer(text)]
    return [word for word in words if word]


def singular(word: str) -> str:
    """Remove the plural ending by Harman's S stemmer ("How effective is suffixing?", JASIS 1991)."""
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
    """Return the words of a token; for Japanese, the runs of kanji and of katakana, which carry the meaning."""
    return _JAPANESE_WORD.findall(token) if CJK.search(token) else [token]
