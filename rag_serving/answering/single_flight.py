"""Single flight: concurrent requests for one question share one answer and stream it as it is made.

Within a process they share one task. Across processes, a `SharedFlights` (Redis) stores the leader's lease and the
events it has published; when a leader dies, its lease expires and a follower takes over.
"""

import asyncio
import logging
import secrets
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, runtime_checkable

from pydantic import ValidationError

from rag_serving.errors import CacheUnavailable
from rag_serving.events import EVENT, Delta, Done, Event, Failed, Restart

_log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
"""Seconds without a heartbeat before followers elect a new leader; a busy leader may need seconds for the next one."""
_KEPT_SECONDS = 60.0
_MIRROR_SECONDS, _MIRROR_AT_MOST = 0.05, 0.25
"""First and longest pause between two publications: the first words appear soon, later ones in larger batches."""
_LOOK_SECONDS = 0.03

Emit = Callable[[Event], None]
Produce = Callable[[Emit], Awaitable[None]]
"""Produces an answer by emitting its events, the last of them `Done` or `Failed`."""


@runtime_checkable
class SharedFlights(Protocol):
    """Shares flights between processes. Methods raise `CacheUnavailable`."""

    async def acquire(self, flight: str, token: str, seconds: float) -> str | None:
        """Become the leader and return None, or return the token of the current leader."""
        ...

    async def leader(self, flight: str) -> str | None:
        """Return the token of the current leader, if any."""
        ...

    async def renew(self, flight: str, token: str, seconds: float) -> bool:
        """Extend the lease to `seconds` from now; returns False if another process leads."""
        ...

    async def publish(self, flight: str, token: str, events: Sequence[bytes], seconds: float) -> None:
        """Append events of this leader; all of them are kept for `seconds` from now."""
        ...

    async def events(self, flight: str, token: str, after: int) -> list[bytes]:
        """Return the events of a leader from number `after` on, counted from 0."""
        ...

    async def release(self, flight: str, token: str) -> None:
        """Give up the lease if this process still holds it."""
        ...


class _Flight:
    """The events emitted so far."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = False
        self.led = False
        self.followers = 0
        self.abandoned = False
        """Whether its last caller has left."""
        self.over = asyncio.Event()
        self._news = asyncio.Event()

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.ended = isinstance(event, (Done, Failed))
        if self.ended:
            self.over.set()
        self._news.set()
        self._news = asyncio.Event()

    async def more_than(self, seen: int) -> None:
        """Wait until more than `seen` events were emitted."""
        while len(self.events) <= seen:
            await self._news.wait()

    async def follow(self) -> AsyncGenerator[Event]:
        seen = 0
        while True:
            await self.more_than(seen)
            event = self.events[seen]
            seen += 1
            yield event
            if isinstance(event, (Done, Failed)):
                return


class SingleFlight:
    """The flights of one process. Belongs to one event loop."""

    def __init__(
        self,
        board: SharedFlights | None = None,
        *,
        lease_seconds: float = LEASE_SECONDS,
        finish_abandoned: bool = False,
    ) -> None:
        self._board = board
        self._finish_abandoned = finish_abandoned
        self._lease = lease_seconds
        self._flying: dict[str, tuple[_Flight, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flying)

    async def join(self, key: str, produce: Produce) -> AsyncGenerator[tuple[Event, bool]]:
        """Yield all events of a flight, each with whether this caller started the flight and this process leads it.

        A flight is cancelled when its last caller of this process leaves, with its search and its call of the model,
        unless abandoned flights are to be finished and cached. Followers in other processes then take over.
        """
        flight, before = self._flying.get(key, (None, None))
        began = flight is None or flight.ended  # an ended flight is only cleaning up
        if flight is None or flight.ended:
            flight = _Flight()
            task = asyncio.create_task(self._fly(key, flight, produce, before))
            self._flying[key] = flight, task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            task = self._flying[key][1]
        flight.followers += 1
        try:
            async for event in flight.follow():
                yield event, began and flight.led
        finally:
            flight.followers -= 1
            if not (flight.followers or flight.ended or self._finish_abandoned):
                flight.abandoned = flight.ended = True  # the next caller begins another one
                task.cancel()

    async def close(self) -> None:
        """Cancel all flights; their callers get an error."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fly(self, key: str, flight: _Flight, produce: Produce, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            if self._board is None:
                flight.led = True
                await _produced(flight, produce)
            else:
                await self._fly_with_others(self._board, key, flight, produce)
        finally:
            if not flight.ended:
                flight.emit(Failed(error="RagError", message="the answer was interrupted; retry"))
            if self._flying.get(key, (None, None))[0] is flight:
                del self._flying[key]

    async def _fly_with_others(self, board: SharedFlights, key: str, flight: _Flight, produce: Produce) -> None:
        token = secrets.token_hex(16)
        while not flight.ended:
            try:
                leader = await board.acquire(key, token, self._lease)
            except CacheUnavailable:
                flight.led = True
                await _produced(flight, produce)
                return
            if leader is None:
                await self._lead(board, key, token, flight, produce)
                return
            await self._follow(board, key, leader, flight)
            if not flight.ended and any(isinstance(event, Delta) for event in flight.events):
                flight.emit(Restart())

    async def _lead(self, board: SharedFlights, key: str, token: str, flight: _Flight, produce: Produce) -> None:
        flight.led = True
        replica = asyncio.create_task(self._replicate(board, key, token, flight, len(flight.events)))
        try:
            await _produced(flight, produce)
        finally:
            if flight.abandoned or not flight.ended:  # the next leader can take over as soon as the lease is released
                replica.cancel()
            await asyncio.gather(replica, return_exceptions=True)
            with suppress(CacheUnavailable):
                await board.release(key, token)

    async def _replicate(self, board: SharedFlights, key: str, token: str, flight: _Flight, sent: int) -> None:
        """Publish what is emitted and renew the lease until the flight ends. Sleeps while there is nothing to do."""
        loop = asyncio.get_running_loop()
        renewal, pause = loop.time() + self._lease / 3, _MIRROR_SECONDS
        while True:
            ended, news = flight.ended, flight.events[sent:]
            try:
                if news:
                    await board.publish(key, token, [EVENT.dump_json(event) for event in news], _KEPT_SECONDS)
                    sent += len(news)
                if not ended and loop.time() >= renewal:
                    await board.renew(key, token, self._lease)
                    renewal = loop.time() + self._lease / 3
            except CacheUnavailable as error:  # other processes will produce the answer themselves
                _log.warning("cannot share the answer with other processes: %s", error)
                return
            if ended:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout_at(renewal):
                    await flight.more_than(sent)
            if not flight.ended and len(flight.events) > sent:  # wait a little to publish more events at once
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await flight.over.wait()
                pause = min(1.5 * pause, _MIRROR_AT_MOST)

    async def _follow(self, board: SharedFlights, key: str, leader: str, flight: _Flight) -> None:
        """Emit what the leader publishes until the flight ends or its lease is lost."""
        seen = 0
        try:
            while True:
                alive = await board.leader(key) == leader  # checked first: a leader publishes, then releases its lease
                for data in await board.events(key, leader, seen):
                    seen += 1
                    flight.emit(EVENT.validate_json(data))
                if flight.ended or not alive:
                    return
                await asyncio.sleep(_LOOK_SECONDS)
        except (CacheUnavailable, ValidationError) as error:
            _log.warning("cannot follow another process's answer: %s", type(error).__name__)
            await asyncio.sleep(_LOOK_SECONDS)


async def _produced(flight: _Flight, produce: Produce) -> None:
    """Produce the answer; an unexpected error ends the flight for all followers."""
    try:
        await produce(flight.emit)
    except Exception as error:  # noqa: BLE001
        # The message may contain the question.
        frames = "".join(traceback.format_tb(error.__traceback__))
        _log.error("producing an answer failed unexpectedly: %s\n%s", type(error).__name__, frames)
        if not flight.ended:
            flight.emit(Failed(error=type(error).__name__, message="the answer failed unexpectedly; see the log"))
