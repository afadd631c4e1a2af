"""Deciding which shards are dirty: no server, clock or Dagster needed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_assets.arrivals.listing import Cursor, Sweep, decide, sweep
from rag_assets.arrivals.pending import RETRY_CEILING, RETRY_SECONDS, RequestedRun, RunRequest
from rag_assets.sources.base import FetchedObject, SourceObject, shard_of
from rag_assets.sources.left_out import LeftOut
from rag_assets.sources.listing_digest import listing_digest
from rag_serving.lake.shards import Shard

A, B, C = Shard("a", "x"), Shard("b", "x"), Shard("c", "x")
TIME = datetime(2026, 1, 1, tzinfo=UTC)
NOBODY: frozenset[Shard] = frozenset()


def document(key: str, etag: str = "1", size: int = 1) -> SourceObject:
    return SourceObject(key, etag, size, TIME)


class Listing:
    """A source that only supports listing, backed by a dictionary from key to etag."""

    def __init__(self, etags: Mapping[str, str], page: int = 1000) -> None:
        self.etags = etags
        self._page = page

    def pages(self, prefix: str = "", *, start_after: str = "") -> Iterator[list[SourceObject]]:
        keys = sorted(self.etags, key=str.encode)
        after = (key for key in keys if key.startswith(prefix) and key.encode() > start_after.encode())
        while page := [document(key, self.etags[key]) for key in itertools.islice(after, self._page)]:
            yield page

    def head(self, key: str) -> SourceObject | None:
        raise NotImplementedError

    def fetch(self, key: str) -> FetchedObject:
        raise NotImplementedError

    def uri(self, key: str) -> str:
        raise NotImplementedError


def ticking() -> Callable[[], float]:
    """A clock that advances by a second each time it is read."""
    return itertools.count().__next__


def digests_of(etags: Mapping[str, str]) -> dict[Shard, str]:
    """The digests of a complete walk, computed the simplest way."""
    entries: dict[Shard, list[SourceObject]] = {}
    for key, etag in etags.items():
        if (shard := shard_of(key)) is not None:
            entries.setdefault(shard, []).append(document(key, etag))
    return {shard: listing_digest(found) for shard, found in entries.items()}


def saw(digests: Mapping[Shard, str], resume_after: str = "") -> Sweep:
    return Sweep(digests, len(digests), LeftOut(), resume_after)


@dataclass(frozen=True)
class Ticked:
    """A tick's run requests, the number of shards left waiting, and its cursor."""

    requests: tuple[RunRequest, ...]
    waiting: int
    cursor: Cursor

    @property
    def dirty(self) -> int:
        return len(self.requests) + self.waiting


def tick(
    digests: Mapping[Shard, str],
    cursor: Cursor,
    *,
    published: Mapping[Shard, str] | None = None,
    active: frozenset[Shard] = NOBODY,
    now: float = 0.0,
    resume_after: str = "",
    max_requests: int = 100,
) -> Ticked:
    seen = saw(digests, resume_after)
    decision, after = decide(seen, published or {}, active, cursor, now=now, max_requests=max_requests)
    return Ticked(decision.requests, decision.waiting, after)


def requested(decision: Ticked) -> list[Shard]:
    return [request.shard for request in decision.requests]


BEFORE = [document("a/x/1"), document("a/x/2", "old", 7), document("a/x/3")]


@pytest.mark.parametrize(
    "after",
    [
        [*BEFORE, document("a/x/4")],
        [BEFORE[0], document("a/x/2", "new", 7), BEFORE[2]],
        [BEFORE[0], document("a/x/2", "old", 8), BEFORE[2]],
        [BEFORE[0], BEFORE[2]],
        [BEFORE[0], document("a/x/2b", "old", 7), BEFORE[2]],
        [document("a/x/1", "old", 7), document("a/x/2"), BEFORE[2]],
        [*BEFORE, BEFORE[0]],
        [],
    ],
    ids=["added", "changed", "resized", "deleted", "renamed", "swapped", "listed twice", "emptied"],
)
def test_a_digest_changes_when_the_documents_change(after: list[SourceObject]) -> None:
    assert listing_digest(after) != listing_digest(BEFORE)


def test_a_digest_is_independent_of_modification_times_and_listing_order() -> None:
    later = [SourceObject(e.key, e.etag, e.size, datetime(2027, 1, 1, tzinfo=UTC)) for e in reversed(BEFORE)]
    assert listing_digest(later) == listing_digest(BEFORE)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)
entries = st.lists(st.builds(document, texts, texts, st.integers(0, 99)), max_size=5, unique_by=lambda e: e.key)


@given(entries, entries)
def test_two_listings_have_the_same_digest_exactly_if_they_are_equal(
    one: list[SourceObject], other: list[SourceObject]
) -> None:
    same = sorted(one, key=lambda e: e.key) == sorted(other, key=lambda e: e.key)
    assert (listing_digest(one) == listing_digest(other)) == same


def test_a_sweep_with_enough_time_sees_everything() -> None:
    etags = {"a/x/1": "1", "a/x/d/2": "1", "b/x/1": "1", "loose": "1", "a/loose": "1"}
    seen = sweep(Listing(etags, page=2), seconds=1000, clock=ticking())
    assert seen.digests == digests_of(etags)
    assert (seen.objects, seen.left_out.total, seen.resume_after) == (3, 2, "")
    assert set(seen.left_out.examples["key outside region/department/"]) == {"loose", "a/loose"}


def test_hidden_keys_and_folder_markers_do_not_split_a_shard() -> None:
    documents = {"a/x/(1).md": "1", "a/x/2.md": "1", "a/x/s/3.md": "1", "b/x/1.md": "1"}
    noise = {"a/x/": "1", "a/x/.DS_Store": "1", "a/x/r/.git/config": "1", "a/x/s/": "1"}
    seen = sweep(Listing({**documents, **noise}, page=2), seconds=1000, clock=ticking())
    assert seen.digests == digests_of(documents)
    assert (seen.objects, seen.left_out.by_reason()) == (4, {"folder marker": 2, "hidden name": 2})
    assert seen.left_out.of_shard(A) == 4


def test_golden_questions_are_neither_documents_nor_outside_keys_and_create_no_shard() -> None:
    documents = {"a/x/1.md": "1", "a/x/b/2.md": "1"}
    golden = {"a/x/_eval/q.jsonl": "1", "a/x/_eval/r/q.jsonl": "1", "b/x/_eval/q.jsonl": "1"}
    seen = sweep(Listing({**documents, **golden}, page=2), seconds=1000, clock=ticking())
    assert seen.digests == digests_of(documents)
    assert (seen.objects, seen.left_out.total) == (2, 0)


def test_only_a_few_outside_keys_are_kept_as_examples() -> None:
    seen = sweep(Listing({f"loose-{n}": "1" for n in range(50)}), seconds=1000, clock=ticking())
    assert seen.left_out.total == 50
    assert len(seen.left_out.examples["key outside region/department/"]) == 5


def walk(source: Listing, seconds: float, clock: Callable[[], float] | None = None) -> list[Sweep]:
    """Sweep repeatedly until the end of the listing."""
    sweeps: list[Sweep] = []
    position = ""
    while not sweeps or position:
        seen = sweep(source, start_after=position, seconds=seconds, clock=clock or ticking())
        assert seen.resume_after == "" or seen.resume_after.encode() > position.encode(), "no progress"
        position = seen.resume_after
        sweeps.append(seen)
    return sweeps


def test_a_sweep_that_runs_out_of_time_resumes_at_the_start_of_the_shard_it_left_incomplete() -> None:
    etags = {f"{region}/x/{n}": "1" for region in "abc" for n in range(3)}
    sweeps = walk(Listing(etags, page=2), seconds=1)
    assert len(sweeps) > 1
    assert sweeps[0].resume_after == "a/x/2"
    assert {shard: digest for seen in sweeps for shard, digest in seen.digests.items()} == digests_of(etags)
    assert sum(seen.objects for seen in sweeps) == len(etags)


def test_a_shard_that_exceeds_the_time_limit_is_still_listed_completely() -> None:
    etags = {**{f"a/x/{n:03}": "1" for n in range(100)}, "b/x/1": "1"}
    first = sweep(Listing(etags, page=10), seconds=0, clock=ticking())
    assert first.digests == {A: digests_of(etags)[A]}
    assert first.resume_after == "a/x/099"


def test_many_keys_outside_every_shard_do_not_exceed_the_time_limit() -> None:
    etags = {"a/x/1": "1", **{f"b/{n:03}": "1" for n in range(100)}, "c/x/1": "1"}
    sweeps = walk(Listing(etags, page=10), seconds=3)
    assert max(seen.left_out.total for seen in sweeps) < 100
    assert {shard: digest for seen in sweeps for shard, digest in seen.digests.items()} == digests_of(etags)


keys = st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", ".h"]), st.sampled_from(["1", ".2", "3/4", "5"]))


@given(
    st.sets(keys.map("/".join) | st.sampled_from(["a", "a/x", "b/", "z"])),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_an_interrupted_walk_still_sees_each_shard_completely(found: set[str], page: int, seconds: int) -> None:
    etags = dict.fromkeys(found, "1")
    seen: dict[Shard, str] = {}
    for part in walk(Listing(etags, page), seconds):
        assert not seen.keys() & part.digests.keys()
        seen |= part.digests
    assert seen == digests_of(etags)


def test_new_and_changed_shards_are_requested_and_unchanged_ones_are_not() -> None:
    decision = tick({A: "new", B: "b2", C: "c"}, Cursor(), published={B: "b1", C: "c"})
    assert [(request.shard, request.digest) for request in decision.requests] == [(A, "new"), (B, "b2")]
    assert (decision.dirty, decision.waiting) == (2, 0)


def test_a_shard_with_an_active_run_is_skipped_until_the_run_ends() -> None:
    first = tick({A: "1", B: "1"}, Cursor(), active=frozenset({A}))
    assert requested(first) == [B]
    assert (first.dirty, first.waiting) == (2, 1)
    second = tick({A: "1", B: "1"}, first.cursor, active=frozenset({B}))
    assert requested(second) == [A]


def test_a_change_during_a_run_is_requested_after_the_run() -> None:
    first = tick({A: "1"}, Cursor())
    during = tick({A: "2"}, first.cursor, active=frozenset({A}), now=1)
    assert requested(during) == []
    after = tick({A: "2"}, during.cursor, published={A: "1"}, now=2)
    assert requested(after) == [A]


def test_a_shard_that_alternates_between_two_states_never_repeats_a_run_key() -> None:
    cursor, published = Cursor(), {A: "none"}
    run_keys: list[str] = []
    for number, digest in enumerate(["aaa", "bbb", "aaa", "bbb", "aaa"]):
        decision = tick({A: digest}, cursor, published=published, now=number * 1e6)
        run_keys += [request.run_key for request in decision.requests]
        cursor, published = decision.cursor, {A: digest}
    assert len(run_keys) == len(set(run_keys)) == 5


def test_a_repeated_tick_requests_the_same_run_keys() -> None:
    cursor = Cursor(serial=7)
    first, again = tick({A: "1", B: "1"}, cursor, now=5), tick({A: "1", B: "1"}, cursor, now=9)
    assert [r.run_key for r in first.requests] == [r.run_key for r in again.requests]


def test_a_failed_run_is_retried_with_exponential_backoff_up_to_a_ceiling() -> None:
    cursor, now = Cursor(), 0.0
    requested_at: list[float] = []
    while len(requested_at) < 14:
        decision = tick({A: "1"}, cursor, now=now)
        if decision.requests:
            requested_at.append(now)
        else:
            assert (decision.dirty, decision.waiting) == (1, 1)
        cursor, now = decision.cursor, now + 30
    pauses = [later - earlier for earlier, later in itertools.pairwise(requested_at)]
    assert pauses[:4] == [RETRY_SECONDS, 2 * RETRY_SECONDS, 4 * RETRY_SECONDS, 8 * RETRY_SECONDS]
    assert pauses == sorted(pauses)
    assert pauses[-1] == RETRY_CEILING


def test_a_new_change_is_requested_immediately_despite_earlier_failures() -> None:
    cursor = Cursor(serial=3, requested={A: RequestedRun("", 100.0, 9, "1")})
    assert requested(tick({A: "1"}, cursor, now=101)) == []
    decision = tick({A: "2"}, cursor, now=101)
    assert requested(decision) == [A]
    assert decision.cursor.requested[A].attempts == 1


def test_a_successful_run_resets_the_backoff() -> None:
    cursor = Cursor(serial=3, requested={A: RequestedRun("", 100.0, 9, "1")})
    done = tick({A: "1"}, cursor, published={A: "1"}, now=101)
    assert done.cursor.requested == {}
    assert requested(tick({A: "1"}, done.cursor, published={A: "elsewhere"}, now=102)) == [A]


def test_a_tick_requests_at_most_max_requests_runs_and_later_ticks_the_rest() -> None:
    cursor = Cursor()
    active: frozenset[Shard] = NOBODY
    for expected in ([A, B], [C], []):
        decision = tick({A: "1", B: "1", C: "1"}, cursor, active=active, max_requests=2)
        assert requested(decision) == expected
        assert decision.waiting == 3 - len(expected)
        cursor, active = decision.cursor, active | set(expected)


def test_repeatedly_failing_shards_do_not_starve_the_others() -> None:
    first = tick({A: "1", B: "1", C: "1"}, Cursor(), max_requests=1)
    second = tick({A: "1", B: "1", C: "1"}, first.cursor, now=30, max_requests=1)
    third = tick({A: "1", B: "1", C: "1"}, second.cursor, now=60, max_requests=1)
    assert requested(first) + requested(second) + requested(third) == [A, B, C]


def test_a_published_shard_without_objects_becomes_dirty_only_after_a_complete_walk() -> None:
    published = {A: "1", B: "1", C: "1"}
    first = tick({A: "1"}, Cursor(), published=published, resume_after="a/x/9")
    assert (requested(first), first.dirty) == ([], 0)
    last = tick({C: "1"}, first.cursor, published=published)
    assert [(r.shard, r.digest) for r in last.requests] == [(B, listing_digest(()))]
    emptied = {**published, B: listing_digest(())}
    again = tick({A: "1", C: "1"}, last.cursor, published=emptied)
    assert (requested(again), again.dirty) == ([], 0)


def test_a_new_walk_forgets_the_shards_seen_by_the_previous_one() -> None:
    published = {A: "1", B: "1"}
    whole = tick({A: "1", B: "1"}, Cursor(), published=published)
    assert whole.cursor.swept == frozenset()
    assert requested(tick({A: "1"}, whole.cursor, published=published)) == [B]


def test_a_cursor_survives_a_round_trip() -> None:
    odd = Shard("東京 1", "R&D")
    cursor = Cursor(
        9, "a/x/ä+%\n.md", {A: RequestedRun("", 100.0, 2, "1"), odd: RequestedRun("", 5.0, 1, "2")}, frozenset({B, odd})
    )
    assert Cursor.loads(cursor.dumps()) == cursor


@pytest.mark.parametrize("text", [None, ""])
def test_a_missing_cursor_starts_from_the_beginning(text: str | None) -> None:
    assert Cursor.loads(text) == Cursor()


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        "{}",
        "[]",
        "7",
        "null",
        '{"asked": {"a/x": 1}, "swept": [], "serial": 1, "resume_after": ""}',
        '{"asked": {"a|x": ["1", 1, 1]}, "swept": [], "serial": 1, "resume_after": ""}',
        '{"asked": {}, "swept": ["nowhere"], "serial": 1, "resume_after": ""}',
        '{"asked": {}, "swept": [], "serial": "x", "resume_after": ""}',
        '{"asked": {}, "swept": 5, "serial": 1, "resume_after": ""}',
    ],
)
def test_a_corrupt_cursor_restarts_the_walk_without_repeating_run_keys(text: str) -> None:
    cursor = Cursor.loads(text)
    assert (cursor.resume_after, cursor.requested, cursor.swept) == ("", {}, frozenset())
    assert cursor.serial > 1_700_000_000


def test_the_cursor_stays_small_with_a_thousand_shards() -> None:
    shards = [Shard(f"region-{n % 40}", f"department-{n // 40}") for n in range(1000)]
    seen = dict.fromkeys(shards, "f" * 24)
    decision = tick(seen, Cursor(), now=1.8e9, max_requests=1000, resume_after="z")
    assert len(decision.cursor.dumps()) < 100_000
    assert json.loads(decision.cursor.dumps())["format"] == 1


@dataclass
class World:
    """The sensor, its source and its runs; all that remains of Dagster is that it uses each run key once."""

    etags: dict[str, str] = field(default_factory=dict[str, str])
    published: dict[Shard, str] = field(default_factory=dict[Shard, str])
    active: dict[Shard, str] = field(default_factory=dict[Shard, str])
    cursor: str | None = None
    now: float = 0.0
    run_keys: set[str] = field(default_factory=set[str])

    def listed(self, shard: Shard) -> str:
        return digests_of(self.etags).get(shard, listing_digest(()))

    def tick(self, *, seconds: int, page: int, max_requests: int, saved: bool = True) -> Ticked:
        """Run one tick; `saved=False` if the daemon dies after requesting the runs and before storing the cursor."""
        cursor = Cursor.loads(self.cursor)
        source = Listing(dict(self.etags), page)
        seen = sweep(source, start_after=cursor.resume_after, seconds=seconds, clock=ticking())
        active = frozenset(self.active)
        decided, after = decide(seen, self.published, active, cursor, now=self.now, max_requests=max_requests)
        decision = Ticked(decided.requests, decided.waiting, after)
        assert len(decision.requests) <= max_requests
        for request in decision.requests:
            assert request.shard not in self.active, "a second run for a shard that has one"
            if request.run_key not in self.run_keys:
                self.run_keys.add(request.run_key)
                self.active[request.shard] = self.listed(request.shard)  # the listing that the run reads when it starts
        if saved:
            self.cursor = decision.cursor.dumps()
        return decision

    def finish(self, shard: Shard, *, success: bool) -> None:
        read = self.active.pop(shard)
        if success:
            self.published[shard] = read


paths = st.sampled_from([f"{r}/{d}/{f}" for r in "ab" for d in "xy" for f in (".h", "1", "2/3", "4")] + ["a/loose"])
boxes = st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 3))
steps = st.one_of(
    st.tuples(st.just("put"), paths, st.sampled_from("AB")),
    st.tuples(st.just("delete"), paths),
    st.tuples(st.just("tick"), boxes, st.booleans()),
    st.tuples(st.just("finish"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 60.0, 1000.0])),
    st.tuples(st.just("garble")),
)


@settings(max_examples=300)
@given(st.lists(steps, max_size=40), boxes)
def test_after_any_history_successful_runs_publish_every_shard_as_listed(
    history: list[tuple[object, ...]], box: tuple[int, int, int]
) -> None:
    world = World()
    for step in history:
        match step:
            case ("put", str(key), str(etag)):
                world.etags[key] = etag
            case ("delete", str(key)):
                world.etags.pop(key, None)
            case ("tick", (int(seconds), int(page), int(limit)), bool(saved)):
                world.tick(seconds=seconds, page=page, max_requests=limit, saved=saved)
            case ("finish", int(number), bool(success)) if world.active:
                world.finish(sorted(world.active)[number % len(world.active)], success=success)
            case ("wait", float(seconds)):
                world.now += seconds
            case ("garble",):
                world.cursor = "garbage"
            case _:
                pass
    seconds, page, limit = box
    for _ in range(60):
        world.now += RETRY_CEILING
        world.tick(seconds=seconds, page=page, max_requests=limit)
        for shard in list(world.active):
            world.finish(shard, success=True)
    listed = digests_of(world.etags)
    assert {shard: world.listed(shard) for shard in world.published} == world.published
    assert listed.keys() <= world.published.keys()
    quiet = [world.tick(seconds=seconds, page=page, max_requests=limit) for _ in range(10)]
    assert not any(decision.dirty for decision in quiet)
