"""Single flight: who leads, who follows, and what happens when the leader fails or dies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rag_serving.answering.single_flight import Emit, SingleFlight
from rag_serving.errors import CacheUnavailable
from rag_serving.events import Delta, Done, Event, Failed, Restart
from rag_serving.results import Answer

DONE = Done(answer=Answer(question="Q", text="ab", citations=(), kind="extract", model=None))


class Board:
    """An in-memory board; a lease expires when `now` passes its end."""

    def __init__(self) -> None:
        self.leaders: dict[str, tuple[str, float]] = {}
        self.written: dict[tuple[str, str], list[bytes]] = {}
        self.now = 0.0
        self.down = False

    def _check(self) -> None:
        if self.down:
            raise CacheUnavailable("down")

    async def acquire(self, flight: str, token: str, seconds: float) -> str | None:
        leader = await self.leader(flight)
        if leader is None:
            self.leaders[flight] = (token, self.now + seconds)
        return leader

    async def leader(self, flight: str) -> str | None:
        self._check()
        token, until = self.leaders.get(flight, ("", -1.0))
        return token if until > self.now else None

    async def renew(self, flight: str, token: str, seconds: float) -> bool:
        if await self.leader(flight) == token:
            self.leaders[flight] = (token, self.now + seconds)
            return True
        return False

    async def publish(self, flight: str, token: str, events: Sequence[bytes], seconds: float) -> None:
        self._check()
        assert seconds > 0
        self.written.setdefault((flight, token), []).extend(events)

    async def events(self, flight: str, token: str, after: int) -> list[bytes]:
        self._check()
        return self.written.get((flight, token), [])[after:]

    async def release(self, flight: str, token: str) -> None:
        if await self.leader(flight) == token:
            del self.leaders[flight]


class Producer:
    """Emit two deltas and the end, and count the calls; with `wait`, pause before the second delta."""

    def __init__(self, *, wait: asyncio.Event | None = None, fails: Exception | None = None) -> None:
        self.calls = 0
        self._wait = wait
        self._fails = fails

    async def __call__(self, emit: Emit) -> None:
        self.calls += 1
        emit(Delta(text="a"))
        await asyncio.sleep(0)
        if self._wait is not None:
            await self._wait.wait()
        if self._fails is not None:
            raise self._fails
        emit(Delta(text="b"))
        emit(DONE)


async def all_of(flights: SingleFlight, produce: Producer, key: str = "key") -> tuple[list[Event], bool]:
    events: list[Event] = []
    led = False
    async for event, own in flights.join(key, produce):
        events.append(event)
        led = own
    return events, led


WHOLE = [Delta(text="a"), Delta(text="b"), DONE]


def test_concurrent_callers_of_one_process_share_one_flight_and_all_get_its_events() -> None:
    async def go() -> None:
        flights, produce = SingleFlight(), Producer()
        results = await asyncio.gather(*(all_of(flights, produce) for _ in range(50)))
        assert produce.calls == 1
        assert all(events == WHOLE for events, _ in results)
        assert [led for _, led in results].count(True) == 1
        assert len(flights) == 0

    asyncio.run(go())


def test_other_keys_fly_separately_and_a_finished_flight_is_not_joined() -> None:
    async def go() -> None:
        flights, produce = SingleFlight(Board()), Producer()
        await asyncio.gather(all_of(flights, produce, "one"), all_of(flights, produce, "two"))
        await all_of(flights, produce, "one")
        await all_of(flights, produce, "one")
        assert produce.calls == 4

    asyncio.run(go())


def test_callers_of_three_processes_share_one_flight() -> None:
    async def go() -> None:
        board = Board()
        processes = [SingleFlight(board) for _ in range(3)]
        produce = Producer()
        results = await asyncio.gather(*(all_of(flights, produce) for flights in processes for _ in range(20)))
        assert produce.calls == 1
        assert all(events == WHOLE for events, _ in results)
        assert [led for _, led in results].count(True) == 1
        assert board.leaders == {}

    asyncio.run(go())


def test_an_error_reaches_every_waiting_caller_and_the_next_caller_tries_again() -> None:
    async def go() -> None:
        board = Board()
        produce = Producer(fails=ValueError("a secret"))
        results = await asyncio.gather(*(all_of(SingleFlight(board), produce) for _ in range(3)))
        for events, _ in results:
            assert isinstance(events[-1], Failed)
            assert "secret" not in events[-1].message
        assert produce.calls == 1
        events, _ = await all_of(SingleFlight(board), Producer())
        assert events == WHOLE

    asyncio.run(go())


def test_a_follower_takes_over_from_a_dead_leader_and_restarts_the_stream() -> None:
    async def go() -> None:
        board = Board()
        never = asyncio.Event()
        dead, heir = SingleFlight(board, lease_seconds=1e6), SingleFlight(board)
        dying = asyncio.create_task(all_of(dead, Producer(wait=never)))
        await asyncio.sleep(0.2)
        assert board.written
        produce = Producer()
        waiting = asyncio.create_task(all_of(heir, produce))
        await asyncio.sleep(0.2)
        assert produce.calls == 0
        board.now = 1e7  # its lease has expired
        events, led = await waiting
        assert led
        assert events == [Delta(text="a"), Restart(), *WHOLE]
        never.set()
        assert (await dying)[0] == WHOLE  # its own callers still get their answer

    asyncio.run(go())


def test_a_live_leader_renews_its_lease() -> None:
    async def go() -> None:
        board, go_on = Board(), asyncio.Event()
        flights = SingleFlight(board, lease_seconds=0.2)
        waiting = asyncio.create_task(all_of(flights, Producer(wait=go_on)))
        for _ in range(20):
            await asyncio.sleep(0.02)
            board.now += 0.02
        produce = Producer()
        other = asyncio.create_task(all_of(SingleFlight(board), produce))
        await asyncio.sleep(0.05)
        go_on.set()
        assert (await waiting)[0] == (await other)[0] == WHOLE
        assert produce.calls == 0

    asyncio.run(go())


@pytest.mark.parametrize("when", ["before", "during the flight"])
def test_without_the_board_every_process_makes_its_own_answer(when: str) -> None:
    async def go() -> None:
        board, go_on = Board(), asyncio.Event()
        board.down = when == "before"
        produce = Producer(wait=go_on)
        waiting = [asyncio.create_task(all_of(SingleFlight(board), produce)) for _ in range(2)]
        await asyncio.sleep(0.1)
        board.down = True
        await asyncio.sleep(0.2)
        go_on.set()
        for events, _ in await asyncio.gather(*waiting):
            assert events[-3:] == WHOLE
        assert produce.calls == 2

    asyncio.run(go())


def test_a_flight_ignores_garbage_on_the_board() -> None:
    async def go() -> None:
        board = Board()
        board.leaders["key"] = ("liar", 0.5)
        board.written["key", "liar"] = [b"{", b"[]"]
        produce = Producer()
        waiting = asyncio.create_task(all_of(SingleFlight(board), produce))
        await asyncio.sleep(0.1)
        board.now = 1.0
        events, _ = await waiting
        assert events == WHOLE

    asyncio.run(go())


def test_a_flight_is_cancelled_when_its_last_caller_leaves_and_the_next_caller_begins_another() -> None:
    async def go() -> None:
        flights, never, board = SingleFlight(), asyncio.Event(), Board()
        for flying in (flights, SingleFlight(board)):
            produce = Producer(wait=never)
            callers = [asyncio.create_task(all_of(flying, produce)) for _ in range(2)]
            await asyncio.sleep(0.05)
            callers[0].cancel()
            await asyncio.sleep(0.05)
            assert len(flying) == 1
            callers[1].cancel()
            await asyncio.sleep(0.2)
            assert (len(flying), board.leaders) == (0, {})
            assert (await all_of(flying, Producer()))[0] == WHOLE

    asyncio.run(go())


def test_an_abandoned_flight_is_finished_if_that_is_set() -> None:
    async def go() -> None:
        flights, go_on = SingleFlight(finish_abandoned=True), asyncio.Event()
        produce = Producer(wait=go_on)
        only = asyncio.create_task(all_of(flights, produce))
        await asyncio.sleep(0.01)
        only.cancel()
        await asyncio.sleep(0.01)
        assert len(flights) == 1
        go_on.set()
        await asyncio.sleep(0.01)
        assert (len(flights), produce.calls) == (0, 1)

    asyncio.run(go())


def test_a_flight_continues_after_its_first_caller_leaves() -> None:
    async def go() -> None:
        flights, go_on = SingleFlight(), asyncio.Event()
        produce = Producer(wait=go_on)
        first = asyncio.create_task(all_of(flights, produce))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(all_of(flights, produce))
        await asyncio.sleep(0.01)
        first.cancel()
        go_on.set()
        assert (await second)[0] == WHOLE
        assert produce.calls == 1

    asyncio.run(go())


def test_closing_fails_waiting_callers_and_releases_the_lease() -> None:
    async def go() -> None:
        board = Board()
        flights = SingleFlight(board)
        waiting = asyncio.create_task(all_of(flights, Producer(wait=asyncio.Event())))
        await asyncio.sleep(0.1)
        await flights.close()
        events, _ = await waiting
        assert isinstance(events[-1], Failed)
        assert board.leaders == {}

    asyncio.run(go())
