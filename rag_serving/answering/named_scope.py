"""Regions and departments that a question names although they are outside the scope that is searched."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Protocol

from rag_serving.lake.shards import Shard
from rag_serving.results import OUTSIDE_SCOPE

_SHORT = 3
"""Letters up to which a name counts only in capitals: US, IT, NO."""


class _HasShard(Protocol):
    @property
    def shard(self) -> Shard: ...


def outside_scope(question: str, searched: Iterable[_HasShard], known: Iterable[Shard], kind: str) -> tuple[str, ...]:
    """Return a mark for each name in the question that is `known` but not `searched`.

    Departments are often ordinary words, such as people or support. They count if they are called a department or a
    team, or have a capital within the question, and only if the answer is of the kind ``none``, which they may explain.
    """
    shards, everything = [entry.shard for entry in searched], list(known)
    regions = {shard.region for shard in everything} - {shard.region for shard in shards}
    named = {name for name in regions if is_named(name, question)}
    if kind == "none":
        departments = {shard.department for shard in everything} - {shard.department for shard in shards}
        named |= {name for name in departments if is_named(name, question) and _is_department(name, question)}
    return tuple(f"{OUTSIDE_SCOPE}:{name}" for name in sorted(named))


def _is_department(name: str, question: str) -> bool:
    words = r"[\W_]+".join(re.escape(word) for word in re.split(r"[\W_]+", name) if word)
    called = rf"(?<!\w){words}\s+(?:department|team)\b|\bdepartment\s+(?:of\s+)?{words}(?!\w)"
    within = re.search(rf"\S\s+({words})(?!\w)", question, re.IGNORECASE)
    return re.search(called, question, re.IGNORECASE) is not None or (within is not None and within[1][0].isupper())


def is_named(name: str, question: str) -> bool:
    """Return whether the question has the name of a region or department, however its words are joined."""
    short = len(name) <= _SHORT
    words = [re.escape(word) for word in re.split(r"[\W_]+", _plain(name)) if word]
    pattern = r"[\W_]+".join(word.upper() if short else word for word in words)
    asked = unicodedata.normalize("NFC", question) if short else _plain(question)
    return bool(words) and re.search(rf"(?<!\w){pattern}(?!\w)", asked) is not None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
