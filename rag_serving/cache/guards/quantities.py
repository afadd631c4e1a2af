"""Finds dates, times, numbers with units, and codes in a question, and normalizes their notation.

What two questions must have in common is decided in `rules`.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache

from rag_serving.cache.guards import lexicon
from rag_serving.cache.guards.tokens import CJK, TOKEN

Number = tuple[str, str]
"""A value as text, with "#" before an ordinal, and its unit or ""."""

_Notation = Callable[[re.Match[str]], str | None]
"""Returns the date of a match, or None if it is not a date."""

_QUARTERS = {"first": 1, "second": 2, "third": 3, "fourth": 4}


def dates(folded: str) -> tuple[list[str], str]:
    """Return the normalized dates and times of a case-folded text, and the text without them."""
    found: list[str] = []
    text = folded
    for pattern, notation in _date_patterns():
        some, text = _extracted(pattern, notation, text)
        found += some
    return found + _weekdays(text), text


@cache
def _date_patterns() -> Sequence[tuple[re.Pattern[str], _Notation]]:
    """Return the patterns in order; each is applied to the text without the matches of those before it."""
    names = "|".join(sorted(map(re.escape, lexicon.months()), key=len, reverse=True))
    month, day, year = rf"(?P<month>{names})\b\.?", r"(?P<day>\d{1,2})", r"(?P<year>\d{4})"
    of = r"(?:of\s+|de\s+|-)?"
    patterns: Sequence[tuple[str, _Notation]] = (
        # 2024-03-12, 2024年3月12日
        (r"(?<![\d-])(?P<year>\d{4})-(?P<month>\d{1,2})(?:-(?P<day>\d{1,2}))?(?![\d-])", _calendar_date),
        (r"(?:(?P<year>\d{4})年)?(?P<month>\d{1,2})月(?:(?P<day>\d{1,2})日)?", _calendar_date),
        # 12.3.2024, 3/12/24
        (r"\b(?P<first>\d{1,2})(?P<sign>[./])(?P<second>\d{1,2})(?P=sign)(?P<year>\d{4}|\d{2})\b", _slashed_date),
        # 12th of March 2024, March 2024, March 12, 2024
        (rf"\b{day}(?:st|nd|rd|th|er|º|\.)?\s*{of}{month}(?:,?\s*{of}{year})?", _calendar_date),
        (rf"\b{month},?\s+(?:of\s+|de\s+)?'?{year}\b", _calendar_date),
        (rf"\b{month}\s+(?:the\s+)?{day}(?:st|nd|rd|th)?\b(?!:)(?:,?\s+{year})?", _calendar_date),
        # FY24, fiscal year 2024
        (r"\b(?:fy|fiscal(?:\s+year)?)[\s-]*'?(\d{4}|\d{2})\b", lambda match: f"fy{match[1][-2:]}"),
        # Q3, H1, second half
        (
            r"\b(?P<short>q[1-4]|h[12])\b|\b(?P<which>first|second|third|fourth|last)[\s-]+(?P<part>quarter|half)\b",
            _quarter,
        ),
        # 3pm, 15:00, 15 Uhr, 15時
        (r"\b(?P<hour>\d{1,2})(?:[:.h](?P<minute>\d{2}))?\s*(?P<half>[ap])\.?m\b\.?", _clock_time),
        (r"\b(?P<hour>\d{1,2}):(?P<minute>\d{2})\b", _clock_time),
        (r"\b(?P<hour>\d{1,2})\s*uhr\b|(?P<japanese>\d{1,2})時(?!間)", _clock_time),
        # 44 BC, 1980s
        (r"\b(\d{1,4})\s*(?:bce|bc)\b", lambda match: f"{match[1]}bc"),
        (r"\b(\d{1,4})\s*(?:ad|ce)\b", lambda match: f"{match[1]}ad"),
        (r"\b(\d{3}0|\d0)'?s\b", lambda match: f"{match[1]}s"),
        # March. The word before is kept: it may be a name.
        (rf"(?:\b(?P<before>\w+)\s+)?\b(?P<month>{names})\b", _lone_month),
    )
    return tuple((re.compile(pattern), notation) for pattern, notation in patterns)


def _extracted(pattern: re.Pattern[str], notation: _Notation, text: str) -> tuple[list[str], str]:
    found: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        date = notation(match)
        if date is None:
            return match[0]
        found.append(date)
        return f"{match.groupdict().get('before') or ''} "

    return found, pattern.sub(replaced, text)


def _calendar_date(match: re.Match[str]) -> str | None:
    parts = match.groupdict()
    month = int(parts["month"]) if parts["month"].isdecimal() else lexicon.months()[parts["month"]]
    return _date(parts.get("year"), month, parts.get("day"))


def _date(year: str | None, month: int, day: str | None) -> str | None:
    if not 1 <= month <= 12 or (day and not 1 <= int(day) <= 31):
        return None
    return f"{year or '?'}-{month:02}" + (f"-{int(day):02}" if day else "")


def _slashed_date(match: re.Match[str]) -> str | None:
    first, second = match["first"], match["second"]
    year = match["year"] if len(match["year"]) == 4 else f"20{match['year']}"
    if match["sign"] == "." or int(first) > 12:
        return _date(year, int(second), first)
    if int(second) > 12:
        return _date(year, int(first), second)
    return f"{year}-{int(first)}/{int(second)}"  # whether the day or the month comes first depends on the country


def _quarter(match: re.Match[str]) -> str | None:
    if match["short"]:
        return match["short"]
    which, part = match["which"], match["part"]
    if which == "last":
        # "The last quarter" usually means the previous one, not the fourth.
        return "h2" if part == "half" else None
    return f"{part[0]}{_QUARTERS[which]}"


def _clock_time(match: re.Match[str]) -> str:
    parts = match.groupdict()
    hour, minute = int(parts["hour"] or parts["japanese"]), int(parts.get("minute") or 0)
    if parts.get("half"):
        hour = hour % 12 + (12 if parts["half"] == "p" else 0)
    return f"{hour:02}:{minute:02}"


def _lone_month(match: re.Match[str]) -> str | None:
    name = match["month"]
    if name in lexicon.words("ambiguous_months") and match["before"] not in lexicon.words("before_months"):
        return None
    return f"?-{lexicon.months()[name]:02}"


def _weekdays(text: str) -> list[str]:
    weekdays = lexicon.weekdays()
    words = re.findall(r"[^\W\d]+(?:-feira)?", text) + _japanese_weekday().findall(text)
    return [f"weekday {weekdays[word]}" for word in words if word in weekdays]


@cache
def _japanese_weekday() -> re.Pattern[str]:
    names = [word for word in lexicon.weekdays() if CJK.search(word)]
    return re.compile("|".join(sorted(names, key=len, reverse=True)))


# --- numbers and codes -------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"(?<![\w.,/+-])(?:(?<!\S)[-+])?(?:\d{1,3}(?:[,' .]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*)")
_NUMBER_UNIT = re.compile(r"^(\d+(?:[.,]\d+)?)-?([^\W\d]+|%)$")
_DIGITS = re.compile(r"[-+]?\d+(?:\.\d+)?")
_POINTS_GROUP = re.compile(r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d+")
_COMMAS_GROUP = re.compile(r"\d{1,3}(?:[,' ]\d{3})+(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"\d+,\d+")
_ROMAN = re.compile(r"\b\w+ (?P<many>ii|iii|II|III|IV|VI|VII|VIII|IX)\b|\b(?P<before>[A-Z]\w+) (?P<one>[IVX])\b")
_ORDINAL = re.compile(r"^(\d+)(?:st|nd|rd|th|º|ª|er|ème|e)$")


def numbers(text: str) -> tuple[list[Number], frozenset[str]]:
    """Return the numbers of a case-folded text with their units, and its codes (letters mixed with digits or signs)."""
    found: list[Number] = []
    codes: set[str] = set()
    words = _number_words(text)
    place = 0
    while place < len(words):
        value, after = _number_at(words, place)
        if value is not None:
            unit, after = _unit_of(words, place, after)
            found.append((value, unit))
            place = after
            continue
        ordinal = _ordinal_at(words, place)
        if ordinal is not None:
            found.append((ordinal, ""))
        elif _is_code(words[place]):
            codes.add(words[place].strip("."))
        place += 1
    return found, frozenset(codes)


def roman(plain: str) -> list[Number]:
    """Return the Roman numerals of a folded text with its original case.

    They must follow a word; "I", "V" and "X" must follow a capitalized, uncommon word: "War I", but not "Should I".
    """
    common = lexicon.common_words()
    matches = [m for m in _ROMAN.finditer(plain) if m["many"] or m["before"].casefold() not in common]
    return [((match["many"] or match["one"]).casefold(), "") for match in matches]


def _number_words(text: str) -> list[str]:
    """Return the words, with numbers in plain digits and separated from their units."""
    text = _NUMBER.sub(lambda match: f" {_value(match[0])} " if _apart(match, text) else match[0], text)
    words: list[str] = []
    for match in TOKEN.finditer(text):
        token = match[0]
        glued = _NUMBER_UNIT.match(token)
        parts = token.split("-")
        if glued and (glued[2] in lexicon.units() or glued[2] in lexicon.integers("scales")):
            words += [_value(glued[1]), glued[2]]
        elif len(parts) > 1 and _is_spoken(parts):
            words += parts
        else:
            words.append(token)
    return words


def _apart(match: re.Match[str], text: str) -> bool:
    """Return whether a number is followed by whitespace, punctuation, a unit sign or Japanese."""
    after = text[match.end() : match.end() + 1]
    return not after or after.isspace() or after in "%°$€£¥₹,.;:?!)'\"" or CJK.match(after) is not None


def _is_spoken(parts: Sequence[str]) -> bool:
    """Return whether a hyphenated word is a number with its unit, as in "14-year-old"; "covid-19" is a code."""
    if not all(part.isalpha() or part.isdecimal() for part in parts):
        return False
    if parts[0].isdecimal():
        return parts[1].isalpha()
    return parts[0] in lexicon.integers("numbers") or (parts[0] == "one" and parts[1] in lexicon.units())


def _number_at(words: Sequence[str], place: int) -> tuple[str | None, int]:
    """Return the number that begins at a place, in digits or words, or None; and the place after it."""
    word, after = words[place], place + 1
    following = words[after] if after < len(words) else ""
    if _DIGITS.fullmatch(word):
        value = Decimal(word)
    elif word in lexicon.integers("numbers"):
        value = Decimal(lexicon.integers("numbers")[word])
        digit = 1 if following == "one" else lexicon.integers("numbers").get(following, 10)
        if value >= 20 and digit < 10:
            value, after = value + digit, after + 1
    elif word in ("one", "a", "an") and _is_counted(word, following):
        value = Decimal(1)
    else:
        return None, place
    while after < len(words) and words[after] in lexicon.integers("scales"):
        value, after = value * lexicon.integers("scales")[words[after]], after + 1
    return _shown(value), after


def _is_counted(word: str, following: str) -> bool:
    """Return whether "one" or "a" is a number here: "a hundred", "one day", but not "a day"."""
    if following in lexicon.integers("scales") and len(following) > 1:
        return True
    return word == "one" and following in lexicon.units()


def _unit_of(words: Sequence[str], start: int, end: int) -> tuple[str, int]:
    """Return the unit of the number between two places, or "", and the place after it; a currency may precede it."""
    units = lexicon.units()
    unit = units.get(words[end], "") if end < len(words) else ""
    if unit:
        return unit, end + 1
    before = units.get(words[start - 1], "") if start else ""
    return (before if before in lexicon.currencies() else ""), end


def _ordinal_at(words: Sequence[str], place: int) -> str | None:
    word = words[place]
    match = _ORDINAL.match(word)
    if match:
        return f"#{int(match[1])}"
    if word not in lexicon.integers("ordinals") or (word == "second" and place and words[place - 1] == "per"):
        return None
    return f"#{lexicon.integers('ordinals')[word]}"


def _is_code(word: str) -> bool:
    return (any(c.isdigit() for c in word) or word.endswith(("+", "#"))) and not CJK.search(word)


def _value(number: str) -> str:
    """Normalize digits: 1,000 and 1 000 become 1000, 2,5 becomes 2.5; a version such as 1.2.3 is kept."""
    sign = "-" if number.startswith("-") else ""
    digits = number.lstrip("+-")
    if _POINTS_GROUP.fullmatch(digits):
        digits = digits.replace(".", "").replace(",", ".")
    elif _COMMAS_GROUP.fullmatch(digits):
        digits = re.sub(r"[,' ]", "", digits)
    elif _DECIMAL_COMMA.fullmatch(digits):
        digits = digits.replace(",", ".")
    try:
        return sign + _shown(Decimal(digits))
    except InvalidOperation:
        return number


def _shown(value: Decimal) -> str:
    """Format all digits; as floating-point numbers, different account numbers of 17 or more digits would be equal."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
