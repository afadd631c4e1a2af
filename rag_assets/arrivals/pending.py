"""Pending shards: what changed in them, when their run was requested, and when a failed run is retried. Pure.

One state machine serves both ways to detect arrivals: `listing` finds shards whose listing differs from the published
one, event feeds name objects. A shard stays pending until a run that was requested after the change has succeeded.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from rag_assets.arrivals.events.s3_records import NamedObjects
from rag_serving.errors import RagError
from rag_serving.lake.shards import Shard

RETRY_SECONDS = 120.0
RETRY_CEILING = 6 * 3600.0
MAX_KEYS = 100
"""With more named objects, listing the shard is cheaper."""
MAX_SHARD_BYTES = 8 * 2**10
MAX_BYTES = 64 * 2**10
"""Limit for the names of all shards, because Dagster stores the cursor with every tick."""

_KEYS = TypeAdapter(list[str])


@dataclass(frozen=True, slots=True)
class RequestedRun:
    """The last run requested for a shard, and the number of consecutive requests without success."""

    run_key: str
    at: float
    attempts: int
    digest: str = ""
    """Listing digest that the run was requested for; empty if an event requested it."""


@dataclass(frozen=True, slots=True)
class PendingShard:
    """What changed in a shard since its last requested run, and that run."""

    keys: frozenset[str] = frozenset()
    whole: bool = False
    """The whole shard must be listed."""
    requested: RequestedRun | None = None
    digest: str = ""
    """Digest of the listing that differs from the published one; empty if only events are known."""

    @property
    def has_changes(self) -> bool:
        """Whether anything changed since the requested run."""
        return self.whole or bool(self.keys)

    @property
    def repeats(self) -> bool:
        """Whether a run was already requested for this listing."""
        return self.requested is not None and self.requested.digest == self.digest

    def as_full_listing(self) -> "PendingShard":
        """Return the item with the whole shard to be listed instead of named objects."""
        return replace(self, keys=frozenset(), whole=True)

    def is_due(self, now: float) -> bool:
        """Return whether a run may be requested now, rather than after a pause because one just failed."""
        if self.requested is None or not self.repeats:
            return True
        # A new event may have removed the cause of the failure; an unchanged listing is likely to fail again.
        has_new_event = self.has_changes and not self.digest
        pause = RETRY_SECONDS if has_new_event else retry_pause(self.requested.attempts)
        # A request in the future means that the clock was set back; do not wait for it.
        return not self.requested.at <= now < self.requested.at + pause


Pending = Mapping[Shard, PendingShard]
"""Ordered: the first shard has waited longest."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run to request: for the named objects, or for the whole shard if none are named."""

    shard: Shard
    run_key: str
    keys: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one tick requests, and what it leaves pending."""

    requests: tuple[RunRequest, ...]
    waiting: int
    """Shards left for a later tick because a run is active, one just failed, or the tick is full."""
    pending: Pending


def decide(
    pending: Pending,
    *,
    active: frozenset[Shard],
    now: float,
    max_requests: int,
    run_key: Callable[[Shard, PendingShard], str],
    succeeded: frozenset[str] = frozenset(),
) -> Decision:
    """Choose the runs to request.

    `succeeded` has the run keys in `pending` whose run, or a retry of it, succeeded; `active` has the shards with a
    queued or running run. Any other requested run has failed or never started: its whole shard is requested again, with
    exponential backoff.

    `run_key` must return the same key only for a repeated tick: Dagster starts one run per key.
    """
    waiting: dict[Shard, PendingShard] = {}
    requested: dict[Shard, PendingShard] = {}
    requests: list[RunRequest] = []
    for shard, before in pending.items():
        done = before.requested is not None and before.requested.run_key in succeeded
        item = replace(before, requested=None) if done else before
        if not item.has_changes and item.requested is None:
            continue
        if shard in active or len(requests) == max_requests or not item.is_due(now):
            waiting[shard] = item
            continue
        attempts = 1 if item.requested is None or not item.repeats else item.requested.attempts + 1
        look = item if item.requested is None else item.as_full_listing()
        request = RunRequest(shard, run_key(shard, item), tuple(sorted(look.keys)), item.digest)
        run = RequestedRun(request.run_key, now, attempts, item.digest)
        requested[shard] = PendingShard(requested=run, digest=item.digest)
        requests.append(request)
    # Requested shards go to the end, so that a full tick does not starve the others.
    return Decision(tuple(requests), len(waiting), {**waiting, **requested})


def retry_pause(attempts: int) -> float:
    """Return the seconds between a failed request and the next one."""
    return min(RETRY_CEILING, RETRY_SECONDS * 2 ** min(attempts - 1, 20))


def add_named(pending: Pending, named: Iterable[NamedObjects] = (), whole: Iterable[Shard] = ()) -> Pending:
    """Return `pending` with the objects that a feed named and the shards to list. Idempotent."""
    merged = dict(pending)
    for shard in whole:
        merged[shard] = merged.get(shard, PendingShard()).as_full_listing()
    keys: dict[Shard, set[str]] = {}
    for item in named:
        keys.setdefault(item.shard, set()).add(item.key)
    for shard, found in keys.items():
        known = merged.get(shard, PendingShard())
        if not known.whole:
            merged[shard] = _bounded(replace(known, keys=known.keys | found))
    return _bounded_together(merged)


def to_json(pending: Pending) -> dict[str, Any]:
    """Return what a feed's cursor stores, the inverse of `from_json`. Listing digests are not stored."""
    return {
        shard.key: {
            **({"whole": True} if item.whole else {"keys": sorted(item.keys)} if item.keys else {}),
            **({"asked": [run.run_key, run.at, run.attempts]} if (run := item.requested) else {}),
        }
        for shard, item in pending.items()
    }


def from_json(data: Any) -> Pending:
    """Parse the result of `to_json`; raise ValueError for anything else."""
    try:
        return {Shard.parse(key): _item(value) for key, value in data.items()}
    except (LookupError, TypeError, AttributeError, OverflowError, RagError) as error:
        raise ValueError("not the pending shards of a feed") from error


def _item(value: Any) -> PendingShard:
    asked = value.get("asked")
    run = None if asked is None else RequestedRun(str(asked[0]), float(asked[1]), int(asked[2]))
    return PendingShard(frozenset(_KEYS.validate_python(value.get("keys", []))), bool(value.get("whole", False)), run)


def _bounded(item: PendingShard) -> PendingShard:
    return item.as_full_listing() if len(item.keys) > MAX_KEYS or _size(item) > MAX_SHARD_BYTES else item


def _bounded_together(pending: dict[Shard, PendingShard]) -> Pending:
    """Replace names by whole shards, those with the most names first, until the remaining names fit."""
    sizes = {shard: _size(item) for shard, item in pending.items() if item.keys}
    total = sum(sizes.values())
    for shard in sorted(sizes, key=lambda shard: sizes[shard], reverse=True):
        if total <= MAX_BYTES:
            break
        total -= sizes[shard]
        pending[shard] = pending[shard].as_full_listing()
    return pending


def _size(item: PendingShard) -> int:
    return sum(len(key.encode()) + 3 for key in item.keys)  # with quotes and comma
