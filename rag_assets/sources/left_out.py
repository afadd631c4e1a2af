"""What a source lists but no document is made from: counted and named, so that nothing vanishes unseen."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import translate
from typing import Self

from rag_assets.sources.base import FetchedObject, Source, SourceObject, golden_shard_of, owner_of, shard_of
from rag_serving.lake.shards import Shard

_MOST_EXAMPLES = 5


def reason(entry: SourceObject) -> str:
    """Return why an entry is no document, as a noun: "symbolic link"; empty for documents and golden questions."""
    if entry.problem:
        return entry.problem
    if shard_of(entry.key) is not None or golden_shard_of(entry.key) is not None:
        return ""
    if entry.key.endswith("/"):
        return "folder marker"
    if any(part.startswith(".") for part in entry.key.split("/")):
        return "hidden name"
    return "key outside region/department/"


@dataclass(slots=True)
class LeftOut:
    """Counts of what was left out by shard and reason, with a few examples of each reason."""

    counts: Counter[tuple[Shard | None, str]] = field(default_factory=Counter[tuple[Shard | None, str]])
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict[str, list[str]](list))

    @classmethod
    def of(cls, entries: Iterable[SourceObject]) -> Self:
        """Count the entries that are no documents."""
        found = cls()
        for entry in entries:
            found.add(entry)
        return found

    def add(self, entry: SourceObject) -> None:
        """Count an entry, if it is no document."""
        why = reason(entry)
        if not why:
            return
        self.counts[owner_of(entry.key), why] += 1
        if len(self.examples[why]) < _MOST_EXAMPLES:
            self.examples[why].append(entry.key)

    @property
    def total(self) -> int:
        """How much was left out."""
        return sum(self.counts.values())

    def of_shard(self, shard: Shard) -> int:
        """Return how much of a shard was left out."""
        return sum(count for (owner, _), count in self.counts.items() if owner == shard)

    def by_reason(self) -> Mapping[str, int]:
        """Return the counts by reason, sorted."""
        found: Counter[str] = Counter()
        for (_, why), count in self.counts.items():
            found[why] += count
        return dict(sorted(found.items()))

    def __str__(self) -> str:
        """List the reasons with their counts and examples; empty if nothing was left out."""
        return "; ".join(
            f"{count} {_plural(why) if count != 1 else why}, such as {', '.join(map(repr, self.examples[why]))}"
            for why, count in self.by_reason().items()
        )


def _plural(why: str) -> str:
    noun, space, rest = why.partition(" ") if why.startswith(("file ", "key ", "name ")) else (why, "", "")
    return f"{noun}s{space}{rest}"


class IgnoringSource:
    """A `Source` in which names that match a pattern are left out; case does not matter.

    A pattern with a slash matches the path below the department, others the last part of the key.
    """

    def __init__(self, source: Source, patterns: Sequence[str]) -> None:
        self._source = source
        self._names = _matcher(pattern for pattern in patterns if "/" not in pattern)
        self._paths = _matcher(pattern for pattern in patterns if "/" in pattern)

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        """Yield pages of the source; what matches a pattern is marked as such."""
        for page in self._source.pages(prefix, start_after=start_after):
            yield [replace(entry, problem="ignored file") if self._ignores(entry) else entry for entry in page]

    def shards(self) -> Iterator[Shard]:
        """Yield the source's shards."""
        return self._source.shards()

    def head(self, key: str) -> SourceObject | None:
        """Return the entry of one key; None if there is no such object or it is ignored."""
        entry = self._source.head(key)
        return None if entry is None or self._ignores(entry) else entry

    def fetch(self, key: str) -> FetchedObject:
        """Fetch an object."""
        return self._source.fetch(key)

    def uri(self, key: str) -> str:
        """Return the URI of an object."""
        return self._source.uri(key)

    def _ignores(self, entry: SourceObject) -> bool:
        if entry.problem or golden_shard_of(entry.key) is not None:
            return False
        name = entry.key.rpartition("/")[2]
        path = entry.key.split("/", 2)[-1]
        return bool(name) and (self._names.match(name) is not None or self._paths.match(path) is not None)


def _matcher(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)) or r"(?!)", re.IGNORECASE)
