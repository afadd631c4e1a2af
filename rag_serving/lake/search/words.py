"""The words of passages and questions, as the full-text index stores and looks for them.

Lance splits the column `words` at spaces and does nothing else: everything about languages, names and numbers is
decided here, in the same way for passages and questions, so that tables of all languages can be searched and merged.

- A word is stored as its stem (Snowball, by the passage's language), in lower case and without accents. Stop words are
  kept: BM25 weighs them least, and some are names.
- Scripts without spaces between words are stored as pairs of characters (Chinese, Japanese) or triples (Thai, Khmer).
- A name with a hyphen, underscore, inner capital or digit is stored by its parts and as a whole: `getUserId`,
  `get_user_id` and `get-user-id` are the same.
- A word in capitals is also stored as it is, because IT is not it. Two short words with initial capitals are also
  stored as one: The Who.
- Numbers are stored without separators of thousands, decimals of zero and leading zeros.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

LONGEST: Final = 200
"""Characters of the longest word in the index; longer ones are data, not words."""
DEFAULT_LANGUAGE: Final = "en"
"""Language of the stems of passages whose own is unknown."""
_SHORT: Final = 4
"""Letters of the longest capitalised word that may be another word in lower case (IT, US, WHO)."""
_MOST_LETTERS: Final = 4
"""Parts of a name from which on single letters and digits are not stored: it is a hash."""
_SHOUTED: Final = 3
"""Words of a question in capitals throughout, from which on capitals say nothing about a word."""

# Combining marks of Arabic, Hebrew, Indic and other scripts, which `\w` leaves out.
_MARKS: Final = (
    "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u0e00-\u0eff\u0f40-\u109f\u1780-\u17d3"
)
_THAI_KIND: Final = "\u0e00-\u0eff\u0f40-\u109f\u1780-\u17d3"
_UNSPACED: Final = f"{_THAI_KIND}\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUN: Final = re.compile(rf"[\w{_MARKS}]+(?:[-.,'’&+\u00ad\u2010\u2011][\w{_MARKS}]+)*(?:\+\+|#)?")
_DOT: Final = re.compile(r"(?<!\d)[.,]|[.,](?!\d)")
_PART: Final = re.compile(
    rf"\d+(?:[.,'’]\d+)*|[{_UNSPACED}]+|[^\W\d_{_UNSPACED}]+(?:[{_MARKS}]+[^\W\d_{_UNSPACED}]*)*|\+\+|#"
)
_IS_UNSPACED: Final = re.compile(f"[{_UNSPACED}]")
_IS_THAI_KIND: Final = re.compile(f"[{_THAI_KIND}]")
_CAMEL: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_INNER_CAPITAL: Final = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]")
_GROUPED: Final = re.compile(r"\d{1,3}(?:([.,'’])\d{3})(?:\1\d{3})*(?:[.,]\d{1,2})?$")
_SYMBOLS: Final = {"++": "plus", "#": "sharp"}

_STEMMERS: Final = {
    "ar": "arabic",
    "ca": "catalan",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "nb": "norwegian",
    "ne": "nepali",
    "nl": "dutch",
    "nn": "norwegian",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
}
"""Snowball's algorithms by language (ISO 639-1). Words of other languages are stored as they are written."""
OWN_SCRIPT: Final = frozenset(["ar", "el", "fa", "hi", "hy", "ne", "ru", "ta"])
"""Languages whose algorithms leave words in Latin letters as they are."""


@dataclass(frozen=True, slots=True)
class QuestionWords:
    """The words to look for, in order, and those that name something exactly."""

    words: tuple[str, ...]
    names: tuple[str, ...] = ()
    """Codes, numbers and words in capitals."""
    codes: tuple[str, ...] = ()
    """The codes among the names, as they are written in the question."""
    joined: tuple[str, ...] = ()
    """Adjacent words that a passage may write as one name: ADR 16."""


def indexed_words(texts: Iterable[str], language: str) -> str:
    """Return what the index stores for a passage, given its text and the names that it belongs to."""
    return " ".join(word for text in texts for word in _indexed(text, language))


def _indexed(text: str, language: str) -> Iterator[str]:
    before, end = "", -1
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text)):
        surface = match[0]
        for word in _words(surface, language):
            yield from word.stored
        if before and match.start() == end + 1 and _is_short_name(before) and _is_short_name(surface):
            yield _plain(before + surface)
        before, end = surface, match.end()


def question_words(question: str, languages: Sequence[str]) -> QuestionWords:
    """Return the words of a question about passages in these languages."""
    surfaces = [match[0] for match in _RUN.finditer(unicodedata.normalize("NFKC", question))]
    shouted = len(surfaces) >= _SHOUTED and not any(character.islower() for character in question)
    words: list[str] = []
    names: list[str] = []
    codes: list[str] = []
    for surface in surfaces:
        for language in languages or (DEFAULT_LANGUAGE,):
            for word in _words(surface, language):
                words += [part for part in word.asked if not (shouted and part.isupper())]
                names += [name for name in word.names if not (shouted and name.isalpha())]
                codes += [word.surface] if word.is_code else []
    joined = [
        _plain(one + other)
        for one, other in pairwise(surfaces)
        if one.isdigit() != other.isdigit() or (_is_short_name(one) and _is_short_name(other))
    ]
    unique = (tuple(dict.fromkeys(some)) for some in ([*words, *joined], names, codes, joined))
    return QuestionWords(*unique)


@lru_cache(maxsize=10_000)
def title_words(title: str, language: str) -> tuple[str, ...]:
    """Return the stems of a title or question in order, each part of a name once."""
    parts = (part for match in _RUN.finditer(unicodedata.normalize("NFKC", title)) for part in _parts(match[0]))
    return tuple(_number(part) if part[0].isdigit() else _stem(part, language) for part in parts)


@dataclass(frozen=True, slots=True)
class _Word:
    """A run of characters: what is stored for it, what is asked for it, and what of it names something exactly."""

    surface: str
    stored: tuple[str, ...]
    asked: tuple[str, ...]
    names: tuple[str, ...]
    is_code: bool = False


def _words(surface: str, language: str) -> Iterator[_Word]:
    """Yield the word of a run; of one with dots, such as a file's name or an attribute, those of its pieces as well."""
    pieces = [piece for piece in _DOT.split(surface) if piece]
    if len(pieces) > 1:
        yield from (_read(piece, language) for piece in pieces)
        whole = _plain(surface)
        if len(whole) <= LONGEST:
            yield _Word(surface, (whole,), (whole,), (whole,), is_code=True)
    else:
        yield _read(surface, language)


@lru_cache(maxsize=100_000)
def _read(surface: str, language: str) -> _Word:
    stored: list[str] = []
    parts = _parts(surface)
    for part in parts:
        if len(part) == 1 and len(parts) > _MOST_LETTERS:
            continue  # a letter or digit of a hash
        if part[0].isdigit():
            stored.append(_number(part))
        elif _IS_UNSPACED.match(part):
            stored += _overlapping(part)
        elif part not in _SYMBOLS:
            stored.append(_stem(part, language))
            if len(part) > 1 and part.isupper():
                stored.append(part)
    if len(parts) == 1:
        names = tuple(word for word in stored if len(word) > 1 and (word[0].isdigit() or word.isupper()))
        kept = tuple(word for word in stored if len(word) <= LONGEST)
        return _Word(surface, kept, kept, names)
    if _IS_UNSPACED.search(surface):
        return _Word(surface, tuple(stored), tuple(stored), ())
    whole = _plain(surface)
    stored = [word for word in [*stored, whole] if len(word) <= LONGEST]
    coded = any(part[0].isdigit() or part in _SYMBOLS for part in parts) or "_" in surface
    is_code = coded or _INNER_CAPITAL.search(surface) is not None
    # Passages may write the parts apart, but a single letter of a code finds anything.
    asked = [word for word in stored if len(word) > 1]
    return _Word(surface, tuple(stored), tuple(asked), (whole,) if is_code else (), is_code=is_code)


def _parts(surface: str) -> list[str]:
    parts: list[str] = []
    for part in _PART.findall(surface):
        parts += _CAMEL.findall(part) if part.isascii() and _INNER_CAPITAL.search(part) else [part]
    return parts


def _plain(surface: str) -> str:
    """Return a name without what people write differently: case, separators, leading zeros."""
    return "".join(
        _number(part) if part[0].isdigit() else _SYMBOLS.get(part) or _folded(part.casefold())
        for part in _PART.findall(surface)
    )


def _number(digits: str) -> str:
    grouped = _GROUPED.match(digits)
    if grouped:
        digits = digits.replace(grouped[1], "")
    digits = re.sub(r"[,'’]", ".", digits)
    if digits.count(".") == 1:
        digits = digits.removesuffix(".00")
    return re.sub(r"^0+(?=\d)", "", digits)


def _overlapping(run: str) -> list[str]:
    size = 3 if _IS_THAI_KIND.match(run) else 2
    return [run] if len(run) <= size else [run[place : place + size] for place in range(len(run) - size + 1)]


def _is_short_name(surface: str) -> bool:
    return len(surface) <= _SHORT and surface.isalpha() and surface[0].isupper()


def _stem(word: str, language: str) -> str:
    folded = word.casefold()
    algorithm = _STEMMERS.get(language)
    return _folded(folded if algorithm is None else _stemmer(algorithm).stemWord(folded))


def _folded(word: str) -> str:
    """Return the word without accents; marks that are letters of their own script stay."""
    if word.isascii():
        return word
    return "".join(mark for mark in unicodedata.normalize("NFKD", word) if not "\u0300" <= mark <= "\u036f")


@lru_cache(maxsize=len(_STEMMERS))
def _stemmer(algorithm: str) -> Any:
    import Stemmer

    stemmers: Any = Stemmer
    return stemmers.Stemmer(algorithm)
