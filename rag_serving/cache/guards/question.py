"""Parses a question: its words and their meanings, numbers, dates, codes, names, negations, and what it asks for.

What two questions must have in common is decided in `rules`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from rag_serving.cache.guards import lexicon
from rag_serving.cache.guards.quantities import quantities
from rag_serving.cache.guards.tokens import TOKEN, bare, meaning, singular, stem
from rag_serving.cache.normalization import fold, lower_words

_PERSONS = (("1", frozenset(["i", "me", "my", "we", "us", "our"])), ("2", frozenset(["you", "your"])))
_GLOSS = re.compile(r"(?<=\S) \([^\W_]+(?:-[^\W_]+)*\)")
_LETTER_A = re.compile(r"(?<=[a-z0-9] )A(?=[\s?.,;!)]|$)(?! [A-Z])")
LETTER_A = "\uff41"
"""Stands for the name "A", as in "plan A", which is not the article."""
_VERBS_FIRST = frozenset(["must", "may", "whether"])
_LETTERS = re.compile(r"[^\W\d_]+")
_PRONOUN = re.compile(r"\b(?:i|me|my|we|us|our|you|your|he|she|it|they)\b")
_CANNOT = re.compile(r"\b(?:can't|cannot)\b")
_NOT = re.compile(r"n't\b")
_CLITIC = re.compile(r"(?<=\w)'(?:m|re|ve|ll|d|s)\b")
_SENTENCE_END = re.compile(r"[.?!:;(\"]\s*$")
_OTHER_SCRIPT = re.compile(r"[^\W\d_\u0000-\u036fµμΩ\u1e00-\u1eff\u2000-\u2bff]")


@dataclass(frozen=True, slots=True)
class Question:
    """A parsed question."""

    english: bool
    """Whether the words are compared as English; otherwise only `plain` is."""
    plain: tuple[str, ...]
    """Words in order, without politeness."""
    sequence: tuple[str, ...]
    """Meanings of the words in order, without dates and function words; prepositions of direction are kept."""
    content: Mapping[str, str]
    """Meanings of the words that decide what is asked, each with the word as typed."""
    light: frozenset[str]
    """Meanings of the words that seldom decide what is asked, such as "get" and "need"."""
    counts: Mapping[str, int]
    """How often each meaning occurs, including those of function words."""
    joined: Mapping[str, tuple[str, str]]
    """Adjacent words written as one, with their meanings: log in, per diem."""
    forms: frozenset[str]
    """The words, their parts, and the singular and meaning of both; names are looked up here."""
    numbers: frozenset[str]
    dates: frozenset[str]
    codes: frozenset[str]
    names: frozenset[str]
    cases: Mapping[str, str]
    """Words by their lower case, with those capitals that may change the meaning: mW, CO."""
    cased: bool
    """Whether the question has capitals, so that a word without any is not an acronym."""
    negations: int
    kind: str
    """The kind of question, such as "when" or "count"; "what" may ask for anything, "" is a search by keywords."""
    persons: str
    """Persons mentioned, in order: "1" for I or we, "2" for you."""
    roles: frozenset[tuple[str, str]]
    """Prepositions of direction, each with the meaning of the word it governs: `("from", "oslo")`."""


@lru_cache(maxsize=4096)
def read(text: str) -> Question:
    """Parse a question. Never fails."""
    folded = fold(text)
    english = _is_english([match[0] for match in TOKEN.finditer(folded)], folded)
    folded = _GLOSS.sub(lambda match: match[0].lower(), folded)
    raw = [match[0] for match in TOKEN.finditer(folded)]
    typed = tuple(word for word in map(bare, raw) if word)
    kind, rest = _kind(_expanded(_LETTER_A.sub(LETTER_A, folded).lower()))
    found = quantities(rest)
    words = [part for word in found.words for part in _parts(word)]
    meanings = [meaning(stem(word)) for word in words]
    stop, light, kept = lexicon.words("stop_words"), _light(), lexicon.words("directions")
    return Question(
        english=english,
        plain=tuple(word for word in typed if word not in lexicon.words("ignored")),
        sequence=tuple(one for word, one in zip(words, meanings, strict=True) if word not in stop or word in kept),
        content={
            one: word
            for word, one in zip(words, meanings, strict=True)
            if word not in stop and one not in light and not word[0].isdecimal() and word not in found.codes
        },
        light=frozenset(meanings) & light,
        counts=Counter(meanings),
        joined=_joined(words, meanings),
        forms=_forms(typed),
        numbers=frozenset(found.numbers),
        dates=frozenset(found.dates),
        codes=frozenset(found.codes),
        names=_names(folded, raw) - found.codes,
        cases={word.lower(): word for word in _LETTERS.findall(lower_words(folded))},
        cased=not folded.islower(),
        negations=sum(word in lexicon.words("negations") for word in words),
        kind=kind,
        persons=_persons(words),
        roles=_roles(words, meanings),
    )


def _expanded(lower: str) -> str:
    """Return the text without contractions and with phrases replaced by single words."""
    text = _CLITIC.sub("", _NOT.sub(" not", _CANNOT.sub("can not", lower.replace("won't", "will not"))))
    if lexicon.any_phrase().search(text):
        for pattern, replacement in lexicon.phrases():
            text = pattern.sub(replacement, text)
    return text.replace(" or not", "")


@cache
def _opening() -> re.Pattern[str]:
    return re.compile(rf"^(?:(?:{'|'.join(lexicon.words('greetings'))})\b[\s,:!.-]*)+")


def _kind(text: str) -> tuple[str, str]:
    """Return the kind of the first question word, and the text without it; of two at one place, the first listed.

    The words of a yes-no question are kept.
    """
    text = _opening().sub("", text)
    matches = [(match.start(), kind, match) for kind, pattern in lexicon.kinds() if (match := pattern.search(text))]
    if not matches:
        return "statement" if _PRONOUN.search(text) else "", text
    _, kind, match = min(matches, key=lambda found: found[0])
    if kind in _VERBS_FIRST:
        return kind, text
    return kind, f"{text[: match.start()]} {text[match.end() :]}"


def _parts(word: str) -> Sequence[str]:
    """Return the parts of a compound; a code is not split."""
    if any(c.isdigit() for c in word) or "@" in word:
        return [word]
    return [part for part in re.split(r"[-/_]", bare(word)) if part]


@cache
def _light() -> frozenset[str]:
    return frozenset(meaning(stem(word)) for word in lexicon.words("light_words"))


def _joined(words: Sequence[str], meanings: Sequence[str]) -> Mapping[str, tuple[str, str]]:
    return {one + other: (meanings[place], meanings[place + 1]) for place, (one, other) in enumerate(pairwise(words))}


def _persons(words: Sequence[str]) -> str:
    persons = [person for word in words for person, forms in _PERSONS if word in forms]
    return "".join(person for person, before in zip(persons, ["", *persons], strict=False) if person != before)


def _roles(words: Sequence[str], meanings: Sequence[str]) -> frozenset[tuple[str, str]]:
    directions, stop = lexicon.words("role_directions"), lexicon.words("stop_words")
    found: set[tuple[str, str]] = set()
    for place, word in enumerate(words):
        if word in directions:
            governed = [at for at in range(place + 1, min(place + 4, len(words))) if words[at] not in stop]
            found.update((word, meanings[at]) for at in governed[:1])
    return frozenset(found)


# --- language ----------------------------------------------------------------------------------------------------


def _is_english(tokens: Sequence[str], folded: str) -> bool:
    """Return whether the words can be compared as English: no other script, and few function words of other languages.

    Without function words, as in a search by keywords, a short question is English unless it has accents.
    """
    if _OTHER_SCRIPT.search(folded):
        return False
    words = [token.lower() for token in tokens if folded.isupper() or not token.isupper()]  # DES is not "des"
    other = sum(word in lexicon.other_languages() for word in words)
    english = sum(word in lexicon.words("stop_words") for word in words)
    if other * 3 > english:
        return False
    return english > 0 or (folded.isascii() and len(words) <= 7)


# --- names -------------------------------------------------------------------------------------------------------


def _forms(words: Sequence[str]) -> frozenset[str]:
    forms = set(words)
    for word in words:
        forms.update(part for part in re.split(r"[^\w]+", word) if part)
        forms.add(re.sub(r"\W", "", word))
    forms.update([singular(form) for form in forms])
    forms.update([meaning(stem(form)) for form in forms])
    return frozenset(forms)


def _names(folded: str, raw: Sequence[str]) -> frozenset[str]:
    """Return the words that are names by their capitals, as they appear in `Question.forms`."""
    if _is_heading(raw):
        return frozenset()
    found: set[str] = set()
    for match in TOKEN.finditer(folded):
        if match[0].islower():
            continue
        begins = match.start() == 0 or _SENTENCE_END.search(folded[max(0, match.start() - 3) : match.start()])
        word = bare(match[0])
        if _is_name(match[0], word, begins_sentence=bool(begins)):
            found.add(word if "-" in word or "'" in word else singular(word))
    return frozenset(found)


def _is_heading(raw: Sequence[str]) -> bool:
    """Return whether nearly every longer word is capitalized, so that capitals mean nothing."""
    words = [token for token in raw if token[0].isalpha() and len(token) > 3]
    return len(words) >= 3 and sum(token[0].isupper() for token in words) >= 0.8 * len(words)


def _is_name(token: str, word: str, *, begins_sentence: bool) -> bool:
    if not word or not word[0].isalpha() or word in lexicon.words("not_names") or word.startswith("i'"):
        return False
    if any(c.isdigit() for c in word):
        return False  # a code, a date or a number
    if any(c.isupper() for c in token[1:]):
        return True
    return token[0].isupper() and not begins_sentence and word not in lexicon.common_words() and len(word) > 1
