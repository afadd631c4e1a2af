"""Which shards are dirty, found by listing the source, and the sensor's cursor between listings.

A shard is dirty if the digest of its listing differs from that of its published version, or if its table has vectors of
another embedding model, an older format, or URIs of another source. `pending` decides when a dirty shard gets its run.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rag_assets.arrivals import pending
from rag_assets.arrivals.pending import Decision, PendingShard, RequestedRun
from rag_assets.sources.base import Source, document_shard
from rag_assets.sources.left_out import LeftOut
from rag_assets.sources.listing_digest import listing_digest, listing_line
from rag_assets.storage.set_digest import DigestSum
from rag_serving.errors import RagError
from rag_serving.lake.catalog_entry import CatalogEntry
from rag_serving.lake.shards import Shard
from rag_serving.lake.tables import TABLE_FORMAT


def published_listing_digests(
    entries: Mapping[Shard, CatalogEntry], fingerprint: str | None, source_root: str
) -> dict[Shard, str]:
    """Return the listing digest of each published version; empty, hence dirty, if it must be built again.

    That is so if it has another embedder, an older format, or was read from another place than `source_root`. A shard
    on hold cannot be published, so its digest is that of the version built last.
    """

    def current(entry: CatalogEntry) -> bool:
        made = (entry.current.fingerprint, entry.current.table_format, entry.current.source_root or source_root)
        return made == (fingerprint, TABLE_FORMAT, source_root)

    return {
        shard: entry.latest_built_source_digest if entry.hold is not None or current(entry) else ""
        for shard, entry in entries.items()
    }


@dataclass(frozen=True, slots=True)
class Sweep:
    """The result of one listing with a time limit; `digests` has only completely listed shards."""

    digests: Mapping[Shard, str]
    objects: int
    left_out: LeftOut
    resume_after: str
    """Key after which the next sweep continues; empty at the end of the listing."""


def sweep(
    source: Source, *, start_after: str = "", seconds: float, clock: Callable[[], float] = time.monotonic
) -> Sweep:
    """List the source from `start_after` to its end or until `seconds` have passed.

    When the time is over, the current shard is left for the next sweep, unless it is the first: then it is completed.
    """
    deadline = clock() + seconds
    digests: dict[Shard, str] = {}
    current: Shard | None = None
    running = DigestSum()
    objects = 0
    left_out = LeftOut()
    before_current = start_after
    previous_key = start_after
    for page in source.pages(start_after=start_after):
        for entry in page:
            if current is not None and not entry.key.startswith(f"{current.key}/"):
                digests[current] = str(running)
                current = None
                if clock() > deadline:
                    return Sweep(digests, objects, left_out, previous_key)
            shard = document_shard(entry)
            if shard is not None and current is None:
                current, running, before_current = shard, DigestSum(), previous_key
            previous_key = entry.key
            if shard is not None:
                running.add(listing_line(entry))
                objects += 1
            else:
                left_out.add(entry)
        if clock() > deadline and current is None:
            return Sweep(digests, objects, left_out, previous_key)
        if clock() > deadline and digests and current is not None:
            return Sweep(digests, objects - running.items, left_out, before_current)
    if current is not None:
        digests[current] = str(running)
    return Sweep(digests, objects, left_out, "")


@dataclass(frozen=True, slots=True)
class Cursor:
    """What the sensor stores between ticks."""

    serial: int = 0
    resume_after: str = ""
    requested: Mapping[Shard, RequestedRun] = field(default_factory=dict[Shard, RequestedRun])
    swept: frozenset[Shard] = frozenset()
    """Shards seen since the listing last started; those missing at its end are gone from the source."""

    def dumps(self) -> str:
        """Return the cursor as JSON."""
        return json.dumps(
            {
                "format": 1,
                "serial": self.serial,
                "resume_after": self.resume_after,
                "asked": {
                    s.key: [run.digest, math.floor(run.at), run.attempts] for s, run in sorted(self.requested.items())
                },
                "swept": sorted(s.key for s in self.swept),
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )

    @classmethod
    def loads(cls, text: str | None) -> "Cursor":
        """Parse a cursor; an unreadable one (edited by hand, another format) starts empty, which is safe."""
        if not text:
            return cls()
        try:
            data = json.loads(text)
            requested = {
                Shard.parse(key): RequestedRun("", float(at), int(attempts), str(digest))
                for key, (digest, at, attempts) in data["asked"].items()
            }
            swept = frozenset(Shard.parse(key) for key in data["swept"])
            return cls(int(data["serial"]), str(data["resume_after"]), requested, swept)
        except (ValueError, KeyError, TypeError, AttributeError, RagError):
            return cls(serial=int(time.time()))


def decide(
    seen: Sweep,
    published: Mapping[Shard, str],
    active: frozenset[Shard],
    cursor: Cursor,
    *,
    now: float,
    max_requests: int,
) -> tuple[Decision, Cursor]:
    """Choose the runs to request, and the next cursor.

    `published` maps shards to the listing digests of their published versions; `active` has the shards with a queued or
    running run. A published shard is dirty, too, once a listing from start to end did not contain it.
    """
    digests = dict(seen.digests)
    swept = cursor.swept | seen.digests.keys()
    if not seen.resume_after:
        empty = listing_digest(())
        digests.update((shard, empty) for shard in published if shard not in swept)
        swept = frozenset[Shard]()
    requested = {shard: run for shard, run in cursor.requested.items() if published.get(shard) != run.digest}
    dirty = {
        shard: PendingShard(whole=True, requested=requested.get(shard), digest=digest)
        for shard, digest in sorted(digests.items())
        if published.get(shard) != digest
    }
    decision = pending.decide(
        dirty,
        active=active,
        now=now,
        max_requests=max_requests,
        run_key=lambda shard, item: f"{shard.key}@{item.digest[-12:]}#{cursor.serial + 1}",
    )
    requested |= {shard: item.requested for shard, item in decision.pending.items() if item.requested is not None}
    serial = cursor.serial + 1 if decision.requests else cursor.serial
    return decision, Cursor(serial, seen.resume_after, requested, frozenset(swept))
