"""Parses a question: its numbers, dates, codes, names, negations, directions, and what it asks for.

What two questions must have in common is decided in `rules`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from rag_serving.cache.guards import lexicon, quantities
from rag_serving.cache.guards.tokens import TOKEN, bare, bare_words, fold, singular

Side = tuple[str, str]
"""A group of opposites and one of its sides: `("time", "before")`."""

_GLOSS = re.compile(r"([\w-]+) \(([^\W\d_]+)(?:'s)?\)")
_LETTERS = re.compile(r"[^\W\d_]+")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_SENTENCE_END = re.compile(r"[.?!:;(\"“]\s*$")


@dataclass(frozen=True, slots=True)
class Question:
    """A parsed question."""

    tokens: tuple[str, ...]
    """Case-folded words in order, including dates and numbers, without possessive endings."""
    forms: frozenset[str]
    """The words, their parts, and the singular of both; names are looked up here."""
    numbers: tuple[quantities.Number, ...]
    dates: tuple[str, ...]
    codes: frozenset[str]
    names: frozenset[str]
    glosses: frozenset[tuple[str, str]]
    """Names in parentheses, each with the word before: `("des", "diethylstilbestrol")`."""
    negations: int
    comparisons: frozenset[Side]
    alternatives: frozenset[Side]
    kind: str
    """The kind of question, such as "when" or "count". "what" and "how" may ask for anything; "" is unknown."""
    tense: str
    """"past", "present" or "future", by the first auxiliary verb; "" without one."""
    persons: str
    """Persons mentioned, in order: "1" for I or we, "2" for you."""
    relations: frozenset[tuple[str, str]]
    """Prepositions of direction, each with the word it governs: `("from", "oslo")`."""


@lru_cache(maxsize=1024)
def read(text: str) -> Question:
    """Parse a question. Never fails."""
    plain = fold(text)
    folded = plain.casefold()
    core = _opening().sub("", folded)
    tokens = tuple(bare_words(plain))
    dates, rest = quantities.dates(folded)
    numbers, codes = quantities.numbers(rest)
    return Question(
        tokens=tokens,
        forms=_forms(tokens),
        numbers=tuple(sorted(numbers + quantities.roman(plain))),
        dates=tuple(sorted(set(dates))),
        codes=codes,
        names=_names(plain) - codes,
        glosses=frozenset((singular(m[2].casefold()), m[1]) for m in _GLOSS.finditer(folded)),
        negations=_negations(folded),
        comparisons=_sides("comparisons", folded),
        alternatives=_sides("alternatives", folded),
        kind=_kind(core),
        tense=_tense(tokens),
        persons=_persons(core),
        relations=_relations(tokens),
    )


# --- names -------------------------------------------------------------------------------------------------------


def _forms(tokens: Sequence[str]) -> frozenset[str]:
    forms = set(tokens)
    for token in tokens:
        forms.update(part for part in re.split(r"[^\w]+", token) if part)
        forms.add(re.sub(r"\W", "", token))
    forms.update([singular(form) for form in forms])
    return frozenset(forms)


def _names(plain: str) -> frozenset[str]:
    """Return the words that are names by their capitals, as they appear in `Question.forms`."""
    raw = [match[0] for match in TOKEN.finditer(plain)]
    if _is_heading(raw):
        return frozenset()
    starts = _sentence_starts(plain)
    found: set[str] = set()
    for place, token in enumerate(raw):
        word = bare(token)
        if _is_name(token, word, begins_sentence=place in starts):
            found.add(word if "-" in word or "'" in word else singular(word))
    return frozenset(found)


def _is_heading(raw: Sequence[str]) -> bool:
    """Return whether nearly every longer word is capitalized, so that capitals mean nothing."""
    words = [token for token in raw if token[0].isalpha() and len(token) > 3]
    return len(words) >= 3 and sum(token[0].isupper() for token in words) >= 0.8 * len(words)


def _is_name(token: str, word: str, *, begins_sentence: bool) -> bool:
    if word in lexicon.words("not_names") or word.startswith("i'") or not word or not word[0].isalpha():
        return False
    if any(c.isdigit() for c in word):
        return False  # a code, a date or a number
    if any(c.isupper() for c in token[1:]):
        return True
    return token[0].isupper() and not begins_sentence and word not in lexicon.common_words() and len(word) > 1


def _sentence_starts(plain: str) -> set[int]:
    """Return the indexes of the tokens at which a sentence begins."""
    starts = {0}
    for place, match in enumerate(TOKEN.finditer(plain)):
        if _SENTENCE_END.search(plain[max(0, match.start() - 3) : match.start()]):
            starts.add(place)
    return starts


# --- negations and directions ------------------------------------------------------------------------------------


def _negations(folded: str) -> int:
    negations = lexicon.words("negations") | lexicon.words("contracted_negations")
    words = _WORD.findall(folded.replace(" or not", ""))
    negated = [word for word in words if word in negations or word.endswith("n't")]
    return len(negated) + len(_negating_phrases().findall(folded))


@cache
def _negating_phrases() -> re.Pattern[str]:
    return re.compile("|".join(lexicon.strings("negating_phrases")))


@dataclass(frozen=True, slots=True)
class _Phrases:
    """One pattern of the phrases of all sides, longest first, and the sides of each phrase."""

    pattern: re.Pattern[str]
    sides: dict[str, list[Side]]


@cache
def _phrases(table: Literal["comparisons", "alternatives"]) -> _Phrases:
    found: dict[str, list[Side]] = {}
    for group, sides in lexicon.groups(table).items():
        for side, phrases in sides.items():
            for phrase in phrases:
                found.setdefault(phrase, []).append((group, side))
    longest_first = sorted(found, key=len, reverse=True)
    return _Phrases(lexicon.alternation([re.escape(phrase) for phrase in longest_first]), found)


def _sides(table: Literal["comparisons", "alternatives"], folded: str) -> frozenset[Side]:
    phrases = _phrases(table)
    return frozenset(side for match in phrases.pattern.finditer(folded) for side in phrases.sides[match[0]])


# --- what is asked for -------------------------------------------------------------------------------------------


@cache
def _opening() -> re.Pattern[str]:
    """Return a pattern of polite phrases before the question."""
    greetings, requests = "|".join(lexicon.strings("greetings")), "|".join(lexicon.strings("requests"))
    return re.compile(rf"^(?:(?:{greetings})\b[\s,:!.]*)*(?:{requests})\b[\s,:]*")


@cache
def _auxiliary() -> re.Pattern[str]:
    return re.compile(rf"(?:{'|'.join(lexicon.words('auxiliaries'))})(?:n't)?\b")


def _kind(core: str) -> str:
    """Return the kind of the first question word; of two at the same place, the one listed first."""
    first, kind = len(core), ""
    for name, pattern in lexicon.kinds():
        match = pattern.search(core)
        if match and match.start() < first:
            first, kind = match.start(), name
    if kind:
        return kind
    return "whether" if _auxiliary().match(core) else ""


def _tense(tokens: Sequence[str]) -> str:
    for token in tokens:
        if token in lexicon.by_word("tenses"):
            return lexicon.by_word("tenses")[token]
    return ""


def _persons(core: str) -> str:
    found = ""
    for word in _LETTERS.findall(core):
        person = "1" if word in lexicon.words("first_person") else "2" if word in lexicon.words("second_person") else ""
        if not found.endswith(person):
            found += person
    return found


def _relations(tokens: Sequence[str]) -> frozenset[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for place, token in enumerate(tokens):
        if token in lexicon.words("directions"):
            governed = [word for word in tokens[place + 1 : place + 4] if word not in lexicon.words("stop_words")]
            found.update((token, word) for word in governed[:1])
    return frozenset(found)
