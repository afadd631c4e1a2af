"""Loads the guards' word lists: data/*.toml by language, and data/cldr.json with names of months, days and units.

The lists of all languages are merged, and loaded on first use. The purpose of each is described in data/en.toml; its
effect is decided by the modules that use it.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from rag_serving.cache.guards.tokens import CJK

LANGUAGES = ("en", "de", "fr", "es", "pt", "nb", "ja")
"""The languages with word lists. English is first, because it determines the order of the kinds of questions."""

WordList = Literal[
    "stop_words", "light_words", "negations", "contracted_negations", "negating_prefixes", "auxiliaries", "not_names",
    "joining_words", "first_person", "second_person", "directions", "ambiguous_months", "before_months",
]  # fmt: skip

Groups = Mapping[str, Mapping[str, Sequence[str]]]
"""Maps group to side to phrases: `{"time": {"before": ["before", "vor"], "after": ["after", "nach"]}}`."""


def preload() -> None:
    """Load the files, which takes about 0.1 s."""
    common_words()
    units()


@cache
def words(name: WordList) -> frozenset[str]:
    """Return the single words of a list."""
    return frozenset(word for source in _sources() for word in source.get(name, "").split())


@cache
def common_words() -> frozenset[str]:
    """Return words that are never names."""
    tables = (integers("numbers"), integers("ordinals"), months(), weekdays())
    return words("stop_words").union(words("light_words"), words("negations"), *tables)


@cache
def strings(name: Literal["negating_phrases", "greetings", "requests", "synonyms"]) -> Sequence[str]:
    """Return the phrases, regular expressions or rows of a list."""
    return [text for source in _sources() for text in source.get(name, ())]


@cache
def by_word(table: Literal["tenses", "units", "numbers", "ordinals", "scales", "weekdays"]) -> Mapping[str, str]:
    """Return a table inverted: each word with its key."""
    found: dict[str, str] = {}
    for source in _sources():
        for key, some in source.get(table, {}).items():
            found.update(dict.fromkeys(some.split(), key))
    return found


@cache
def integers(table: Literal["numbers", "ordinals", "scales", "weekdays"]) -> Mapping[str, int]:
    """Return the words of a table with their integer values."""
    return {word: int(key) for word, key in by_word(table).items()}


@cache
def groups(table: Literal["comparisons", "alternatives"]) -> Groups:
    """Return the groups of a table with their opposite sides."""
    found: dict[str, dict[str, list[str]]] = {}
    for source in _sources():
        for group, sides in source.get(table, {}).items():
            for side, phrases in sides.items():
                known = found.setdefault(group, {}).setdefault(side, [])
                known += [phrase.strip() for phrase in phrases.split(",")]
    return found


@cache
def kinds() -> Sequence[tuple[str, re.Pattern[str]]]:
    """Return the kinds of questions with their patterns."""
    tables = [source.get("kinds", {}) for source in _sources()]
    return [(kind, alternation([table[kind] for table in tables if kind in table])) for kind in tables[0]]


def alternation(patterns: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of these as whole words, or anywhere if they are Japanese."""
    spaced = "|".join(pattern for pattern in patterns if not CJK.search(pattern))
    unspaced = [pattern for pattern in patterns if CJK.search(pattern)]
    return re.compile("|".join([rf"(?<![\w-])(?:{spaced})(?![\w-])", *unspaced]))


@cache
def _sources() -> Sequence[Mapping[str, Any]]:
    folder = files("rag_serving.cache.guards").joinpath("data")
    return [tomllib.loads(folder.joinpath(f"{name}.toml").read_text("utf-8")) for name in LANGUAGES]


# --- Names from CLDR. `python -m tests.cldr_names` writes the file with Babel, which would add 32 MB to an install. ---


@cache
def months() -> Mapping[str, int]:
    """Return the names and abbreviations of months with their numbers."""
    return _names()["months"]


@cache
def weekdays() -> Mapping[str, int]:
    """Return the full names of days, from 1 for Monday; abbreviations such as "sun" and "so" are other words, too."""
    return {**_names()["weekdays"], **integers("weekdays")}


@cache
def units() -> Mapping[str, str]:
    """Return every one-word spelling of a unit or currency with its canonical name."""
    return {**_names()["units"], **by_word("units")}


@cache
def currencies() -> frozenset[str]:
    """Return the canonical names of the units that are currencies."""
    return frozenset(_names()["currencies"])


@cache
def _names() -> Mapping[str, Any]:
    return json.loads(files("rag_serving.cache.guards").joinpath("data", "cldr.json").read_text("utf-8"))
