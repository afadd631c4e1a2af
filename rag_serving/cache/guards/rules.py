"""The rules: what two questions must have in common regardless of their cosine.

An embedding hardly distinguishes 2024 from 2025, "may" from "may not", "before" from "after" or Oslo from Bergen. Each
rule compares two questions parsed by `question.read` and returns why they differ. Cosines belong to `judge`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rag_serving.cache.evidence_record import Guard
from rag_serving.cache.guards import lexicon
from rag_serving.cache.guards.question import Question, Side
from rag_serving.cache.guards.tokens import bare_words, fold, singular, spaced


@dataclass(frozen=True, slots=True)
class Both:
    """The two questions to compare."""

    asked: Question
    cached: Question
    scope_words: Iterable[str] = ()
    """Names that restrict a question and may be typed in any case, such as regions and departments."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and the guard to which it belongs."""

    guard: Guard
    check: Callable[[Both], str | None]
    """Returns why the questions differ, quoting only the questions, or None."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The guard that refuses, and its reason."""

    guard: Guard
    reason: str


def disagreement(asked: Question, cached: Question, scope_words: Iterable[str] = ()) -> Disagreement | None:
    """Return the disagreement found by the first rule that refuses, or None. Symmetric except for the reason."""
    both = Both(asked, cached, scope_words)
    for rule in RULES:
        reason = rule.check(both)
        if reason is not None:
            return Disagreement(rule.guard, reason)
    return None


# --- dates, codes, numbers, scope words --------------------------------------------------------------------------


def _same(what: str, values: Callable[[Both, Question], Iterable[str]]) -> Callable[[Both], str | None]:
    """Return a check that both questions have the same values."""

    def check(both: Both) -> str | None:
        asked, cached = (sorted(set(values(both, question))) for question in (both.asked, both.cached))
        if asked == cached:
            return None
        return f"{what} differ: {', '.join(asked) or 'none'} against {', '.join(cached) or 'none'}"[:160]

    return check


def _values(_: Both, question: Question) -> Iterable[str]:
    return [value for value, _ in question.numbers]


def _measures(_: Both, question: Question) -> Iterable[str]:
    return [f"{value} {unit}".strip() for value, unit in question.numbers]


def _scope_words(both: Both, question: Question) -> Iterable[str]:
    text = " ".join(question.tokens)
    names = [" ".join(bare_words(fold(name))) for name in both.scope_words]
    return [name for name in names if name and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]


# --- names -------------------------------------------------------------------------------------------------------


def _names(both: Both) -> str | None:
    missing = _missing_names(both.asked, both.cached) + _missing_names(both.cached, both.asked)
    return f"only one of the questions names {', '.join(sorted(missing)[:3])}" if missing else None


def _missing_names(question: Question, other: Question) -> list[str]:
    """Return the names that the other question lacks, even as initials, in a gloss, or spelled in several words."""
    missing = [name for name in question.names if name not in other.forms]
    if not missing:
        return []
    known = {name for name, before in question.glosses if before in other.forms}
    known |= _written_apart(question, other) | _written_apart(other, question)
    return [name for name in missing if name not in known]


def _written_apart(question: Question, other: Question) -> set[str]:
    """Return words that the other question writes as initials or as one word: virtual private network, Git Lab."""
    joining = lexicon.words("joining_words")
    words = [part for word in question.tokens if word not in joining for part in word.split("-") if part]
    known: set[str] = set()
    for size in range(2, 6):
        for start in range(len(words) - size + 1):
            run = words[start : start + size]
            initials, joined = "".join(word[0] for word in run), "".join(run)
            if initials in other.names or (size == 2 and joined in other.forms):
                known.update(run, map(singular, run), (initials, joined))
    return known


# --- negation, direction, scope ----------------------------------------------------------------------------------


def _alternatives(both: Both) -> str | None:
    opposed = _opposed(both.asked.alternatives, both.cached.alternatives)
    return opposed and f"scopes differ: {opposed}"


def _persons(both: Both) -> str | None:
    asked, cached = both.asked.persons, both.cached.persons
    if asked and cached and not set(asked) & set(cached):
        return "one asks about “I”, the other about “you”"
    return None


def _negations(both: Both) -> str | None:
    return None if both.asked.negations == both.cached.negations else "only one of the questions negates"


def _prefixes(both: Both) -> str | None:
    return _negated(both.asked.tokens, both.cached.tokens) or _negated(both.cached.tokens, both.asked.tokens)


def _negated(words: Sequence[str], others: Sequence[str]) -> str | None:
    """Return why a word that the other question has only with a negating prefix differs: necessary, unnecessary."""
    for word in set(others) - set(words):
        for prefix in lexicon.words("negating_prefixes"):
            root = word.removeprefix(prefix)
            if root != word and len(root) >= 4 and root in words and root not in others:
                return f"one says “{root}”, the other “{word}”"
    return None


def _comparisons(both: Both) -> str | None:
    opposed = _opposed(both.asked.comparisons, both.cached.comparisons)
    return opposed and f"directions differ: {opposed}"


def _opposed(asked: frozenset[Side], cached: frozenset[Side]) -> str | None:
    """Return the sides of the first group in which the questions are on different sides."""
    for group in sorted({group for group, _ in asked} & {group for group, _ in cached}):
        one = {side for of, side in asked if of == group}
        other = {side for of, side in cached if of == group}
        if one != other:
            return f"{min(one - other or one)} against {min(other - one or other)}".replace("-", " ")
    return None


# --- what is asked for -------------------------------------------------------------------------------------------

_DEFINITE = frozenset(["count", "amount", "duration", "age", "frequency", "when", "where", "who", "why"])
_UNLIKE_HOW = frozenset(["when", "where", "who", "why"])


def _kinds(both: Both) -> str | None:
    """Compare definite kinds only, because "what" may ask for anything; "how" differs from some of them."""
    asked, cached = both.asked.kind, both.cached.kind
    definite = {asked, cached} <= _DEFINITE
    unlike_how = "how" in (asked, cached) and bool({asked, cached} & _UNLIKE_HOW)
    if asked != cached and (definite or unlike_how):
        return f"one asks “{asked}”, the other “{cached}”"
    return None


def _tenses(both: Both) -> str | None:
    asked, cached = both.asked.tense, both.cached.tense
    if both.asked.kind == both.cached.kind == "when" and asked and cached and asked != cached:
        return f"one asks when in the {asked}, the other in the {cached}"
    return None


# --- order -------------------------------------------------------------------------------------------------------


def _person_order(both: Both) -> str | None:
    asked, cached = both.asked.persons, both.cached.persons
    if len(asked) > 1 and asked == cached[::-1] != cached:
        return "“I” and “you” are swapped"
    return None


def _directions(both: Both) -> str | None:
    """Distinguish "from Oslo" from "to Oslo", unless a question contains both."""
    asked, cached = both.asked.relations, both.cached.relations
    for direction, word in asked:
        for other, same in cached:
            either = (other, word) in asked or (direction, word) in cached
            if word == same and direction != other and not either:
                return f"“{direction}” against “{other}” before the same word"
    return None


def _replaced_direction(both: Both) -> str | None:
    """Compare questions that differ in one direction only: allied with, allied against."""
    asked, cached = both.asked.tokens, both.cached.tokens
    if len(asked) != len(cached):
        return None
    replaced = [(one, other) for one, other in zip(asked, cached, strict=True) if one != other]
    if len(replaced) == 1 and lexicon.words("directions").issuperset(replaced[0]):
        return f"“{replaced[0][0]}” replaces “{replaced[0][1]}”"
    return None


def _word_order(both: Both) -> str | None:
    """Find three words in reverse order: who beat whom. Two are not enough, because "of" reverses them as well."""
    asked, cached = _content(both.asked.tokens), _content(both.cached.tokens)
    shared = [word for word in asked if asked.count(word) == cached.count(word) == 1]
    places = [cached.index(word) for word in shared]
    for middle in range(1, len(places) - 1):
        if max(places[:middle]) > places[middle] > min(places[middle + 1 :]):
            return "the same words are in reverse order"
    return None


def _content(tokens: Sequence[str]) -> list[str]:
    return [singular(word) for token in tokens if token not in lexicon.common_words() for word in spaced(token)]


RULES: Sequence[Rule] = (
    Rule("dates", _same("dates", lambda _, question: question.dates)),
    Rule("codes", _same("codes", lambda _, question: question.codes)),
    Rule("numbers", _same("numbers", _values)),
    Rule("units", _same("units", _measures)),
    Rule("names", _names),
    Rule("scope", _same("scopes", _scope_words)),
    Rule("negation", _negations),
    Rule("negation", _prefixes),
    Rule("comparison", _comparisons),
    Rule("scope", _alternatives),
    Rule("kind", _kinds),
    Rule("dates", _tenses),
    Rule("scope", _persons),
    Rule("order", _person_order),
    Rule("order", _directions),
    Rule("order", _replaced_direction),
    Rule("order", _word_order),
)
"""In order of evaluation; the first rule that refuses gives the reason."""
