"""When two texts are typed differently but are the same question: Unicode forms, whitespace, and meaningless case.

Nothing here changes a meaning: symbols (mW and MW, Co and CO), superscripts, signs and ß stay. Whether two different
questions ask for the same thing belongs to `guards`.
"""

import re
import unicodedata

CAPITALIZED_WORDS = frozenset({
    "Am", "An", "As", "At", "Be", "By", "Do", "He", "Hi", "I", "If", "In", "Is", "It", "Me", "My", "No", "Of", "Ok",
    "On", "Or", "So", "To", "Up", "Us", "We", "Ab", "Da", "Du", "Er", "Es", "Im", "Ja", "Wo", "Zu", "De", "El", "En",
    "Et", "La", "Le", "Lo", "Un", "Ni", "Os", "Se", "Te", "Tu", "Vi",
})  # fmt: skip
"""Words of one or two letters that may begin a title; other short ones, such as Co or Mb, may be symbols."""

_LEAST_SHOUTED = 4
"""Letters from which a single word in capitals is emphasis ("OFFICE"); shorter ones are acronyms or symbols."""
_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("’‘ʼ′", "'"),
        **dict.fromkeys("“”„«»", '"'),
        **dict.fromkeys("‐‑‒–—−", "-"),
        **dict.fromkeys("\u00ad\u200b\u2060\ufeff"),  # invisible
    }
)
_COMPATIBLE = re.compile(r"[\uff01-\uffef\ufb00-\ufb06\u3000]+")
"""Fullwidth and halfwidth forms and Latin ligatures: the compatibility forms that are typography, not notation."""
_WORD = re.compile(r"[^\W\d_]+")


def fold(text: str) -> str:
    """Return the text in NFC with ASCII quotes and dashes, letters of normal width and single spaces; case is kept."""
    text = _COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return " ".join(unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY).split())


def lower_words(folded: str) -> str:
    """Lower the case of words, but keep that of symbols, acronyms and mixed case, which may change the meaning."""
    if folded.islower():
        return folded
    words = _WORD.findall(folded)
    shouted = len(words) > 1 and all(map(str.isupper, words)) and any(len(word) > 2 for word in words)
    rule = _lower_shouted if shouted else _lower_word
    return _WORD.sub(rule, folded)


def normalise(question: str) -> str:
    """Return the form in which equal questions are identical, without final punctuation."""
    text = lower_words(fold(question)).lstrip("¿¡ ")
    # The mark of "5!" is a sign; that of "now!" is not.
    return re.sub(r"(?:[\s?.。？！]|(?<!\d)!)+$", "", text)


def _lower_word(match: re.Match[str]) -> str:
    word, after = match[0], match.string[match.end() : match.end() + 2]
    if after[:1] == "-" and after[1:].isdigit() and word.isupper():
        symbol = len(word) == 1  # SKJ-409 is a code, in whatever case
    elif word[1:].islower():
        symbol = len(word) <= 2 and word not in CAPITALIZED_WORDS
    elif len(word) == 1:
        symbol = word != "I" and not (word == "A" and match.start() == 0)
    else:
        symbol = not (word.isupper() and len(word) >= _LEAST_SHOUTED)
    return word if symbol else word.lower()


def _lower_shouted(match: re.Match[str]) -> str:
    """Lower a word of a question in capitals, unless it may be a unit: it has no vowel or follows a digit."""
    word, before = match[0], match.string[: match.start()].rstrip()[-1:]
    vowel = any(unicodedata.normalize("NFD", char)[0] in "AEIOUY" for char in word)
    return word.lower() if (vowel or not word.isascii()) and not before.isdigit() else word
