"""Which runs to ask for, from what feeds named and how the runs asked for before ended. Pure: no feed, no Dagster.

A hint stays until a run that was asked for after it came has succeeded. It is never more than a place to look at: one
too many costs a HEAD, and whatever is unsure (too many keys, a failed run) is widened to the whole shard, whose run
lists it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from rag_assets.arrivals.events.s3_records import NamedObjects
from rag_assets.arrivals.listing import RETRY_SECONDS, retry_pause
from rag_serving.errors import RagError
from rag_serving.lake.shards import Shard

MAX_KEYS = 100
"""Keys of one shard from which listing it is the better way to look."""
MAX_SHARD_BYTES = 8 * 2**10
MAX_BYTES = 64 * 2**10
"""Keys of all shards together; Dagster stores the cursor anew with every tick."""

_KEYS = TypeAdapter(list[str])


@dataclass(frozen=True, slots=True)
class Asked:
    """The last run asked for a shard: under which key, when, and how often without success."""

    run_key: str
    at: float
    attempts: int


@dataclass(frozen=True, slots=True)
class Hint:
    """What is to be looked at in one shard, beyond what the run that was asked for looks at."""

    keys: frozenset[str] = frozenset()
    whole: bool = False
    asked: Asked | None = None

    @property
    def news(self) -> bool:
        return self.whole or bool(self.keys)

    def widened(self) -> Hint:
        return replace(self, keys=frozenset(), whole=True)


Hints = Mapping[Shard, Hint]
"""In the order in which the shards wait."""


@dataclass(frozen=True, slots=True)
class Request:
    """A run to ask for: of the named objects, or of the whole shard where none are named."""

    shard: Shard
    keys: tuple[str, ...]
    run_key: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a tick does."""

    requests: tuple[Request, ...]
    waiting: int
    """Shards not asked for now: a run is under way, a pause after a failure lasts, or the tick is full."""
    hints: Hints


def merge(hints: Hints, named: Iterable[NamedObjects] = (), whole: Iterable[Shard] = ()) -> Hints:
    """Add what a feed named. A hint that is there already changes nothing."""
    merged = dict(hints)
    for shard in whole:
        merged[shard] = merged.get(shard, Hint()).widened()
    for shard, keys in _by_shard(named).items():
        hint = merged.get(shard, Hint())
        if not hint.whole:
            merged[shard] = _bounded(replace(hint, keys=hint.keys | keys))
    return _bounded_together(merged)


def decide(
    hints: Hints,
    *,
    succeeded: frozenset[str],
    active: frozenset[Shard],
    now: float,
    max_requests: int,
    tick: str,
) -> Decision:
    """Which runs to ask for.

    `succeeded` holds the run keys, of those in `hints`, whose run (or a retry of it) succeeded; `active` the shards
    with a run queued or under way. A run that is neither has failed, or was never started: its shard is asked for as a
    whole, after a growing pause which news cuts back to its first length.

    `tick` must never repeat. Dagster starts no second run for a key that it knows, so a tick that is evaluated again
    after a crash, perhaps with other messages, may not take the first one's keys for its own.
    """
    waiting: dict[Shard, Hint] = {}
    asked: dict[Shard, Hint] = {}
    requests: list[Request] = []
    for shard, before in hints.items():
        done = before.asked is not None and before.asked.run_key in succeeded
        hint = replace(before, asked=None) if done else before
        if not hint.news and hint.asked is None:
            continue
        if shard in active or len(requests) == max_requests or not _due(hint, now):
            waiting[shard] = hint
            continue
        attempts = 1 if hint.asked is None else hint.asked.attempts + 1
        look = hint if hint.asked is None else hint.widened()
        request = Request(shard, tuple(sorted(look.keys)), f"{shard.key}@{tick}")
        asked[shard] = Hint(asked=Asked(request.run_key, now, attempts))
        requests.append(request)
    # Those just asked for go to the end, so that a full tick starves nobody.
    return Decision(tuple(requests), len(waiting), {**waiting, **asked})


def dumps(hints: Hints) -> dict[str, Any]:
    """As JSON for the cursor; `loads` is the inverse."""
    return {
        shard.key: {
            **({"whole": True} if hint.whole else {"keys": sorted(hint.keys)} if hint.keys else {}),
            **({"asked": [hint.asked.run_key, hint.asked.at, hint.asked.attempts]} if hint.asked else {}),
        }
        for shard, hint in hints.items()
    }


def loads(data: Any) -> Hints:
    """Read hints back. Raises ValueError for what `dumps` did not write."""
    try:
        return {Shard.parse(key): _load(value) for key, value in data.items()}
    except (LookupError, TypeError, AttributeError, OverflowError, RagError) as error:
        raise ValueError("not a feed's hints") from error


def _load(value: Any) -> Hint:
    asked = value.get("asked")
    return Hint(
        frozenset(_KEYS.validate_python(value.get("keys", []))),
        bool(value.get("whole", False)),
        None if asked is None else Asked(str(asked[0]), float(asked[1]), int(asked[2])),
    )


def _due(hint: Hint, now: float) -> bool:
    if hint.asked is None:
        return True
    pause = RETRY_SECONDS if hint.news else retry_pause(hint.asked.attempts)
    # Asked for in the future: the clock was set back, and the pause would last until it is there again.
    return not hint.asked.at <= now < hint.asked.at + pause


def _by_shard(named: Iterable[NamedObjects]) -> dict[Shard, set[str]]:
    found: dict[Shard, set[str]] = {}
    for item in named:
        found.setdefault(item.shard, set()).add(item.key)
    return found


def _bounded(hint: Hint) -> Hint:
    return hint.widened() if len(hint.keys) > MAX_KEYS or _size(hint) > MAX_SHARD_BYTES else hint


def _bounded_together(hints: dict[Shard, Hint]) -> Hints:
    """Widen the shards with the most to remember until the rest fits."""
    sizes = {shard: _size(hint) for shard, hint in hints.items() if hint.keys}
    total = sum(sizes.values())
    for shard in sorted(sizes, key=lambda shard: sizes[shard], reverse=True):
        if total <= MAX_BYTES:
            break
        total -= sizes[shard]
        hints[shard] = hints[shard].widened()
    return hints


def _size(hint: Hint) -> int:
    return sum(len(key.encode()) + 3 for key in hint.keys)  # with its quotes and comma


@dataclass(frozen=True, slots=True)
class FeedCursor:
    """What the sensor keeps between ticks: what to look at, and where the feed is in its messages.

    Both are written together or not at all, so a message is never behind us before its hint is safe.
    """

    feed: str
    position: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The feed's own: offsets, or handles of messages that may be deleted now."""
    hints: Hints = field(default_factory=dict[Shard, Hint])

    def dumps(self) -> str:
        return json.dumps(
            {"format": 1, "feed": self.feed, "position": dict(self.position), "hints": dumps(self.hints)},
            ensure_ascii=False,
            separators=(",", ":"),
        )

    @classmethod
    def loads(cls, text: str | None, feed: str) -> FeedCursor:
        """Read a cursor. One that is unreadable starts anew; another feed's keeps its hints, but not its position."""
        if not text:
            return cls(feed)
        try:
            data = json.loads(text)
            if data["format"] != 1:
                return cls(feed)
            position: dict[str, Any] = dict(data["position"]) if data["feed"] == feed else {}
            return cls(feed, position, loads(data["hints"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            return cls(feed)
