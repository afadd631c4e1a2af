"""Which shards are dirty: pure decisions over a listing, the published digests and a small cursor.

A shard is dirty when the digest of its listing differs from the one that its last published run saw, so a run that
failed is not forgotten; it is asked for again with growing pauses while nothing changes. One whose vectors are of
another embedding model than the configured, or whose table is of an older form, is dirty, too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rag_assets.sources.base import Source, golden_shard_of, shard_of
from rag_assets.sources.listing_digest import ListingDigest, listing_digest
from rag_serving.errors import RagError
from rag_serving.lake.catalog_entry import CatalogEntry
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import TABLE_FORMAT

RETRY_SECONDS = 120.0
RETRY_CEILING = 6 * 3600.0


def published_listing_digests(entries: Mapping[Shard, CatalogEntry], fingerprint: str | None) -> dict[Shard, str]:
    """The source digest that each published shard was made from; empty where its vectors are not of that embedder.

    So a shard is dirty, too, when the embedding model is another now, or when its table is of an older form. One that
    is held cannot be published anew, and is left alone.
    """

    def current(entry: CatalogEntry) -> bool:
        return (entry.current.fingerprint, entry.current.table_format) == (fingerprint, TABLE_FORMAT)

    return {
        shard: entry.seen_source_digest if entry.hold is not None or current(entry) else ""
        for shard, entry in entries.items()
    }


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one time-boxed walk over the source saw. Only shards seen whole are in `digests`."""

    digests: Mapping[Shard, str]
    objects: int
    outside: int
    outside_examples: tuple[str, ...]
    resume_after: str
    """Key to go on from in the next sweep; empty when the walk reached the end."""


def sweep(
    source: Source, *, start_after: str = "", seconds: float, clock: Callable[[], float] = time.monotonic
) -> Sweep:
    """Walk the listing from `start_after` until its end or until `seconds` have passed.

    Interrupted, it forgets the shard it was in (its digest would be of a part) and says to resume before it, unless
    that shard alone fills the time: then it goes on to that shard's end.
    """
    deadline = clock() + seconds
    digests: dict[Shard, str] = {}
    current: Shard | None = None
    running = ListingDigest()
    objects = outside = 0
    examples: list[str] = []
    before_current = start_after
    previous_key = start_after
    for page in source.pages(start_after=start_after):
        for entry in page:
            if current is not None and not entry.key.startswith(f"{current.key}/"):
                digests[current] = str(running)
                current = None
                if clock() > deadline:
                    return Sweep(digests, objects, outside, tuple(examples), previous_key)
            shard = shard_of(entry.key)  # None for hidden keys and markers too, which may lie inside a shard
            if shard is not None and current is None:
                current, running, before_current = shard, ListingDigest(), previous_key
            previous_key = entry.key
            if shard is not None:
                running.add(entry)
                objects += 1
            elif golden_shard_of(entry.key) is None:
                outside += 1
                if len(examples) < 5:
                    examples.append(entry.key)
        if clock() > deadline and current is None:
            return Sweep(digests, objects, outside, tuple(examples), previous_key)
        if clock() > deadline and digests and current is not None:
            return Sweep(digests, objects - running.objects, outside, tuple(examples), before_current)
    if current is not None:
        digests[current] = str(running)
    return Sweep(digests, objects, outside, tuple(examples), "")


@dataclass(frozen=True, slots=True)
class Asked:
    """The last run asked for a shard: of which digest, when, and how often for that same digest."""

    digest: str
    at: float
    attempts: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """What the sensor keeps between ticks."""

    serial: int = 0
    resume_after: str = ""
    asked: Mapping[Shard, Asked] = field(default_factory=dict[Shard, Asked])
    swept: frozenset[Shard] = frozenset()
    """Shards seen since the walk last began at the start; those missing at its end are gone from the source."""

    def dumps(self) -> str:
        return json.dumps(
            {
                "format": 1,
                "serial": self.serial,
                "resume_after": self.resume_after,
                "asked": {s.key: [a.digest, round(a.at), a.attempts] for s, a in sorted(self.asked.items())},
                "swept": sorted(s.key for s in self.swept),
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )

    @classmethod
    def loads(cls, text: str | None) -> Cursor:
        """Read a cursor; one that is unreadable (edited by hand, of another format) starts anew, which is safe."""
        if not text:
            return cls()
        try:
            data = json.loads(text)
            asked = {Shard.parse(k): Asked(str(d), float(at), int(n)) for k, (d, at, n) in data["asked"].items()}
            swept = frozenset(Shard.parse(key) for key in data["swept"])
            return cls(int(data["serial"]), str(data["resume_after"]), asked, swept)
        except (ValueError, KeyError, TypeError, AttributeError, RagError):
            return cls(serial=int(time.time()))


@dataclass(frozen=True, slots=True)
class Request:
    """A run to ask for. The key is the same when an interrupted tick is evaluated again, and never repeats else."""

    shard: Shard
    digest: str
    run_key: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a tick does."""

    requests: tuple[Request, ...]
    dirty: int
    waiting: int
    """Dirty shards not asked for now: a run is under way, a pause after a failure lasts, or the tick is full."""
    cursor: Cursor


def decide(
    seen: Sweep,
    published: Mapping[Shard, str],
    active: frozenset[Shard],
    cursor: Cursor,
    *,
    now: float,
    max_requests: int,
) -> Decision:
    """Which runs to ask for.

    `published` holds the source digest that each published shard was made from, `active` the shards with a run queued
    or under way. A published shard whose objects are all gone is dirty too, once a walk from start to end has not
    seen it.
    """
    digests = dict(seen.digests)
    swept = cursor.swept | seen.digests.keys()
    if not seen.resume_after:
        empty = listing_digest(())
        digests.update((shard, empty) for shard in published if shard not in swept)
        swept = frozenset[Shard]()
    dirty = [shard for shard, digest in sorted(digests.items()) if published.get(shard) != digest]
    asked = {shard: value for shard, value in cursor.asked.items() if published.get(shard) != value.digest}
    requests: list[Request] = []
    for shard in dirty:
        if len(requests) == max_requests:
            break
        digest = digests[shard]
        last = asked.get(shard)
        same = last is not None and last.digest == digest
        if shard in active or (last is not None and same and now < last.at + retry_pause(last.attempts)):
            continue
        attempts = last.attempts + 1 if last is not None and same else 1
        asked[shard] = Asked(digest, now, attempts)
        requests.append(Request(shard, digest, f"{shard.key}@{digest[-12:]}#{cursor.serial + 1}"))
    after = Cursor(cursor.serial + 1 if requests else cursor.serial, seen.resume_after, asked, frozenset(swept))
    return Decision(tuple(requests), len(dirty), len(dirty) - len(requests), after)


def retry_pause(attempts: int) -> float:
    """Seconds from the asking of a run that failed to the asking of the next, which grow with its failures in a row."""
    return min(RETRY_CEILING, RETRY_SECONDS * 2 ** min(attempts - 1, 20))
