"""Finds dates, times, numbers and codes in an English question and normalizes their notation.

What two questions must have in common is decided in `rules`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache

from rag_serving.cache.guards import lexicon
from rag_serving.cache.guards.tokens import TOKEN

_SIGNS = re.compile(r"[<>≤≥≠±~√∞²³¹⁰-₉¼-¾⅐-⅞]")
"""Signs that change a number: "<5" is not "5"."""
_QUARTERS = {"first": "1", "second": "2", "third": "3", "fourth": "4"}


@dataclass
class Quantities:
    """What was found so far; `text` is the question without dates and with numbers in plain digits."""

    text: str
    dates: set[str] = field(default_factory=set[str])
    numbers: set[str] = field(default_factory=set[str])
    codes: set[str] = field(default_factory=set[str])
    words: list[str] = field(default_factory=list[str])
    """All words but those of dates; numbers and codes are normalized."""


def quantities(lower: str) -> Quantities:
    """Return the dates, numbers and codes of a text in lower case."""
    found = Quantities(lower)
    for pattern, parts in _date_patterns():
        found.text = pattern.sub(lambda match, parts=parts: _dated(found, match, parts), found.text)
    found.numbers.update(_SIGNS.findall(found.text))
    _numbers(found)
    return found


def _dated(found: Quantities, match: re.Match[str], parts: Callable[[re.Match[str]], Sequence[str]]) -> str:
    some = parts(match)
    for part in some:
        (found.numbers if part.isdecimal() else found.dates).add(part)
    return " " if some else match[0]


@cache
def _date_patterns() -> Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], Sequence[str]]]]:
    """Return patterns with functions that return the parts of a date, or nothing if it is no date.

    Days and years are numbers; each pattern is applied to the text without the matches of those before it.
    """
    names = "|".join(sorted(lexicon.numbers("months"), key=len, reverse=True))
    month, day, year = rf"(?P<month>{names})\b\.?", r"(?P<day>\d{1,2})(?:st|nd|rd|th)?", r"(?P<year>\d{4})"
    patterns: Sequence[tuple[str, Callable[[re.Match[str]], Sequence[str]]]] = (
        (r"(?<![\d-])(?P<year>\d{4})-(?P<month>\d{1,2})(?:-(?P<day>\d{1,2}))?(?![\d-])", _date),
        (r"\b(?P<first>\d{1,2})(?P<sign>[./])(?P<second>\d{1,2})(?P=sign)(?P<year>\d{4}|\d{2})\b", _slashed_date),
        (rf"\b{day}\s+(?:of\s+)?{month}(?:,?\s*(?:of\s+)?{year})?", _date),
        (rf"\b{month},?\s+'?{year}\b", _date),
        (rf"\b{month}\s+(?:the\s+)?{day}\b(?!:)(?:,?\s+{year})?", _date),
        (rf"(?P<before>\b\w+\s+)?\b(?P<month>{names})\b", _lone_month),
        (r"\b(?:fy|fiscal(?:\s+year)?)[\s-]*'?(?:\d{2})?(\d{2})\b", lambda match: [f"fy{match[1]}"]),
        (r"\b([qh])([1-4])\b", lambda match: [match[1] + match[2]]),
        (r"\b(first|second|third|fourth)[\s-]+(quarter|half)\b", lambda m: [m[2][0] + _QUARTERS[m[1]]]),
        (r"\b(?P<hour>\d{1,2})(?:[:.](?P<minute>\d{2}))?\s*(?P<half>[ap])\.?m\b\.?", _clock_time),
        (r"\b(?P<hour>\d{1,2}):(?P<minute>\d{2})\b", _clock_time),
        (rf"\b(?:{'|'.join(lexicon.numbers('weekdays'))})\b", lambda match: [_weekday(match[0])]),
    )
    return tuple((re.compile(pattern), parts) for pattern, parts in patterns)


def _date(match: re.Match[str]) -> Sequence[str]:
    parts = match.groupdict()
    month = int(parts["month"]) if parts["month"].isdecimal() else lexicon.numbers("months")[parts["month"]]
    if not 1 <= month <= 12:
        return ()
    return [f"month {month}", *(str(int(parts[name])) for name in ("day", "year") if parts.get(name))]


def _slashed_date(match: re.Match[str]) -> Sequence[str]:
    first, second = int(match["first"]), int(match["second"])
    year = match["year"] if len(match["year"]) == 4 else f"20{match['year']}"
    if match["sign"] == "." or first > 12:
        return [f"month {second}", str(first), year]
    if second > 12:
        return [f"month {first}", str(second), year]
    return [f"{first}/{second}", year]  # whether the day or the month comes first depends on the country


def _lone_month(match: re.Match[str]) -> Sequence[str]:
    before = (match["before"] or "").strip()
    if match["month"] in lexicon.words("ambiguous_months") and before not in lexicon.words("before_months"):
        return ()
    return [f"month {lexicon.numbers('months')[match['month']]}"]


def _clock_time(match: re.Match[str]) -> Sequence[str]:
    parts = match.groupdict()
    hour, minute = int(parts["hour"]), int(parts.get("minute") or 0)
    if parts.get("half"):
        hour = hour % 12 + (12 if parts["half"] == "p" else 0)
    return [f"{hour:02}:{minute:02}"]


def _weekday(name: str) -> str:
    return f"weekday {lexicon.numbers('weekdays')[name]}"


# --- numbers and codes -------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"(?<![\w.,/+-])(?:(?<!\S)[-+])?(?:\d{1,3}(?:[,' .]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*)")
_POINTS_GROUP = re.compile(r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d+")
_COMMAS_GROUP = re.compile(r"\d{1,3}(?:[,' ]\d{3})+(?:\.\d+)?")
_PLAIN = re.compile(r"[-+]?\d+(?:\.\d+)?")
_COMPOUND = re.compile(rf"\b(\d+|one|{'|'.join(lexicon.numbers('words'))})-(?=[^\W\d]{{3}})")
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)")


def _numbers(found: Quantities) -> None:
    words = _number_words(found.text)
    place = 0
    while place < len(words):
        word = words[place]
        value, after = _number_at(words, place)
        ordinal = _ORDINAL.fullmatch(word)
        if value is not None:
            found.numbers.add(value)
            word = value
        elif ordinal or word in lexicon.numbers("ordinals"):
            word = f"#{ordinal[1] if ordinal else lexicon.numbers('ordinals')[word]}"
        elif any(c.isdigit() for c in word) or word.endswith(("+", "#")):
            word = re.sub(r"(?<=[^\W\d])-(?=\d)", "", word.strip("."))
            found.codes.add(word)
        found.words.append(word)
        place = max(after, place + 1)


def _number_words(text: str) -> list[str]:
    """Return the words, with numbers in plain digits and separated from their units: 14-year-old, two-cylinder."""
    text = _COMPOUND.sub(r"\1 ", _NUMBER.sub(_separated, text))
    words: list[str] = []
    for match in TOKEN.finditer(text):
        glued = _glued().fullmatch(match[0])
        words += [glued[1], *re.split("-+", glued[2])] if glued else [match[0]]
    return words


def _separated(match: re.Match[str]) -> str:
    """Return a number in plain digits if it ends the word or a unit follows."""
    after = match.string[match.end() : match.end() + 1]
    return f" {_value(match[0])} " if not after or not (after.isalnum() or after in "-_/:") else match[0]


@cache
def _glued() -> re.Pattern[str]:
    units = "|".join(sorted(lexicon.words("glued_units"), key=len, reverse=True))
    return re.compile(rf"(\d+(?:\.\d+)?)-?((?:{units})(?:-[^\W\d]+)*)")


def _number_at(words: Sequence[str], place: int) -> tuple[str | None, int]:
    """Return the number that begins at a place, in digits or words, or None; and the place after it."""
    named, scales = lexicon.numbers("words"), lexicon.numbers("scales")
    word, after = words[place], place + 1
    following = words[after] if after < len(words) else ""
    head, _, tail = word.partition("-")
    if _PLAIN.fullmatch(word):
        value = Decimal(word)
    elif word in named:
        value = Decimal(named[word])
        digit = 1 if following == "one" else named.get(following, 10)
        if value >= 20 and digit < 10:
            value, after = value + digit, after + 1
    elif head in named and (tail == "one" or tail in named):  # twenty-one
        value = Decimal(named[head] + (1 if tail == "one" else named[tail]))
    elif word in ("one", "a", "an") and _is_counted(word, following):
        value = Decimal(1)
    else:
        return None, place
    while after < len(words) and words[after] in scales:
        value, after = value * scales[words[after]], after + 1
    return _shown(value), after


def _is_counted(word: str, following: str) -> bool:
    """Return whether "one" or "a" is a number here: "a hundred", "one day", but not "a day"."""
    if following in lexicon.numbers("scales") and len(following) > 1:
        return True
    return word == "one" and following in lexicon.words("glued_units")


def _value(number: str) -> str:
    """Normalize digits: 1,000 and 1 000 become 1000, 2,5 becomes 2.5; a version such as 1.2.3 is kept."""
    sign = "-" if number.startswith("-") else ""
    digits = number.lstrip("+-")
    if _POINTS_GROUP.fullmatch(digits):
        digits = digits.replace(".", "").replace(",", ".")
    elif _COMMAS_GROUP.fullmatch(digits):
        digits = re.sub(r"[,' ]", "", digits)
    elif re.fullmatch(r"\d+,\d+", digits):
        digits = digits.replace(",", ".")
    return sign + _shown(Decimal(digits)) if _PLAIN.fullmatch(digits) else number


def _shown(value: Decimal) -> str:
    """Format all digits; as floating-point numbers, different account numbers of 17 or more digits would be equal."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
