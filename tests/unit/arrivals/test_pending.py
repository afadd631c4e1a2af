"""Which runs pending hints request, despite duplicates, reordering, failures and crashes."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_assets.arrivals.events.cursor import FeedCursor
from rag_assets.arrivals.events.s3_records import NamedObjects
from rag_assets.arrivals.listing import Cursor
from rag_assets.arrivals.pending import (
    MAX_BYTES,
    MAX_KEYS,
    RETRY_SECONDS,
    Decision,
    Pending,
    PendingShard,
    RequestedRun,
    add_named,
    decide,
    retry_pause,
)
from rag_serving.lake.shards import Shard

A, B, C = Shard("a", "x"), Shard("b", "x"), Shard("ö", "it & web")
NOBODY: frozenset[Shard] = frozenset()
NEVER: frozenset[str] = frozenset()
_ticks = itertools.count()


def named(*keys: str) -> list[NamedObjects]:
    return [NamedObjects(Shard.parse("/".join(key.split("/")[:2])), key) for key in keys]


def step(
    hints: Pending,
    *,
    succeeded: frozenset[str] = NEVER,
    active: frozenset[Shard] = NOBODY,
    now: float = 0.0,
    max_requests: int = 100,
) -> Decision:
    tick = f"tick{next(_ticks)}"
    return decide(
        hints,
        succeeded=succeeded,
        active=active,
        now=now,
        max_requests=max_requests,
        run_key=lambda shard, _: f"{shard.key}@{tick}",
    )


def requested(decision: Decision) -> dict[str, tuple[str, ...]]:
    return {request.shard.key: request.keys for request in decision.requests}


def test_named_documents_become_one_run_per_shard_with_exactly_their_keys() -> None:
    decision = step(add_named({}, named("b/x/1", "a/x/2", "b/x/0", "b/x/1")))
    assert requested(decision) == {"b/x": ("b/x/0", "b/x/1"), "a/x": ("a/x/2",)}
    assert len({request.run_key for request in decision.requests}) == 2


def test_without_named_documents_nothing_is_requested() -> None:
    assert step({}) == Decision((), 0, {})


def test_a_successful_run_clears_the_keys_it_was_requested_for() -> None:
    first = step(add_named({}, named("a/x/1")))
    decision = step(first.pending, succeeded=frozenset({first.requests[0].run_key}))
    assert (requested(decision), decision.pending) == ({}, {})


def test_documents_named_during_a_run_are_requested_after_it() -> None:
    first = step(add_named({}, named("a/x/1")))
    waiting = step(add_named(first.pending, named("a/x/1", "a/x/2")), active=frozenset({A}))
    assert (requested(waiting), waiting.waiting) == ({}, 1)
    after = step(waiting.pending, succeeded=frozenset({first.requests[0].run_key}))
    assert requested(after) == {"a/x": ("a/x/1", "a/x/2")}


def test_a_failed_run_is_retried_for_the_whole_shard_with_exponential_backoff() -> None:
    decision = step(add_named({}, named("a/x/1")), now=0)
    now = 0.0
    for attempts in range(1, 5):
        pause = retry_pause(attempts)
        early = step(decision.pending, now=now + pause - 1)
        assert (requested(early), early.waiting) == ({}, 1)
        before, now = decision, now + pause
        decision = step(before.pending, now=now)
        assert requested(decision) == {"a/x": ()}
        assert decision.requests[0].run_key != before.requests[0].run_key


def test_a_new_change_resets_the_backoff_of_a_failing_shard() -> None:
    failing: Pending = {A: PendingShard(requested=RequestedRun("a/x@old", at=0.0, attempts=9))}
    assert requested(step(failing, now=RETRY_SECONDS)) == {}
    assert requested(step(add_named(failing, named("a/x/1")), now=RETRY_SECONDS - 1)) == {}
    assert requested(step(add_named(failing, named("a/x/1")), now=RETRY_SECONDS)) == {"a/x": ()}


def test_a_run_that_succeeds_late_clears_the_hint() -> None:
    first = step(add_named({}, named("a/x/1")))
    waiting = step(first.pending, now=RETRY_SECONDS / 2)
    assert waiting.waiting == 1
    assert step(waiting.pending, succeeded=frozenset({first.requests[0].run_key})).pending == {}


def test_setting_the_clock_back_does_not_lengthen_the_backoff() -> None:
    failed: Pending = {A: PendingShard(requested=RequestedRun("a/x@old", at=1e9, attempts=1))}
    again = step(failed, now=1000.0)
    assert requested(again) == {"a/x": ()}
    assert requested(step(again.pending, now=1001.0)) == {}


def test_a_full_tick_leaves_the_rest_to_the_next_one_and_starves_no_shard() -> None:
    hints = add_named({}, named("a/x/1", "b/x/1", "ö/it & web/1"))
    ticks: list[str] = []
    for _ in range(3):
        hints = add_named(hints, named("a/x/2"))  # this shard changes all the time
        decision = step(hints, max_requests=1)
        ticks += requested(decision)
        hints = step(
            decision.pending, succeeded=frozenset(r.run_key for r in decision.requests), max_requests=0
        ).pending
    assert ticks == ["a/x", "b/x", "ö/it & web"]


def test_too_many_keys_of_a_shard_request_the_whole_shard() -> None:
    few = add_named({}, named(*(f"a/x/{n}" for n in range(MAX_KEYS))))
    assert len(few[A].keys) == MAX_KEYS
    many = add_named(few, named("a/x/one more", "b/x/1"))
    assert many == {A: PendingShard(whole=True), B: PendingShard(frozenset({"b/x/1"}))}
    assert add_named(many, named("a/x/another"))[A] == PendingShard(whole=True)


def test_many_long_keys_of_a_shard_request_the_whole_shard() -> None:
    assert add_named({}, named(*(f"a/x/{'y' * 900}{n}" for n in range(20)))) == {A: PendingShard(whole=True)}


def test_the_cursor_stays_small_however_many_shards_are_named() -> None:
    hints = add_named({}, named(*(f"r{r}/d/{'y' * 80}{n}" for r in range(100) for n in range(60))))
    kept = [hint for hint in hints.values() if hint.keys]
    assert kept
    assert all(hint.whole for hint in hints.values() if not hint.keys)
    assert len(FeedCursor("sqs", {}, hints).dumps()) < MAX_BYTES + 100 * 40


def test_a_gap_in_the_feed_widens_the_affected_shards_and_keeps_their_requested_runs() -> None:
    first = step(add_named({}, named("a/x/1")))
    hints = add_named(first.pending, named("b/x/1"), whole=[A, B])
    assert hints[A] == PendingShard(whole=True, requested=first.pending[A].requested)
    assert hints[B] == PendingShard(whole=True)


shards = st.sampled_from([A, B, C])
keys = st.sampled_from(["1", "2", "sub/ü +.md"])
hint = st.builds(
    PendingShard,
    st.frozensets(st.text(max_size=5), max_size=4),
    st.just(False),
    st.none() | st.builds(RequestedRun, st.text(), st.floats(0, 2e9), st.integers(1, 99)),
)


@given(st.dictionaries(shards, hint | hint.map(PendingShard.as_full_listing)))
def test_a_cursor_survives_a_round_trip(hints: dict[Shard, PendingShard]) -> None:
    cursor = FeedCursor("kafka", {"topic": "t", "offsets": {"0": 5}}, hints)
    again = FeedCursor.loads(cursor.dumps(), "kafka")
    assert again == cursor
    assert list(again.pending) == list(hints)


def test_the_cursor_of_another_feed_keeps_its_hints_and_resets_its_position() -> None:
    cursor = FeedCursor("kafka", {"topic": "t"}, add_named({}, named("a/x/1")))
    assert FeedCursor.loads(cursor.dumps(), "sqs") == FeedCursor("sqs", {}, cursor.pending)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "from another version",
        "[]",
        "7",
        '{"format":2}',
        '{"format":1,"feed":"sqs","position":7,"hints":{}}',
        '{"format":1,"feed":"sqs","position":{},"hints":[]}',
        '{"format":1,"feed":"sqs","position":{},"hints":{"no shard":{}}}',
        '{"format":1,"feed":"sqs","position":{},"hints":{"a/x":{"keys":"abc"}}}',
        '{"format":1,"feed":"sqs","position":{},"hints":{"a/x":{"asked":["k"]}}}',
        '{"format":1,"feed":"sqs","position":{},"hints":{"a/x":{"asked":["k",1,1e999]}}}',
        "[" * 100_000,
        Cursor(3).dumps(),
    ],
)
def test_an_unreadable_cursor_starts_from_the_beginning(text: str | None) -> None:
    assert FeedCursor.loads(text, "sqs") == FeedCursor("sqs")


def test_the_listing_ignores_the_cursor_of_a_feed() -> None:
    assert Cursor.loads(FeedCursor("sqs", {}, add_named({}, named("a/x/1"))).dumps()).requested == {}


@given(st.text() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_loading_a_cursor_never_raises(text: str) -> None:
    FeedCursor.loads(text, "sqs")


Document = tuple[Shard, str]


class World:
    """A store whose documents change, a feed that names them, and a Dagster whose runs succeed, fail or hang."""

    def __init__(self) -> None:
        self.stored: Pending = {}
        self.now = 0.0
        self.changes = itertools.count()
        self.unseen: dict[Document, int] = {}  # the last named and stored change, until a run has seen it
        self.undelivered: dict[Document, int] = {}  # from lost ticks: the feed redelivers their messages
        self.running: dict[Shard, tuple[str, dict[Document, int]]] = {}  # run key and the changes that the run will see
        self.succeeded: set[str] = set()

    def end(self, shard: Shard, *, well: bool) -> None:
        run_key, seen = self.running.pop(shard)
        if well:
            self.succeeded.add(run_key)
            for document, change in seen.items():
                if self.unseen.get(document) == change:
                    del self.unseen[document]

    def tick(self, brought: list[Document], *, survives: bool, room: int) -> None:
        news = {**self.undelivered, **{document: next(self.changes) for document in brought}}
        merged = add_named(self.stored, [NamedObjects(shard, f"{shard.key}/{key}") for shard, key in news])
        decision = step(
            merged,
            succeeded=frozenset(self.succeeded),
            active=frozenset(self.running),
            now=self.now,
            max_requests=room,
        )
        self.now += 1000.0
        known = {**self.unseen, **news}
        for request in decision.requests:  # Dagster starts the runs before it stores the cursor, if it does
            assert request.shard not in self.running
            looked = {
                (shard, key): change
                for (shard, key), change in known.items()
                if shard == request.shard and (not request.keys or f"{shard.key}/{key}" in request.keys)
            }
            self.running[request.shard] = (request.run_key, looked)
        if survives:
            self.stored, self.unseen, self.undelivered = decision.pending, known, {}
        else:
            self.undelivered = news

    def remembers(self, document: Document) -> bool:
        shard, key = document
        hint = self.stored.get(shard, PendingShard())
        if hint.whole or f"{shard.key}/{key}" in hint.keys:
            return True
        if hint.requested is None or hint.requested.run_key in self.succeeded:
            return False
        run_key, seen = self.running.get(shard, ("", {}))
        # A failed run will be requested again for the whole shard.
        return run_key != hint.requested.run_key or seen.get(document) == self.unseen[document]


steps = st.tuples(
    st.lists(st.tuples(shards, keys), max_size=4),
    st.dictionaries(shards, st.booleans()),  # which runs end, and whether they succeed
    st.booleans(),  # whether the tick is stored
    st.integers(0, 3),
)


@settings(max_examples=300)
@given(st.lists(steps, max_size=15))
def test_a_named_change_is_remembered_until_a_later_run_has_seen_it(
    history: list[tuple[list[Document], dict[Shard, bool], bool, int]],
) -> None:
    world = World()
    for brought, ends, survives, room in history:
        for shard, well in ends.items():
            if shard in world.running:
                world.end(shard, well=well)
        world.tick(brought, survives=survives, room=room)
        assert all(world.remembers(document) for document in world.unseen)
    for _ in range(4):  # once every run succeeds, nothing is left
        for shard in list(world.running):
            world.end(shard, well=True)
        world.now += 1e6
        world.tick([], survives=True, room=9)
    assert (world.unseen, world.undelivered, world.stored) == ({}, {}, {})
