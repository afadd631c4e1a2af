"""Which entries stay valid when documents change, by the client's rule and by alternative rules about evidence.

A rule decides whether an entry is still served after documents in its scope have changed, from its source passages and
those that its question retrieves now. It errs if the model would now give another answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.trace.model import plain
from rag_serving.answering.prompts import within_budget
from rag_serving.cache.evidence import evidence_of
from rag_serving.cache.evidence_record import Evidence

if TYPE_CHECKING:
    from benchmarks.trace.worlds import World
    from rag_serving.clients.lake import AsyncRagClient

_PROMPT_TOKENS = 3_000


@dataclass(frozen=True, slots=True)
class Change:
    """The source passages of an entry, those retrieved now, and which passages exist and are new."""

    made_from: Sequence[Evidence]
    found: Sequence[Evidence]
    there: frozenset[str]
    """Chunk ids of all published passages."""
    new: frozenset[str]
    """Chunk ids of passages published since the entry was last validated."""

    @property
    def cited(self) -> frozenset[str]:
        """Contents of the cited passages; of all source passages if none is cited."""
        named = frozenset(one.content_hash for one in self.made_from if one.cited)
        return named or frozenset(one.content_hash for one in self.made_from)

    @property
    def found_now(self) -> frozenset[str]:
        """Contents of the passages retrieved now."""
        return frozenset(one.content_hash for one in self.found)

    @property
    def still_there(self) -> bool:
        """Whether all source passages are still published."""
        return all(one.chunk_id in self.there for one in self.made_from)

    @property
    def nothing_new(self) -> bool:
        """Whether no passage retrieved now is new."""
        return not any(one.chunk_id in self.new for one in self.found)


Rule = Callable[[Change], bool]
SAME: Rule = lambda change: change.found_now == {one.content_hash for one in change.made_from}  # noqa: E731
EVIDENCE_RULES: dict[str, Rule] = {
    "the same passages are retrieved": SAME,
    "all its source passages exist, the cited ones are retrieved, no new ones are": lambda change: (
        change.still_there and change.cited <= change.found_now and change.nothing_new
    ),
    "all its source passages exist, the cited ones are retrieved": lambda change: (
        change.still_there and change.cited <= change.found_now
    ),
    "the cited passages are retrieved, no new ones are": lambda change: (
        change.cited <= change.found_now and change.nothing_new
    ),
    "the cited passages are retrieved": lambda change: change.cited <= change.found_now,
}


@dataclass
class Kept:
    """Counts of kept entries."""

    entries: int = 0
    changed: int = 0
    """Entries in whose scope documents changed."""
    served: int = 0
    unaffected: int = 0
    """Entries whose answer is still right."""
    served_unaffected: int = 0
    why_not: Counter[str] = field(default_factory=Counter[str])
    kept: Counter[str] = field(default_factory=Counter[str])
    wrong: Counter[str] = field(default_factory=Counter[str])
    right: Counter[str] = field(default_factory=Counter[str])

    def figures(self) -> dict[str, object]:
        """Return all counts, for the JSON file."""
        return dict(vars(self))

    def rows(self) -> list[dict[str, object]]:
        """Return the table of the rules."""
        untouched = self.entries - self.changed
        return [
            {
                "an entry is kept if": name,
                "of entries": f"{(untouched + self.kept[name]) / max(self.entries, 1):.1%}",
                "of those still right": f"{(untouched + self.right[name]) / max(self.unaffected, 1):.1%}",
                "in changed scopes": f"{self.kept[name]} of {self.changed}",
                "wrongly": self.wrong[name],
            }
            for name in EVIDENCE_RULES
        ]


async def probe(
    worlds: Sequence[World], there: frozenset[str], first_seen: dict[str, int], reference: AsyncRagClient
) -> Kept:
    """Ask the question of every entry once and apply each rule; `first_seen` is the part by chunk id."""
    result = Kept()
    for world in worlds:
        for known in list(world.known.values()):
            tag, _, key = known.entry.partition(":")
            entry = await world.store.get(tag, key)
            if entry is None:
                continue
            right = plain((await reference.ask(entry.question, **known.scope)).text)
            hits = await reference.search(entry.question, **known.scope)
            answer = await world.client.ask(entry.question, **known.scope)
            still, served = right == plain(entry.answer.text), answer.cache != "miss"
            result.entries += 1
            result.served += served
            result.unaffected += still
            result.served_unaffected += served and still
            if answer.cache == "exact":
                continue
            result.changed += 1
            new = frozenset(chunk for chunk in there if first_seen[chunk] > known.part)
            change = Change(entry.evidence, evidence_of(within_budget(hits, _PROMPT_TOKENS)), there, new)
            for name, rule in EVIDENCE_RULES.items():
                if rule(change):
                    result.kept[name] += 1
                    result.right[name] += still
                    result.wrong[name] += not still
            if still and not served:
                result.why_not[_why(change)] += 1
    return result


def _why(change: Change) -> str:
    """Return why other passages are retrieved, for an answer that is still right."""
    gone = [one for one in change.made_from if one.chunk_id not in change.there]
    if any(one.cited for one in gone):
        return "a cited passage changed"
    if gone:
        return "a passage that was not cited changed or was removed"
    if not change.nothing_new:
        return "a new passage is retrieved"
    return "the ranking of existing passages changed"
