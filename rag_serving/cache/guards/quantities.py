"""Dates, times, numbers with their units, and codes of a question, each in one notation however it was typed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rag_serving.cache.guards import lexicon
from rag_serving.cache.guards.words import CJK, COMMON, TOKEN

_MONTH = "|".join(sorted(map(re.escape, lexicon.MONTHS), key=len, reverse=True))
_ISO = re.compile(r"(?<![\d-])(\d{4})-(\d{1,2})(?:-(\d{1,2}))?(?![\d-])")
_JAPANESE_DATE = re.compile(r"(?:(\d{4})年)?(\d{1,2})月(?:(\d{1,2})日)?")
_JAPANESE_WEEKDAY = re.compile("[月火水木金土日]曜日?|週末|平日")
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
_ORDINAL = re.compile(r"^(\d+)(?:st|nd|rd|th|º|ª|er|ème|e)$")

Number = tuple[str, str]
"""A value as text, with "#" before an ordinal, and its unit or ""."""


def dates(folded: str) -> tuple[list[str], str]:
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
    found += [f"weekday {lexicon.WEEKDAYS[word]}" for word in _JAPANESE_WEEKDAY.findall(text)]
    return found, text


def numbers(text: str) -> tuple[list[Number], frozenset[str]]:
    """Numbers with their units, and codes: what mixes digits or signs with letters."""
    found: list[Number] = []
    codes: set[str] = set()
    text = _NUMBER.sub(lambda match: f" {_value(match[0])} " if _apart(match, text) else match[0], text)
    tokens = [match[0] for match in TOKEN.finditer(text)]
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
                    found.append((f"#{int(ordinal[1])}", ""))
                elif not CJK.search(word):
                    codes.add(word.strip("."))
            elif word in lexicon.ORDINALS and not (word == "second" and words[place - 1 : place] == ["per"]):
                found.append((f"#{lexicon.ORDINALS[word]}", ""))
            place += 1
            continue
        unit = lexicon.UNITS.get(words[place_after], "") if place_after < len(words) else ""
        before = lexicon.UNITS.get(words[place - 1], "") if place else ""
        if unit:
            place_after += 1
        elif before in lexicon.CURRENCIES:
            unit = before
        found.append((value, unit))
        place = place_after
    return found, frozenset(codes)


def roman(plain: str) -> list[Number]:
    """Roman numerals that follow a word; "I" and its like after a capital that begins no question, "Should I"."""
    return [
        ((match[2] or match[4]).casefold(), "")
        for match in _ROMAN.finditer(plain)
        if match[2] or match[3].casefold() not in COMMON
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
    return not after or after.isspace() or after in "%°$€£¥₹,.;:?!)'\"" or CJK.match(after) is not None


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
