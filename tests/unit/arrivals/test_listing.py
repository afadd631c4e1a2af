"""Which shards are dirty, decided without a server, a clock or Dagster."""

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
from rag_assets.sources.listing_digest import listing_digest
from rag_serving.lake.shards import Shard

A, B, C = Shard("a", "x"), Shard("b", "x"), Shard("c", "x")
TIME = datetime(2026, 1, 1, tzinfo=UTC)
NOBODY: frozenset[Shard] = frozenset()


def document(key: str, etag: str = "1", size: int = 1) -> SourceObject:
    return SourceObject(key, etag, size, TIME)


class Listing:
    """A source that can be listed only, from a dictionary of keys and etags."""

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
    """What a walk over everything would find, said in the plainest way."""
    entries: dict[Shard, list[SourceObject]] = {}
    for key, etag in etags.items():
        if (shard := shard_of(key)) is not None:
            entries.setdefault(shard, []).append(document(key, etag))
    return {shard: listing_digest(found) for shard, found in entries.items()}


def saw(digests: Mapping[Shard, str], resume_after: str = "") -> Sweep:
    return Sweep(digests, len(digests), 0, (), resume_after)


@dataclass(frozen=True)
class Ticked:
    """What a tick requested and left, and its cursor."""

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
def test_a_digest_changes_with_the_documents(after: list[SourceObject]) -> None:
    assert listing_digest(after) != listing_digest(BEFORE)


def test_a_digest_depends_neither_on_times_nor_on_the_order_of_the_listing() -> None:
    later = [SourceObject(e.key, e.etag, e.size, datetime(2027, 1, 1, tzinfo=UTC)) for e in reversed(BEFORE)]
    assert listing_digest(later) == listing_digest(BEFORE)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)
entries = st.lists(st.builds(document, texts, texts, st.integers(0, 99)), max_size=5, unique_by=lambda e: e.key)


@given(entries, entries)
def test_two_listings_have_one_digest_exactly_if_they_are_the_same(
    one: list[SourceObject], other: list[SourceObject]
) -> None:
    same = sorted(one, key=lambda e: e.key) == sorted(other, key=lambda e: e.key)
    assert (listing_digest(one) == listing_digest(other)) == same


def test_a_sweep_with_time_to_spare_sees_everything() -> None:
    etags = {"a/x/1": "1", "a/x/d/2": "1", "b/x/1": "1", "loose": "1", "a/loose": "1"}
    seen = sweep(Listing(etags, page=2), seconds=1000, clock=ticking())
    assert seen.digests == digests_of(etags)
    assert (seen.objects, seen.outside, seen.resume_after) == (3, 2, "")
    assert set(seen.outside_examples) == {"loose", "a/loose"}


def test_hidden_keys_and_markers_inside_a_shard_do_not_cut_it_in_two() -> None:
    documents = {"a/x/(1).md": "1", "a/x/2.md": "1", "a/x/s/3.md": "1", "b/x/1.md": "1"}
    noise = {"a/x/": "1", "a/x/.DS_Store": "1", "a/x/r/.git/config": "1", "a/x/s/": "1"}
    seen = sweep(Listing({**documents, **noise}, page=2), seconds=1000, clock=ticking())
    assert seen.digests == digests_of(documents)
    assert (seen.objects, seen.outside) == (4, 4)


def test_golden_questions_are_neither_documents_nor_outside_and_make_no_shard() -> None:
    documents = {"a/x/1.md": "1", "a/x/b/2.md": "1"}
    golden = {"a/x/_eval/q.jsonl": "1", "a/x/_eval/r/q.jsonl": "1", "b/x/_eval/q.jsonl": "1"}
    seen = sweep(Listing({**documents, **golden}, page=2), seconds=1000, clock=ticking())
    assert seen.digests == digests_of(documents)
    assert (seen.objects, seen.outside) == (2, 0)


def test_only_a_few_outside_keys_are_kept_as_examples() -> None:
    seen = sweep(Listing({f"loose-{n}": "1" for n in range(50)}), seconds=1000, clock=ticking())
    assert seen.outside == 50
    assert len(seen.outside_examples) == 5


def walk(source: Listing, seconds: float, clock: Callable[[], float] | None = None) -> list[Sweep]:
    """Sweep after sweep until the end of the listing."""
    sweeps: list[Sweep] = []
    position = ""
    while not sweeps or position:
        seen = sweep(source, start_after=position, seconds=seconds, clock=clock or ticking())
        assert seen.resume_after == "" or seen.resume_after.encode() > position.encode(), "no progress"
        position = seen.resume_after
        sweeps.append(seen)
    return sweeps


def test_a_sweep_that_runs_out_of_time_is_resumed_before_the_shard_it_was_in() -> None:
    etags = {f"{region}/x/{n}": "1" for region in "abc" for n in range(3)}
    sweeps = walk(Listing(etags, page=2), seconds=1)
    assert len(sweeps) > 1
    assert sweeps[0].resume_after == "a/x/2"
    assert {shard: digest for seen in sweeps for shard, digest in seen.digests.items()} == digests_of(etags)
    assert sum(seen.objects for seen in sweeps) == len(etags)


def test_a_shard_that_fills_the_time_alone_is_still_seen_whole() -> None:
    etags = {**{f"a/x/{n:03}": "1" for n in range(100)}, "b/x/1": "1"}
    first = sweep(Listing(etags, page=10), seconds=0, clock=ticking())
    assert first.digests == {A: digests_of(etags)[A]}
    assert first.resume_after == "a/x/099"


def test_many_keys_outside_every_shard_do_not_break_the_time_box() -> None:
    etags = {"a/x/1": "1", **{f"b/{n:03}": "1" for n in range(100)}, "c/x/1": "1"}
    sweeps = walk(Listing(etags, page=10), seconds=3)
    assert max(seen.outside for seen in sweeps) < 100
    assert {shard: digest for seen in sweeps for shard, digest in seen.digests.items()} == digests_of(etags)


keys = st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", ".h"]), st.sampled_from(["1", ".2", "3/4", "5"]))


@given(
    st.sets(keys.map("/".join) | st.sampled_from(["a", "a/x", "b/", "z"])),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_however_often_a_walk_is_interrupted_it_sees_each_shard_whole(found: set[str], page: int, seconds: int) -> None:
    etags = dict.fromkeys(found, "1")
    seen: dict[Shard, str] = {}
    for part in walk(Listing(etags, page), seconds):
        assert not seen.keys() & part.digests.keys()
        seen |= part.digests
    assert seen == digests_of(etags)


def test_a_new_shard_and_a_changed_one_are_asked_for_and_an_unchanged_one_is_not() -> None:
    decision = tick({A: "new", B: "b2", C: "c"}, Cursor(), published={B: "b1", C: "c"})
    assert [(request.shard, request.digest) for request in decision.requests] == [(A, "new"), (B, "b2")]
    assert (decision.dirty, decision.waiting) == (2, 0)


def test_a_shard_with_a_run_under_way_is_left_alone_until_that_run_is_over() -> None:
    first = tick({A: "1", B: "1"}, Cursor(), active=frozenset({A}))
    assert requested(first) == [B]
    assert (first.dirty, first.waiting) == (2, 1)
    second = tick({A: "1", B: "1"}, first.cursor, active=frozenset({B}))
    assert requested(second) == [A]


def test_a_change_during_a_run_is_asked_for_when_the_run_is_over() -> None:
    first = tick({A: "1"}, Cursor())
    during = tick({A: "2"}, first.cursor, active=frozenset({A}), now=1)
    assert requested(during) == []
    after = tick({A: "2"}, during.cursor, published={A: "1"}, now=2)
    assert requested(after) == [A]


def test_a_shard_that_goes_from_a_to_b_and_back_to_a_never_repeats_a_run_key() -> None:
    cursor, published = Cursor(), {A: "none"}
    run_keys: list[str] = []
    for number, digest in enumerate(["aaa", "bbb", "aaa", "bbb", "aaa"]):
        decision = tick({A: digest}, cursor, published=published, now=number * 1e6)
        run_keys += [request.run_key for request in decision.requests]
        cursor, published = decision.cursor, {A: digest}
    assert len(run_keys) == len(set(run_keys)) == 5


def test_a_tick_that_is_evaluated_again_asks_by_the_same_run_keys() -> None:
    cursor = Cursor(serial=7)
    first, again = tick({A: "1", B: "1"}, cursor, now=5), tick({A: "1", B: "1"}, cursor, now=9)
    assert [r.run_key for r in first.requests] == [r.run_key for r in again.requests]


def test_a_failed_run_is_asked_for_again_after_pauses_that_grow_to_a_ceiling() -> None:
    cursor, now = Cursor(), 0.0
    asked_at: list[float] = []
    while len(asked_at) < 14:
        decision = tick({A: "1"}, cursor, now=now)
        if decision.requests:
            asked_at.append(now)
        else:
            assert (decision.dirty, decision.waiting) == (1, 1)
        cursor, now = decision.cursor, now + 30
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
    assert pauses[:4] == [RETRY_SECONDS, 2 * RETRY_SECONDS, 4 * RETRY_SECONDS, 8 * RETRY_SECONDS]
    assert pauses == sorted(pauses)
    assert pauses[-1] == RETRY_CEILING


def test_a_new_change_is_asked_for_at_once_whatever_failed_before() -> None:
    cursor = Cursor(serial=3, requested={A: RequestedRun("", 100.0, 9, "1")})
    assert requested(tick({A: "1"}, cursor, now=101)) == []
    decision = tick({A: "2"}, cursor, now=101)
    assert requested(decision) == [A]
    assert decision.cursor.requested[A].attempts == 1


def test_success_clears_the_pause() -> None:
    cursor = Cursor(serial=3, requested={A: RequestedRun("", 100.0, 9, "1")})
    done = tick({A: "1"}, cursor, published={A: "1"}, now=101)
    assert done.cursor.requested == {}
    assert requested(tick({A: "1"}, done.cursor, published={A: "elsewhere"}, now=102)) == [A]


def test_a_tick_asks_for_no_more_runs_than_allowed_and_the_next_ticks_for_the_rest() -> None:
    cursor = Cursor()
    active: frozenset[Shard] = NOBODY
    for expected in ([A, B], [C], []):
        decision = tick({A: "1", B: "1", C: "1"}, cursor, active=active, max_requests=2)
        assert requested(decision) == expected
        assert decision.waiting == 3 - len(expected)
        cursor, active = decision.cursor, active | set(expected)


def test_shards_that_keep_failing_do_not_starve_the_others() -> None:
    first = tick({A: "1", B: "1", C: "1"}, Cursor(), max_requests=1)
    second = tick({A: "1", B: "1", C: "1"}, first.cursor, now=30, max_requests=1)
    third = tick({A: "1", B: "1", C: "1"}, second.cursor, now=60, max_requests=1)
    assert requested(first) + requested(second) + requested(third) == [A, B, C]


def test_a_published_shard_without_objects_is_dirty_only_after_a_complete_walk() -> None:
    published = {A: "1", B: "1", C: "1"}
    first = tick({A: "1"}, Cursor(), published=published, resume_after="a/x/9")
    assert (requested(first), first.dirty) == ([], 0)
    last = tick({C: "1"}, first.cursor, published=published)
    assert [(r.shard, r.digest) for r in last.requests] == [(B, listing_digest(()))]
    emptied = {**published, B: listing_digest(())}
    again = tick({A: "1", C: "1"}, last.cursor, published=emptied)
    assert (requested(again), again.dirty) == ([], 0)


def test_a_new_walk_does_not_remember_what_an_older_one_saw() -> None:
    published = {A: "1", B: "1"}
    whole = tick({A: "1", B: "1"}, Cursor(), published=published)
    assert whole.cursor.swept == frozenset()
    assert requested(tick({A: "1"}, whole.cursor, published=published)) == [B]


def test_a_cursor_is_read_back_as_it_was_written() -> None:
    odd = Shard("東京 1", "R&D")
    cursor = Cursor(
        9, "a/x/ä+%\n.md", {A: RequestedRun("", 100.0, 2, "1"), odd: RequestedRun("", 5.0, 1, "2")}, frozenset({B, odd})
    )
    assert Cursor.loads(cursor.dumps()) == cursor


@pytest.mark.parametrize("text", [None, ""])
def test_no_cursor_is_a_beginning(text: str | None) -> None:
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
def test_a_garbled_cursor_starts_anew_without_repeating_run_keys(text: str) -> None:
    cursor = Cursor.loads(text)
    assert (cursor.resume_after, cursor.requested, cursor.swept) == ("", {}, frozenset())
    assert cursor.serial > 1_700_000_000


def test_the_cursor_of_a_large_company_stays_small() -> None:
    shards = [Shard(f"region-{n % 40}", f"department-{n // 40}") for n in range(1000)]
    seen = dict.fromkeys(shards, "f" * 24)
    decision = tick(seen, Cursor(), now=1.8e9, max_requests=1000, resume_after="z")
    assert len(decision.cursor.dumps()) < 100_000
    assert json.loads(decision.cursor.dumps())["format"] == 1


@dataclass
class World:
    """The sensor, its source and its runs, with Dagster reduced to what matters: a run key is used once."""

    etags: dict[str, str] = field(default_factory=dict[str, str])
    published: dict[Shard, str] = field(default_factory=dict[Shard, str])
    active: dict[Shard, str] = field(default_factory=dict[Shard, str])
    cursor: str | None = None
    now: float = 0.0
    run_keys: set[str] = field(default_factory=set[str])

    def listed(self, shard: Shard) -> str:
        return digests_of(self.etags).get(shard, listing_digest(()))

    def tick(self, *, seconds: int, page: int, max_requests: int, saved: bool = True) -> Ticked:
        """One tick; not `saved` when the daemon dies between asking for the runs and keeping the cursor."""
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
                self.active[request.shard] = self.listed(request.shard)  # what the run reads as it begins
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
def test_whatever_happens_every_shard_is_published_as_listed_once_runs_succeed(
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
