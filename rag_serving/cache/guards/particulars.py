"""What two questions must have in common whatever their vectors say: numbers, units, dates, names, codes and scope.

An embedding hardly tells 2024 from 2025, "may" from "may not", "before" from "after" or Oslo from Bergen. `read` takes
a question apart once; `disagreement` compares two of them and names the first guard that refuses. Rules and word lists,
no model: what they find can be shown, and holds in domains that no training pair came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from rag_serving.cache.guards import lexicon, quantities
from rag_serving.cache.guards.words import CJK, COMMON, TOKEN, bare, fold, singular, spaced

Guard = Literal[
    "dates", "codes", "numbers", "units", "names", "negation", "comparison", "scope", "kind", "order",
    "similarity", "evidence", "wording",
]  # fmt: skip
"""What refused a hit. The last three are not of this module."""

_GLOSS = re.compile(r"([\w-]+) \(([^\W\d_]+)(?:'s)?\)")


@dataclass(frozen=True, slots=True)
class Question:
    """A question taken apart."""

    text: str
    tokens: tuple[str, ...]
    """Case-folded words in order, dates and numbers among them, possessive endings off."""
    forms: frozenset[str]
    """What a name may be found as: the words, their parts, and both without a plural ending."""
    numbers: tuple[quantities.Number, ...]
    dates: tuple[str, ...]
    codes: frozenset[str]
    names: frozenset[str]
    glosses: frozenset[tuple[str, str]]
    """Names that stand alone in parentheses, each with the word before: `("des", "diethylstilbestrol")`."""
    negations: int
    comparisons: frozenset[tuple[int, int]]
    scopes: frozenset[tuple[int, int]]
    kind: str
    """What is asked for, such as "when" or "count"; "what" and "how" may mean anything, "" is not known."""
    tense: str
    """"past", "present" or "future" by the first auxiliary verb, "" without one."""
    persons: str
    """Who is spoken of, in order: "1" the one who asks, "2" the one who answers."""
    relations: frozenset[tuple[str, str]]
    """Words of direction, each with the word it governs: `("from", "oslo")`."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Which guard refuses, and why in a few words, all of them the questions' own."""

    guard: Guard
    reason: str


@lru_cache(maxsize=1024)
def read(text: str) -> Question:
    """A question taken apart; never fails, whatever the text."""
    plain = fold(text)
    folded = plain.casefold()
    core = _OPENING.sub("", folded)
    scopes = _sides(lexicon.ALTERNATIVES, folded)
    dates, rest = quantities.dates(folded)
    raw = [match[0] for match in TOKEN.finditer(plain)]
    words = [bare(token) for token in raw]
    tokens = tuple(word for word in words if word)
    numbers, codes = quantities.numbers(rest)
    numbers += quantities.roman(plain)
    return Question(
        text=plain,
        tokens=tokens,
        forms=_forms(tokens),
        numbers=tuple(sorted(numbers)),
        dates=tuple(sorted(set(dates))),
        codes=codes,
        names=_names(raw, plain) - codes,
        glosses=frozenset((singular(m[2].casefold()), m[1]) for m in _GLOSS.finditer(folded)),
        negations=_negations(folded),
        comparisons=_sides(lexicon.COMPARISONS, folded),
        scopes=scopes,
        kind=_kind(core),
        tense=next((_TENSES[token] for token in tokens if token in _TENSES), ""),
        persons=_persons(core),
        relations=_relations(tokens),
    )


def disagreement(asked: Question, cached: Question, scope_words: Iterable[str] = ()) -> Disagreement | None:
    """The first guard that refuses, or None. Symmetric but for the wording of the reason.

    `scope_words` are names that a question may be limited by and that are typed in any case, such as regions,
    departments and products: both questions must name the same of them.
    """
    if asked.dates != cached.dates:
        return Disagreement("dates", f"dates differ: {_show(asked.dates, cached.dates)}")
    if asked.codes != cached.codes:
        return Disagreement("codes", f"codes differ: {_show(asked.codes, cached.codes)}")
    values = [{value for value, _ in question.numbers} for question in (asked, cached)]
    if values[0] != values[1]:
        return Disagreement("numbers", f"numbers differ: {_show(values[0], values[1])}")
    if set(asked.numbers) != set(cached.numbers):
        units = [[f"{v} {u}".strip() for v, u in question.numbers] for question in (asked, cached)]
        return Disagreement("units", f"units differ: {_show(*units)}")
    missing = _unnamed(asked, cached) + _unnamed(cached, asked)
    if missing:
        return Disagreement("names", f"only one of the questions names {', '.join(sorted(missing)[:3])}")
    limits = [_mentioned(question, scope_words) for question in (asked, cached)]
    if limits[0] != limits[1]:
        return Disagreement("scope", f"scopes differ: {_show(*limits)}")
    if asked.negations != cached.negations:
        return Disagreement("negation", "one of the questions negates what the other does not")
    prefixed = _prefixed(asked.tokens, cached.tokens) or _prefixed(cached.tokens, asked.tokens)
    if prefixed is not None:
        return Disagreement("negation", f"one says “{prefixed[0]}”, the other “{prefixed[1]}”")
    opposed = _opposed(asked.comparisons, cached.comparisons)
    if opposed is not None:
        return Disagreement("comparison", f"directions differ: {_sides_shown(lexicon.COMPARISONS, *opposed)}")
    opposed = _opposed(asked.scopes, cached.scopes)
    if opposed is not None:
        return Disagreement("scope", f"scopes differ: {_sides_shown(lexicon.ALTERNATIVES, *opposed)}")
    kinds = {asked.kind, cached.kind}
    if len(kinds) == 2 and (kinds <= _DEFINITE or ("how" in kinds and kinds & _UNLIKE_HOW)):
        return Disagreement("kind", f"one asks “{asked.kind}”, the other “{cached.kind}”")
    if "when" == asked.kind == cached.kind and asked.tense and cached.tense and asked.tense != cached.tense:
        return Disagreement("dates", f"one asks when in the {asked.tense}, the other in the {cached.tense}")
    if asked.persons and cached.persons and not set(asked.persons) & set(cached.persons):
        return Disagreement("scope", "one asks about the one who asks, the other about the one who answers")
    if len(asked.persons) > 1 and asked.persons == cached.persons[::-1] != cached.persons:
        return Disagreement("order", "“I” and “you” stand in each other's place")
    return _order(asked, cached)


# --- words -------------------------------------------------------------------------------------------------------


def _forms(tokens: Sequence[str]) -> frozenset[str]:
    forms = set(tokens)
    for token in tokens:
        forms.update(part for part in re.split(r"[^\w]+", token) if part)
        forms.add(re.sub(r"\W", "", token))
    forms.update([singular(form) for form in forms])
    return frozenset(forms)


def _unnamed(question: Question, other: Question) -> list[str]:
    """Names of a question that the other one does not have, also not spelt apart or as initials."""
    missing = [name for name in question.names if name not in other.forms]
    if not missing:
        return []
    known = {name for name, before in question.glosses if before in other.forms}
    for mine, theirs in ((question, other), (other, question)):
        words = [part for word in mine.tokens if word not in _JOINTS for part in word.split("-") if part]
        for size in range(2, 6):
            for start in range(len(words) - size + 1):
                run = words[start : start + size]
                short = "".join(word[0] for word in run)
                if (short in theirs.names and len(short) > 1) or (size == 2 and "".join(run) in theirs.forms):
                    known.update([*run, *map(singular, run), short, "".join(run)])
    return [name for name in missing if name not in known]


_PREFIXES = (
    "un",
    "in",
    "im",
    "il",
    "ir",
    "dis",
    "non",
    "non-",
    "anti",
    "anti-",
    "mis",
    "semi-",
    "pre-",
    "post-",
    "ex-",
    "half-",
    "quasi-",
    "pseudo-",
    "vice-",
    "de",
)
_JOINTS = frozenset(["of", "the", "and", "for", "de", "der", "du"])
_NO_ACRONYMS = frozenset(
    ["i", "ok", "faq", "a", "ii", "iii", "iv", "asap", "fyi", "dr", "mr", "mrs", "ms", "pls", "hi", "am", "pm"]
)


def _names(raw: Sequence[str], plain: str) -> frozenset[str]:
    """Words whose capitals say that they are names, in the form in which the other question is looked through.

    Where nearly every word has a capital, as in a heading, capitals say nothing.
    """
    letters = [token for token in raw if token[0].isalpha() and len(token) > 3]
    if len(letters) >= 3 and sum(token[0].isupper() for token in letters) >= 0.8 * len(letters):
        return frozenset()
    found: set[str] = set()
    starts = _sentence_starts(plain, raw)
    for place, token in enumerate(raw):
        if not any(c.isupper() for c in token):
            continue
        word = bare(token)
        inner = any(c.isupper() for c in token[1:])
        if any(c.isdigit() for c in word):
            continue  # a code, a date or a number
        if word in _NO_ACRONYMS or word.startswith("i'") or not word or not word[0].isalpha():
            continue
        if inner or (token[0].isupper() and place not in starts and word not in COMMON and len(word) > 1):
            found.add(word if "-" in word or "'" in word else singular(word))
    return frozenset(found)


def _sentence_starts(plain: str, raw: Sequence[str]) -> set[int]:
    starts = {0}
    position = 0
    for place, token in enumerate(raw):
        at = plain.index(token, position)
        if re.search(r"[.?!:;(\"“]\s*$", plain[max(0, at - 3) : at]):
            starts.add(place)
        position = at + len(token)
    return starts


def _negations(folded: str) -> int:
    count = 0
    for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", folded.replace(" or not", "")):
        if word in lexicon.NEGATIONS or word.endswith("n't") or word in lexicon.CONTRACTED_NEGATIONS:
            count += 1
    count += len(re.findall(lexicon.NEGATING_PHRASES, folded))
    if CJK.search(folded):
        count += len(re.findall("|".join(lexicon.JAPANESE_NEGATIONS), folded))
    return count


def _prefixed(words: Sequence[str], others: Sequence[str]) -> tuple[str, str] | None:
    """A word that the other question has with a negating prefix, and only so: necessary, unnecessary."""
    for word in set(others) - set(words):
        for prefix in _PREFIXES:
            root = word.removeprefix(prefix)
            if root != word and len(root) >= 4 and root in words and root not in others:
                return root, word
    return None


@cache
def _side_patterns(
    groups: lexicon.Groups,
) -> tuple[re.Pattern[str], dict[str, tuple[tuple[int, int], ...]]]:
    """One pattern for all phrases, the longest first, and where each belongs."""
    belongs: dict[str, list[tuple[int, int]]] = {}
    for group, sides in enumerate(groups):
        for side, phrases in enumerate(sides):
            for phrase in phrases:
                belongs.setdefault(phrase, []).append((group, side))
    ordered = sorted(belongs, key=len, reverse=True)
    spaced = "|".join(re.escape(phrase) for phrase in ordered if not CJK.search(phrase))
    unspaced = "|".join(re.escape(phrase) for phrase in ordered if CJK.search(phrase))
    pattern = re.compile(rf"(?<![\w-])(?:{spaced})(?![\w-])|(?:{unspaced})")
    return pattern, {phrase: tuple(places) for phrase, places in belongs.items()}


def _sides(groups: lexicon.Groups, folded: str) -> frozenset[tuple[int, int]]:
    pattern, belongs = _side_patterns(groups)
    return frozenset(place for match in pattern.finditer(folded) for place in belongs[match[0]])


def _opposed(left: frozenset[tuple[int, int]], right: frozenset[tuple[int, int]]) -> tuple[int, int, int] | None:
    """A group of which both questions have sides, and not the same: the group and a side of either."""
    for group in sorted({group for group, _ in left} & {group for group, _ in right}):
        one = {side for of, side in left if of == group}
        other = {side for of, side in right if of == group}
        if one != other:
            return group, min(one - other or one), min(other - one or other)
    return None


def _mentioned(question: Question, scope_words: Iterable[str]) -> frozenset[str]:
    spaced = " ".join(question.tokens)
    found: set[str] = set()
    for name in scope_words:
        words = " ".join(bare(match[0]) for match in TOKEN.finditer(fold(name)))
        if words and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", spaced):
            found.add(words)
    return frozenset(found)


_OPENING = re.compile(
    r"^(?:(?:hi|hello|hey|please|quick question|so|well|ok|okay)\b[\s,:!.]*)*"
    r"(?:(?:can|could|would|will) you (?:please |kindly )?(?:tell|show|help|explain|give|let)(?: me| us)?(?: know)?"
    r"|do you know|(?:please )?(?:tell|show|let) (?:me|us)(?: know)?|i(?: would|'d) like to know|i want to know"
    r"|i need to know|i(?: am|'m) (?:wondering|trying to find out)|i wonder)\b[\s,:]*"
)
"""Politeness before the question, whose pronouns and verbs say nothing."""
_WHETHER = re.compile(
    r"(?:do|does|did|is|are|am|was|were|has|have|had|should|must|may|might|can|could|will|would)(?:n't)?\b"
)
_TENSES = {
    **dict.fromkeys(("did", "was", "were", "had", "didn't", "wasn't", "weren't"), "past"),
    **dict.fromkeys(("do", "does", "is", "are", "am", "has", "don't", "doesn't", "isn't", "aren't"), "present"),
    **dict.fromkeys(("will", "won't", "shall"), "future"),
}
_FIRST = frozenset(["i", "me", "my", "mine", "we", "us", "our", "im", "ive"])
_SECOND = frozenset(["you", "your", "yours"])


def _kind_pattern(patterns: Sequence[str]) -> re.Pattern[str]:
    """Words by themselves, but for Japanese, which has no spaces."""
    spaced = "|".join(pattern for pattern in patterns if not CJK.search(pattern))
    unspaced = [pattern for pattern in patterns if CJK.search(pattern)]
    return re.compile("|".join([rf"(?<![\w-])(?:{spaced})(?![\w-])", *unspaced]))


_KINDS = tuple((kind, _kind_pattern(patterns)) for kind, *patterns in lexicon.KINDS)
_DEFINITE = frozenset(["count", "amount", "duration", "age", "frequency", "when", "where", "who", "why"])

_UNLIKE_HOW = frozenset(["when", "where", "who", "why"])


def _kind(folded: str) -> str:
    """The kind of the question word that comes first; of two that begin together, the one listed first."""
    found = [(match.start(), order, kind) for order, (kind, p) in enumerate(_KINDS) if (match := p.search(folded))]
    if found:
        return min(found)[2]
    return "whether" if _WHETHER.match(folded) else ""


def _persons(core: str) -> str:
    found = ["1" if word in _FIRST else "2" for word in re.findall(r"[^\W\d_]+", core) if word in _FIRST | _SECOND]
    return "".join(person for place, person in enumerate(found) if found[place - 1 : place] != [person])


# --- order -------------------------------------------------------------------------------------------------------

_DIRECTIONS = frozenset("from to into by than with against outside von nach desde hasta til fra".split())  # noqa: SIM905


def _relations(tokens: Sequence[str]) -> frozenset[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for place, token in enumerate(tokens):
        if token in _DIRECTIONS:
            governed = next((word for word in tokens[place + 1 : place + 4] if word not in lexicon.STOP_WORDS), None)
            if governed is not None:
                found.add((token, governed))
    return frozenset(found)


def _order(asked: Question, cached: Question) -> Disagreement | None:
    """Whether the same words stand in another's place: from Oslo to Bergen, or who beat whom."""
    for direction, word in asked.relations:
        for other, same in cached.relations:
            both = (other, word) in asked.relations or (direction, word) in cached.relations
            if word == same and direction != other and not both:
                return Disagreement("order", f"“{direction}” against “{other}” before one word")
    if len(asked.tokens) == len(cached.tokens):
        others = [pair for pair in zip(asked.tokens, cached.tokens, strict=True) if pair[0] != pair[1]]
        if len(others) == 1 and set(others[0]) <= _DIRECTIONS:
            return Disagreement("order", f"“{others[0][0]}” stands for “{others[0][1]}”")
    left, right = (_content(question.tokens) for question in (asked, cached))
    shared = [word for word in left if word in set(right) and left.count(word) == 1 and right.count(word) == 1]
    places = [right.index(word) for word in shared]
    for middle in range(1, len(places) - 1):
        # Three words in the reverse order, who beat whom; two are turned round by "of" as well.
        if max(places[:middle]) > places[middle] > min(places[middle + 1 :]):
            return Disagreement("order", "the same words stand in the reverse order")
    return None


def _content(tokens: Sequence[str]) -> list[str]:
    return [singular(word) for token in tokens if token not in COMMON for word in spaced(token)]


def _show(left: Iterable[str], right: Iterable[str]) -> str:
    return f"{', '.join(sorted(left)) or 'none'} against {', '.join(sorted(right)) or 'none'}"[:160]


def _sides_shown(groups: lexicon.Groups, group: int, left: int, right: int) -> str:
    return " against ".join(groups[group][side][0] for side in (left, right))
