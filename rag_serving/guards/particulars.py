"""What two questions must have in common whatever their vectors say: numbers, units, dates, names, codes and scope.

An embedding hardly tells 2024 from 2025, "may" from "may not", "before" from "after" or Oslo from Bergen. `read` takes
a question apart once; `disagreement` compares two of them and names the first guard that refuses. Rules and word lists,
no model: what they find can be shown, and holds in domains that no training pair came from.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from rag_serving.guards import lexicon

Guard = Literal[
    "dates", "codes", "numbers", "units", "names", "negation", "comparison", "scope", "kind", "order",
    "similarity", "evidence", "wording",
]  # fmt: skip
"""What refused a hit. The last three are not of this module."""

_TOKEN = re.compile(
    r"[\w.+-]+@[\w-]+\.[\w.-]+"  # addresses
    r"|\.?[^\W_]+(?:[.:/_&#@+’'-]+[^\W_]+)*(?:\+\+|\+|#)?"
    r"|[%°$€£¥₹]"
)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_MARKS = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‑": "-", "\u00a0": " ", "\u202f": " "}
)

_MONTH = "|".join(sorted(map(re.escape, lexicon.MONTHS), key=len, reverse=True))
_ISO = re.compile(r"(?<![\d-])(\d{4})-(\d{1,2})(?:-(\d{1,2}))?(?![\d-])")
_JAPANESE_DATE = re.compile(r"(?:(\d{4})年)?(\d{1,2})月(?:(\d{1,2})日)?")
_SLASHED = re.compile(r"\b(\d{1,2})([./])(\d{1,2})\2(\d{4}|\d{2})\b")
_DAY_MONTH = re.compile(
    rf"\b(\d{{1,2}})(?:st|nd|rd|th|er|º|\.)?\s*(?:of\s+|de\s+|-)?({_MONTH})\b\.?(?:,?\s*(?:of\s+|de\s+|-)?(\d{{4}}))?"
)
_MONTH_DAY = re.compile(rf"\b({_MONTH})\b\.?\s+(?:the\s+)?(\d{{1,2}})(?:st|nd|rd|th)?\b(?!:)(?:,?\s+(\d{{4}}))?")
_MONTH_YEAR = re.compile(rf"\b({_MONTH})\b\.?,?\s+(?:of\s+|de\s+)?'?(\d{{4}})\b")
_LONE_MONTH = re.compile(rf"(?:\b([\w]+)\s+)?\b({_MONTH})\b")
_CLOCK = re.compile(
    r"\b(\d{1,2})(?:[:.h](\d{2}))?\s*([ap])\.?m\b\.?|\b(\d{1,2}):(\d{2})\b|\b(\d{1,2})\s*uhr\b|(\d{1,2})時(?!間)"
)
_QUARTER = re.compile(r"\b(q[1-4]|h[12])\b|\b(first|second|third|fourth|last)[\s-]+(quarter|half)\b")
_FISCAL = re.compile(r"\b(?:fy|fiscal(?:\s+year)?)[\s-]*'?(\d{4}|\d{2})\b")
_ERA = re.compile(r"\b(\d{1,4})\s*(bce|bc|ad|ce)\b|\b(\d{3}0|\d0)'?s\b")
_NUMBER = re.compile(r"(?<![\w.,/+-])(?:(?<!\S)[-+])?(?:\d{1,3}(?:[,' .]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*)")
_NUMBER_UNIT = re.compile(r"^(\d+(?:[.,]\d+)?)-?([^\W\d]+|%)$")
_ROMAN = re.compile(r"\b(\w+) (ii|iii|II|III|IV|VI|VII|VIII|IX)\b|\b([A-Z]\w+) ([IVX])\b")
_GLOSS = re.compile(r"([\w-]+) \(([^\W\d_]+)(?:'s)?\)")
_ORDINAL = re.compile(r"^(\d+)(?:st|nd|rd|th|º|ª|er|ème|e)$")

Number = tuple[str, str]
"""A value as text, with "#" before an ordinal, and its unit or ""."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question taken apart."""

    text: str
    tokens: tuple[str, ...]
    """Case-folded words in order, dates and numbers among them, possessive endings off."""
    forms: frozenset[str]
    """What a name may be found as: the words, their parts, and both without a plural ending."""
    numbers: tuple[Number, ...]
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


def fold(text: str) -> str:
    """Compatibility forms, quotes and dashes made plain, white space single, case kept."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_MARKS).split())


@lru_cache(maxsize=4096)
def read(text: str) -> Question:
    """A question taken apart; never fails, whatever the text."""
    plain = fold(text)
    folded = plain.casefold()
    core = _OPENING.sub("", folded)
    scopes = _sides(lexicon.ALTERNATIVES, folded)
    dates, rest = _dates(folded)
    raw = [match[0] for match in _TOKEN.finditer(plain)]
    words = [_bare(token) for token in raw]
    tokens = tuple(word for word in words if word)
    numbers, codes = _numbers(rest)
    numbers += _roman(plain)
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


# --- dates and numbers -------------------------------------------------------------------------------------------


def _dates(folded: str) -> tuple[list[str], str]:
    """Dates and times in one notation each, and the text without them."""
    found: list[str] = []

    def take(name: str) -> str:
        found.append(name)
        return " "

    def date(year: str | None, month: int, day: str | None) -> str:
        if not 1 <= month <= 12 or (day is not None and not 1 <= int(day) <= 31):
            return ""
        return take(f"{year or '?'}-{month:02}" + (f"-{int(day):02}" if day else ""))

    def slashed(match: re.Match[str]) -> str:
        first, second = int(match[1]), int(match[3])
        year = match[4] if len(match[4]) == 4 else f"20{match[4]}"
        if match[2] == "." or first > 12:
            return date(year, second, match[1]) or match[0]
        if second > 12:
            return date(year, first, match[3]) or match[0]
        return take(f"{year}-{first}/{second}")  # day first or month first: nobody knows

    def clock(match: re.Match[str]) -> str:
        hour = int(next(part for part in (match[1], match[4], match[6], match[7]) if part))
        minute = int(match[2] or match[5] or 0)
        if match[3]:
            hour = hour % 12 + (12 if match[3] == "p" else 0)
        return take(f"{hour:02}:{minute:02}")

    def quarter(match: re.Match[str]) -> str:
        if match[1]:
            return take(match[1])
        number = {"first": 1, "second": 2, "third": 3, "fourth": 4, "last": 4 if match[3] == "quarter" else 2}
        if match[2] == "last" and match[3] == "quarter":
            return match[0]  # the one before this one, more often than the year's last
        return take(f"{match[3][0]}{number[match[2]]}")

    months = lexicon.MONTHS
    text = folded
    text = _ISO.sub(lambda m: date(m[1], int(m[2]), m[3]) or m[0], text)
    text = _JAPANESE_DATE.sub(lambda m: date(m[1], int(m[2]), m[3]) or m[0], text)
    text = _SLASHED.sub(slashed, text)
    text = _DAY_MONTH.sub(lambda m: date(m[3], months[m[2]], m[1]) or m[0], text)
    text = _MONTH_YEAR.sub(lambda m: date(m[2], months[m[1]], None) or m[0], text)
    text = _MONTH_DAY.sub(lambda m: date(m[3], months[m[1]], m[2]) or m[0], text)
    text = _FISCAL.sub(lambda m: take(f"fy{m[1][-2:]}"), text)
    text = _QUARTER.sub(quarter, text)
    text = _CLOCK.sub(clock, text)
    text = _ERA.sub(lambda m: take(f"{m[1]}{'bc' if m[2][0] == 'b' else 'ad'}" if m[1] else f"{m[3]}s"), text)

    def lone(match: re.Match[str]) -> str:
        before, name = match[1], match[2]
        if name in lexicon.AMBIGUOUS_MONTHS and before not in lexicon.BEFORE_MONTHS:
            return match[0]
        take(f"?-{months[name]:02}")
        return f"{before or ''} "

    text = _LONE_MONTH.sub(lone, text)
    words = re.findall(r"[^\W\d]+(?:-feira)?", text)
    found += [f"weekday {lexicon.WEEKDAYS[word]}" for word in words if word in lexicon.WEEKDAYS]
    return found, text


def _numbers(text: str) -> tuple[list[Number], frozenset[str]]:
    """Numbers with their units, and codes: what mixes digits or signs with letters."""
    numbers: list[Number] = []
    codes: set[str] = set()
    text = _NUMBER.sub(lambda match: f" {_value(match[0])} " if _apart(match, text) else match[0], text)
    tokens = [match[0] for match in _TOKEN.finditer(text)]
    words: list[str] = []
    for token in tokens:
        glued = _NUMBER_UNIT.match(token)
        parts = token.split("-")
        if (glued and glued[2] in lexicon.UNITS) or (glued and glued[2] in lexicon.SCALES):
            words += [_value(glued[1]), glued[2]]
        elif len(parts) > 1 and _spoken(parts):
            words += parts
        else:
            words.append(token)
    place = 0
    while place < len(words):
        value, place_after = _spoken_number(words, place)
        if value is None:
            word = words[place]
            if any(c.isdigit() for c in word) or word.endswith(("+", "#")):
                ordinal = _ORDINAL.match(word)
                if ordinal:
                    numbers.append((f"#{int(ordinal[1])}", ""))
                elif not _CJK.search(word):
                    codes.add(word.strip("."))
            elif word in lexicon.ORDINALS and not (word == "second" and words[place - 1 : place] == ["per"]):
                numbers.append((f"#{lexicon.ORDINALS[word]}", ""))
            place += 1
            continue
        unit = lexicon.UNITS.get(words[place_after], "") if place_after < len(words) else ""
        before = lexicon.UNITS.get(words[place - 1], "") if place else ""
        if unit:
            place_after += 1
        elif before in lexicon.CURRENCIES:
            unit = before
        numbers.append((value, unit))
        place = place_after
    return numbers, frozenset(codes)


def _roman(plain: str) -> list[Number]:
    """Roman numerals that follow a word; "I" and its like after a capital that begins no question, "Should I"."""
    return [
        ((match[2] or match[4]).casefold(), "")
        for match in _ROMAN.finditer(plain)
        if match[2] or match[3].casefold() not in _COMMON
    ]


def _spoken(parts: Sequence[str]) -> bool:
    """Whether a hyphenated word is a number with what is counted, as in "14-year-old"; "covid-19" is a code."""
    head = parts[0]
    if not all(part.isalpha() or part.isdecimal() for part in parts):
        return False
    if head.isdecimal():
        return parts[1].isalpha()
    return head in lexicon.NUMBER_WORDS or (head == "one" and parts[1] in lexicon.UNITS)


def _spoken_number(words: Sequence[str], place: int) -> tuple[str | None, int]:
    """A number in digits or words that begins there, and the place after it."""
    word = words[place]
    if re.fullmatch(r"[-+]?\d+(?:\.\d+)?", word):
        value = float(word)
        place += 1
    elif word in lexicon.NUMBER_WORDS:
        value = float(lexicon.NUMBER_WORDS[word])
        place += 1
        if value >= 20 and place < len(words):
            digit = 1 if words[place] == "one" else lexicon.NUMBER_WORDS.get(words[place], 10)
            if digit < 10:
                value += digit
                place += 1
    elif word in ("one", "a", "an") and place + 1 < len(words) and _counts(word, words[place + 1]):
        value = 1.0
        place += 1
    else:
        return None, place
    while place < len(words) and words[place] in lexicon.SCALES:
        value *= lexicon.SCALES[words[place]]
        place += 1
    return _plain(value), place


def _counts(word: str, following: str) -> bool:
    if following in lexicon.SCALES and len(following) > 1:
        return True
    return word == "one" and following in lexicon.UNITS


def _apart(match: re.Match[str], text: str) -> bool:
    """Whether a number stands by itself, beside white space, punctuation, a unit's sign or Japanese."""
    after = text[match.end() : match.end() + 1]
    return not after or after.isspace() or after in "%°$€£¥₹,.;:?!)'\"" or _CJK.match(after) is not None


def _value(number: str) -> str:
    """Digits without grouping: 1,000 and 1 000 are 1000; 2,5 is 2.5; a version such as 1.2.3 stays."""
    sign = "-" if number.startswith("-") else ""
    digits = number.lstrip("+-")
    if re.fullmatch(r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d+", digits):
        digits = digits.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"\d{1,3}(?:[,' ]\d{3})+(?:\.\d+)?", digits):
        digits = re.sub(r"[,' ]", "", digits)
    elif re.fullmatch(r"\d+,\d+", digits):
        digits = digits.replace(",", ".")
    try:
        return sign + _plain(float(digits))
    except ValueError:
        return number


def _plain(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else repr(value)


# --- words -------------------------------------------------------------------------------------------------------


def _bare(token: str) -> str:
    """A word case-folded, without its possessive ending and the dots of an abbreviation."""
    word = token.casefold().removesuffix("'s").removesuffix("'")
    if re.fullmatch(r"(?:[^\W\d]\.)+[^\W\d]?", word):
        word = word.replace(".", "")
    return word.strip(".'-")


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


_COMMON = (
    lexicon.STOP_WORDS
    | lexicon.LIGHT_WORDS
    | lexicon.NEGATIONS
    | frozenset(lexicon.NUMBER_WORDS)
    | frozenset(lexicon.ORDINALS)
    | frozenset(lexicon.MONTHS)
    | frozenset(lexicon.WEEKDAYS)
)
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
        word = _bare(token)
        inner = any(c.isupper() for c in token[1:])
        if word in _NO_ACRONYMS or word.startswith("i'") or not word or not word[0].isalpha():
            continue
        if inner or (token[0].isupper() and place not in starts and word not in _COMMON and len(word) > 1):
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
    if _CJK.search(folded):
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
    spaced = "|".join(re.escape(phrase) for phrase in ordered if not _CJK.search(phrase))
    unspaced = "|".join(re.escape(phrase) for phrase in ordered if _CJK.search(phrase))
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
        words = " ".join(_bare(match[0]) for match in _TOKEN.finditer(fold(name)))
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
    spaced = "|".join(pattern for pattern in patterns if not _CJK.search(pattern))
    unspaced = [pattern for pattern in patterns if _CJK.search(pattern)]
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
    left, right = (_content(question.tokens) for question in (asked, cached))
    shared = [word for word in left if word in set(right) and left.count(word) == 1 and right.count(word) == 1]
    if len(shared) >= 3:
        places = [right.index(word) for word in shared]
        for first in range(len(places) - 2):
            for second in range(first + 1, len(places) - 1):
                if places[second] < places[first] and any(p < places[second] for p in places[second + 1 :]):
                    return Disagreement("order", "the same words stand in the reverse order")
    return None


def _content(tokens: Sequence[str]) -> list[str]:
    return [singular(token) for token in tokens if token not in _COMMON]


def _show(left: Iterable[str], right: Iterable[str]) -> str:
    return f"{', '.join(sorted(left)) or 'none'} against {', '.join(sorted(right)) or 'none'}"[:160]


def _sides_shown(groups: lexicon.Groups, group: int, left: int, right: int) -> str:
    return " against ".join(groups[group][side][0] for side in (left, right))
