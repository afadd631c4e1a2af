"""Loads the guards' word lists from words.toml, where the purpose of each is described."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

WordList = Literal[
    "stop_words", "light_words", "not_names", "negations", "negating_prefixes", "directions", "role_directions",
    "joining_words", "ambiguous_months", "before_months", "not_mistakes", "glued_units", "greetings",
    "ignored",
]  # fmt: skip
NumberTable = Literal["words", "scales", "ordinals", "months", "weekdays"]


@cache
def words(name: WordList) -> frozenset[str]:
    """Return the words of a list."""
    return frozenset(_source()[name].split())


@cache
def numbers(table: NumberTable) -> Mapping[str, int]:
    """Return the words of a table with their integer values."""
    parts = _source()["numbers"][table].split()
    return dict(zip(parts[::2], map(int, parts[1::2]), strict=True))


@cache
def phrases() -> Sequence[tuple[re.Pattern[str], str]]:
    """Return patterns of phrases with the words that replace them."""
    return [(whole_words(pattern), text) for text, pattern in _source()["phrases"].items()]


@cache
def any_phrase() -> re.Pattern[str]:
    """Return a pattern that finds any of the phrases; most questions have none."""
    return whole_words("|".join(_source()["phrases"].values()))


@cache
def kinds() -> Sequence[tuple[str, re.Pattern[str]]]:
    """Return the kinds of questions with their patterns."""
    return [(kind, whole_words(pattern)) for kind, pattern in _source()["kinds"].items()]


@cache
def synonyms() -> Sequence[Sequence[str]]:
    """Return rows of words with the same meaning."""
    return [row.split() for row in _source()["synonyms"]["rows"]]


@cache
def other_languages() -> frozenset[str]:
    """Return function words that are not English."""
    found = {word for words in _source()["other_languages"].values() for word in words.split()}
    return frozenset(found - words("stop_words") - words("light_words"))


@cache
def common_words() -> frozenset[str]:
    """Return words that are never names."""
    tables: Sequence[NumberTable] = ("words", "ordinals", "months", "weekdays")
    return words("stop_words").union(words("light_words"), words("negations"), *map(numbers, tables))


def whole_words(pattern: str) -> re.Pattern[str]:
    """Compile a pattern that matches whole words only."""
    return re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])")


@cache
def _source() -> Mapping[str, Any]:
    return tomllib.loads(files("rag_serving.cache.guards").joinpath("words.toml").read_text("utf-8"))
