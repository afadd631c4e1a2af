"""Mechanical paraphrases of a question that keep its answer.

A hash of the question selects the rules, so that every run makes the same paraphrases. They are easier than natural
paraphrases, which do not exist for questions with indexed passages, and are reported separately.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable

_OPENINGS = (
    "Can you tell me {}",
    "Could you please tell me {}",
    "I would like to know {}",
    "Hi, {}",
    "Please tell me: {}",
    "Do you know {}",
    "Quick question: {}",
    "I am wondering {}",
)
_ENDINGS = ("{} please?", "{} Thanks!", "{}, please", "{} Thank you")
_SAME = (
    (r"\bwhat is\b", "what's"),
    (r"\bwho is\b", "who's"),
    (r"\bdo not\b", "don't"),
    (r"\bdid not\b", "didn't"),
    (r"\bwas not\b", "wasn't"),
    (r"\bin what year did\b", "when did"),
    (r"\bin what year was\b", "when was"),
    (r"\bin which\b", "in what"),
    (r"\bwhich\b", "what"),
    (r"\bwhat was the name of\b", "what was the name for"),
    (r"\bwhat is the name of\b", "what is the name for"),
    (r"\bbegin\b", "start"),
    (r"\bstart\b", "begin"),
    (r"\bbig\b", "large"),
    (r"\blargest\b", "biggest"),
    (r"\bbiggest\b", "largest"),
    (r"\blocated\b", "situated"),
    (r"\bapproximately\b", "about"),
    (r"\bin order to\b", "to"),
    (r"\bmovie\b", "film"),
    (r"\bcountry\b", "nation"),
    (r"\bcompany\b", "firm"),
    (r"\bbuy\b", "purchase"),
    (r"\bcreated\b", "made"),
    (r"\bfounded\b", "established"),
    (r"\bhow come\b", "why"),
    (r"\bwhat kind of\b", "what type of"),
    (r"\bwhat type of\b", "what kind of"),
    (r"\bpercentage\b", "percent"),
    (r"\btwo\b", "2"),
    (r"\bthree\b", "3"),
    (r"\b10\b", "ten"),
)


def rewordings(question: str, count: int = 1) -> list[str]:
    """Return up to `count` distinct paraphrases of an English question; they differ in more than case and end marks."""
    draw = random.Random(hashlib.sha256(question.encode()).digest())
    found: dict[str, str] = {}
    plain = _folded(question)
    for _ in range(8 * count):
        text = question.strip()
        for change in draw.sample(_CHANGES, draw.choice((1, 2, 2, 3))):
            text = change(text, draw)
        if _folded(text) != plain:
            found.setdefault(_folded(text), text)
        if len(found) == count:
            break
    return list(found.values())


def _folded(text: str) -> str:
    return re.sub(r"[\s?!.]+", " ", text).strip().casefold()


def _opening(text: str, draw: random.Random) -> str:
    begin = text[:1].lower() + text[1:] if re.match(r"(?:What|Who|When|Where|How|Why|Which|In)\b", text) else text
    return draw.choice(_OPENINGS).format(begin)


def _ending(text: str, draw: random.Random) -> str:
    return draw.choice(_ENDINGS).format(text.rstrip(" ?"))


def _same(text: str, draw: random.Random) -> str:
    fitting = [(old, new) for old, new in _SAME if re.search(old, text, re.IGNORECASE)]
    if not fitting:
        return text
    old, new = draw.choice(fitting)
    return re.sub(old, new, text, count=1, flags=re.IGNORECASE)


def _mistake(text: str, draw: random.Random) -> str:
    """Swap two letters inside a longer word that is not a name, or drop one."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) > 6 and word.isalpha() and word.islower()]
    if not places:
        return text
    place = draw.choice(places)
    word, at = words[place], draw.randrange(1, len(words[place]) - 2)
    words[place] = draw.choice((word[:at] + word[at + 1] + word[at] + word[at + 2 :], word[:at] + word[at + 1 :]))
    return " ".join(words)


def _small(text: str, _draw: random.Random) -> str:
    return text.lower().rstrip(" ?")


def _possessive(text: str, _draw: random.Random) -> str:
    """Turn "the capital of France" into "France's capital"."""
    return re.sub(r"\bthe (\w+) of ([A-Z]\w+)(?=[ ?]|$)", r"\2's \1", text, count=1)


def _clause_first(text: str, _draw: random.Random) -> str:
    """Turn "When did X happen in Y?" into "In Y, when did X happen?"."""
    return re.sub(r"^(\w+ .{15,}?) (in|during|after|before) ([\w ]{3,30})\?$", _moved, text.strip())


def _moved(match: re.Match[str]) -> str:
    return f"{match[2].capitalize()} {match[3]}, {match[1][:1].lower()}{match[1][1:]}?"


def _articles(text: str, _draw: random.Random) -> str:
    return re.sub(r"\b(?:the|a|an) ", "", text, flags=re.IGNORECASE)


_CHANGES: tuple[Callable[[str, random.Random], str], ...] = (
    _opening,
    _ending,
    _same,
    _same,
    _mistake,
    _small,
    _possessive,
    _clause_first,
    _articles,
)
