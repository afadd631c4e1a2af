"""The rules: what two questions must have in common regardless of their cosine.

An embedding hardly distinguishes 2024 from 2025, "may" from "may not", Oslo from Bergen, or who pays whom. Each rule
compares two questions parsed by `question.read` and returns why they differ. Cosines belong to `judge`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rag_serving.cache.evidence_record import Guard
from rag_serving.cache.guards import lexicon
from rag_serving.cache.guards.question import Question
from rag_serving.cache.guards.tokens import bare, is_misspelt, meaning, singular, stem


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The guard that refuses, and its reason, which quotes only the questions."""

    guard: Guard
    reason: str


def disagreement(asked: Question, cached: Question, scope_words: Iterable[str] = ()) -> Disagreement | None:
    """Return why two questions differ in a detail, or None. Symmetric except for the reason.

    `scope_words` are names that restrict a question and may be typed in any case, such as regions and departments.
    Questions that are not both English must be the same but for politeness, articles and pronouns.
    """
    if not (asked.english and cached.english):
        return None if asked.plain == cached.plain else Disagreement("language", "it is not the same in other words")
    named = particulars(asked, cached) or _scopes(asked, cached, scope_words)
    if named is not None:
        return named
    for guard, check in RULES:
        reason = check(asked, cached)
        if reason is not None:
            return Disagreement(guard, reason)
    return None


def particulars(asked: Question, cached: Question) -> Disagreement | None:
    """Return the first difference in dates, codes, numbers or symbols, or None."""
    pairs: Sequence[tuple[Guard, frozenset[str], frozenset[str]]] = (
        ("dates", asked.dates, cached.dates),
        ("codes", asked.codes, cached.codes),
        ("numbers", asked.numbers, cached.numbers),
    )
    for guard, one, other in pairs:
        if one != other:
            return Disagreement(guard, f"{guard} differ: {_listed(one)} against {_listed(other)}"[:160])
    return _symbols(asked, cached)


_UNIT = re.compile(r"[kmgtp](?:[bwvajgls]|wh|hz|pa|ohm)")


def _symbols(asked: Question, cached: Question) -> Disagreement | None:
    """Compare symbols that differ only in case: mW and MW, Co and CO, Mb and mb, US and us."""
    for word in asked.cases.keys() & cached.cases.keys():
        one, other = asked.cases[word], cached.cases[word]
        if one == other:
            continue
        question = asked if one == word else cached  # the one without capitals, if any
        pronoun = word in lexicon.words("stop_words") and len(word) > 1 and question.cased
        if word not in (one, other) or _UNIT.fullmatch(word) or pronoun:
            return Disagreement("units", f"“{one}” against “{other}”")
    return None


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(values)) or "none"


def _scopes(asked: Question, cached: Question, scope_words: Iterable[str]) -> Disagreement | None:
    texts = [f" {' '.join(question.plain)} " for question in (asked, cached)]
    for name in sorted(scope_words):
        words = " ".join(filter(None, map(bare, name.split())))
        if words and (f" {words} " in texts[0]) != (f" {words} " in texts[1]):
            return Disagreement("scope", f"only one of the questions names {words}")
    return None


# --- names -------------------------------------------------------------------------------------------------------


def _names(asked: Question, cached: Question) -> str | None:
    missing = _missing_names(asked, cached) + _missing_names(cached, asked)
    return f"only one of the questions names {', '.join(sorted(missing)[:3])}" if missing else None


def _missing_names(question: Question, other: Question) -> list[str]:
    """Return the names that the other question lacks, even as initials, as a synonym, or in several words."""
    missing = [n for n in question.names if n not in other.forms and meaning(stem(n)) not in other.forms]
    if not missing:
        return []
    known = _written_apart(question, other) | _written_apart(other, question)
    return [name for name in missing if name not in known]


def _written_apart(question: Question, other: Question) -> set[str]:
    """Return words that the other question writes as initials or as one word: virtual private network, Git Lab."""
    joining = lexicon.words("joining_words")
    words = [part for word in question.plain if word not in joining for part in word.split("-") if part]
    known: set[str] = set()
    for size in range(2, 6):
        for start in range(len(words) - size + 1):
            run = words[start : start + size]
            initials, joined = "".join(word[0] for word in run), "".join(run)
            if initials in other.names or (size == 2 and joined in other.forms):
                known.update(run, map(singular, run), (initials, joined))
    return known


# --- negation and what is asked for ------------------------------------------------------------------------------


def _negations(asked: Question, cached: Question) -> str | None:
    if asked.negations != cached.negations:
        return "only one of the questions negates"
    return _opposite(asked, cached) or _opposite(cached, asked)


def _opposite(question: Question, other: Question) -> str | None:
    """Find a word that the other question has only without its negating prefix: unnecessary, necessary."""
    for one, word in question.content.items():
        for prefix in lexicon.words("negating_prefixes"):
            root = word.removeprefix(prefix)
            if root != word and len(root) >= 4 and root in other.forms - question.forms and one not in other.counts:
                return f"“{word}” against “{root}”"
    return None


_CLOSE = frozenset(
    frozenset(pair.split())
    for pair in (
        "what count", "what long", "what often", "what when", "what where", "what who", "what whom", "how why",
        "how count",
        "count long", "long when", "often when", "whether must", "whether may",
    )
)  # fmt: skip
"""Kinds that may ask for the same thing: "how many days" and "how long"."""


def _kinds(asked: Question, cached: Question) -> str | None:
    kinds = frozenset([asked.kind, cached.kind])
    if len(kinds) == 1 or kinds & {"", "statement"} or kinds in _CLOSE:
        return None
    return f"one asks “{asked.kind}”, the other “{cached.kind}”"


# --- wording -----------------------------------------------------------------------------------------------------


def additions(asked: Question, cached: Question) -> tuple[frozenset[str], frozenset[str]]:
    """Return the content words that only one of the questions has, for each; typing mistakes are repaired."""
    left = dict(asked.content)
    right = dict(cached.content)
    for one in left.keys() & right.keys():
        del left[one], right[one]
    _join(left, right, cached)
    _join(right, left, asked)
    for one, word in list(left.items()):
        meant = next((other for other, typed in right.items() if _is_mistake(word, typed, asked, cached)), None)
        if meant is not None:
            del left[one], right[meant]
    if left and right:
        known = _written_apart(asked, cached) | _written_apart(cached, asked)
        left = {one: word for one, word in left.items() if word not in known}
        right = {one: word for one, word in right.items() if word not in known}
    return frozenset(left), frozenset(right)


Wording = Literal["same", "similar", "more words"]


def wording(asked: Question, cached: Question) -> Wording:
    """Return how far the wording of two questions agrees that pass the rules.

    "same": the same content words and kind of question, or a search by these words; only function words, endings,
    synonyms and typing mistakes differ. "similar": the same content words. "more words": one question has more.
    """
    if any(additions(asked, cached)):
        return "more words"
    kinds = {asked.kind, cached.kind}
    alike = "" in kinds or (len(kinds) == 1 and "statement" not in kinds)
    return "same" if alike and (asked.light <= cached.light or asked.light >= cached.light) else "similar"


def _join(left: dict[str, str], right: dict[str, str], other: Question) -> None:
    """Remove words that the other question writes as two: login, log in."""
    for one, word in list(left.items()):
        parts = other.joined.get(word)
        if parts is not None:
            del left[one]
            for part in parts:
                right.pop(part, None)


def _is_mistake(word: str, other: str, asked: Question, cached: Question) -> bool:
    return word not in asked.names and other not in cached.names and is_misspelt(word, other)


def _replaced(asked: Question, cached: Question) -> str | None:
    """Find a content word that each question lacks, or has less often: one was replaced by the other."""
    named = any(one.content or one.numbers or one.codes for one in (asked, cached))
    if not named and asked.plain != cached.plain:
        return "the questions have function words only"
    left, right = additions(asked, cached)
    shared = asked.content.keys() & cached.content.keys()
    fewer = [*right, *(one for one in shared if asked.counts[one] < cached.counts[one])]
    more = [*left, *(one for one in shared if asked.counts[one] > cached.counts[one])]
    return f"“{min(more)}” replaces “{min(fewer)}”" if fewer and more else None


# --- order -------------------------------------------------------------------------------------------------------


def _roles(asked: Question, cached: Question) -> str | None:
    """Distinguish "NOK to EUR" from "EUR to NOK": a direction governs another of the words that both have."""
    both = asked.counts.keys() & cached.counts.keys()
    for direction, word in asked.roles - cached.roles:
        others = {of for one, of in cached.roles - asked.roles if one == direction}
        if word in both and others & both:
            return f"“{direction}” governs another word"
    return None


def _persons(asked: Question, cached: Question) -> str | None:
    if len(asked.persons) == 2 and asked.persons == cached.persons[::-1]:
        return "“I” and “you” are exchanged"
    return None


def _keywords(asked: Question, cached: Question) -> bool:
    """Return whether one of the questions is a search by keywords, whose order means little."""
    return (asked.kind == "") != (cached.kind == "")


def _passive(asked: Question, cached: Question) -> str | None:
    """Find an agent after "by" that the other question, in the active voice, has as the object in the same order."""
    for one, other in ((asked, cached), (cached, asked)):
        for agent in [of for role, of in one.roles if role == "by" and of in other.content and of in one.content]:
            first = next((word for word in other.sequence if word in one.content), agent)
            governed = any(of == agent for _, of in other.roles)
            if "by" not in other.counts and not governed and first != agent and _precedes(one, first, agent):
                return f"“by” governs “{agent}”, which is the object in the other question"
    return None


def _precedes(question: Question, first: str, other: str) -> bool:
    return question.sequence.index(first) < question.sequence.index(other)


def _exchanged(asked: Question, cached: Question) -> str | None:
    """Find two words in each other's place, with words between: the employee gives the company.

    A direction that replaces another one counts, too: allied with, allied against.
    """
    one, other = asked.sequence, cached.sequence
    if len(one) != len(other) or _keywords(asked, cached):
        return None
    places = [place for place, word in enumerate(one) if word != other[place]]
    if len(places) == 1 and lexicon.words("directions") >= {one[places[0]], other[places[0]]}:
        return f"“{one[places[0]]}” against “{other[places[0]]}”"
    if len(places) == 2 and places[1] > places[0] + 1 and one[places[0]] == other[places[1]]:
        return f"“{one[places[0]]}” and “{one[places[1]]}” are exchanged"
    return None


def _reversed(asked: Question, cached: Question) -> str | None:
    """Find three words in reverse order: who beat whom. Two are not enough, because "of" reverses them as well."""
    directions = lexicon.words("directions")
    if _keywords(asked, cached) or ("by" in asked.counts) != ("by" in cached.counts):
        return None
    found = {word: place for place, word in enumerate(cached.sequence)}
    places = [
        found[word]
        for word in asked.sequence
        if word not in directions and word in found and asked.counts[word] == cached.counts[word] == 1
    ]
    for middle in range(1, len(places) - 1):
        if max(places[:middle]) > places[middle] > min(places[middle + 1 :]):
            return "the same words are in reverse order"
    return None


RULES: Sequence[tuple[Guard, Callable[[Question, Question], str | None]]] = (
    ("names", _names),
    ("negation", _negations),
    ("kind", _kinds),
    ("order", _persons),
    ("order", _roles),
    ("order", _passive),
    ("order", _exchanged),
    ("order", _reversed),
    ("wording", _replaced),
)
"""In order of evaluation; the first rule that refuses gives the reason."""
