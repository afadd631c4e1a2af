"""Single flight: what many ask at the same time is made once, and all of them follow it as it is made.

Within a process the askers share one task. Between processes a `SharedFlights` (Redis) holds a lease for whoever leads,
and what it has written so far; a leader that dies is replaced when its lease ends.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, runtime_checkable

from pydantic import ValidationError

from rag_serving.errors import CacheUnavailable
from rag_serving.events import EVENT, Delta, Done, Event, Failed, Restart

_log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
"""How long a leader that gives no sign of life is followed: a busy one may need seconds for the next one."""
_KEPT_SECONDS = 60.0
_MIRROR_SECONDS, _MIRROR_AT_MOST = 0.05, 0.25
"""Between two writings of what was emitted: the first words are shown soon, the later ones in fewer writings."""
_LOOK_SECONDS = 0.03

Emit = Callable[[Event], None]
Produce = Callable[[Emit], Awaitable[None]]
"""Makes an answer: emits its events, the last one `Done` or `Failed`."""


@runtime_checkable
class SharedFlights(Protocol):
    """Where processes see each other's flights. Methods raise `CacheUnavailable`."""

    async def acquire(self, flight: str, token: str, seconds: float) -> str | None: ...
    async def leader(self, flight: str) -> str | None: ...
    async def renew(self, flight: str, token: str, seconds: float) -> bool: ...
    async def publish(self, flight: str, token: str, events: Sequence[bytes], seconds: float) -> None: ...
    async def events(self, flight: str, token: str, after: int) -> list[bytes]: ...
    async def release(self, flight: str, token: str) -> None: ...


class _Flight:
    """What was emitted so far, and who waits for more."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = False
        self.led = False
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
        """Wait until more events than that were emitted."""
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

    def __init__(self, board: SharedFlights | None = None, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._board = board
        self._lease = lease_seconds
        self._flying: dict[str, tuple[_Flight, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flying)

    async def join(self, key: str, produce: Produce) -> AsyncGenerator[tuple[Event, bool]]:
        """The events of that flight from its first, each with whether it was made for this caller first of all.

        What was begun goes on when its askers leave: others follow it, and its answer is worth keeping.
        """
        flight, before = self._flying.get(key, (None, None))
        began = flight is None or flight.ended  # what has its answer is only being put away
        if flight is None or flight.ended:
            flight = _Flight()
            task = asyncio.create_task(self._fly(key, flight, produce, before))
            self._flying[key] = flight, task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        async for event in flight.follow():
            yield event, began and flight.led

    async def close(self) -> None:
        """End what is under way; whoever waits gets an error."""
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
                flight.emit(Failed(error="RagError", message="making the answer was cut off; ask again"))
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
            if not flight.ended:  # cancelled: the next one takes over at once
                replica.cancel()
            await asyncio.gather(replica, return_exceptions=True)
            with suppress(CacheUnavailable):
                await board.release(key, token)

    async def _replicate(self, board: SharedFlights, key: str, token: str, flight: _Flight, sent: int) -> None:
        """Write down what is emitted, and stay the leader meanwhile. Sleeps while there is nothing to write."""
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
            except CacheUnavailable as error:  # the others will make theirs themselves
                _log.warning("cannot show other processes what is being answered: %s", error)
                return
            if ended:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout_at(renewal):
                    await flight.more_than(sent)
            if not flight.ended and len(flight.events) > sent:  # what follows soon goes with it
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await flight.over.wait()
                pause = min(1.5 * pause, _MIRROR_AT_MOST)

    async def _follow(self, board: SharedFlights, key: str, leader: str, flight: _Flight) -> None:
        """Emit what the leader writes until it ends, or is the leader no more."""
        seen = 0
        try:
            while True:
                alive = await board.leader(key) == leader  # asked first: the last events are written before it ends
                for data in await board.events(key, leader, seen):
                    seen += 1
                    flight.emit(EVENT.validate_json(data))
                if flight.ended or not alive:
                    return
                await asyncio.sleep(_LOOK_SECONDS)
        except (CacheUnavailable, ValidationError) as error:
            _log.warning("cannot follow what another process answers: %s", type(error).__name__)
            await asyncio.sleep(_LOOK_SECONDS)


async def _produced(flight: _Flight, produce: Produce) -> None:
    """Have it made; what nobody foresaw ends it as an error for all who follow, too."""
    try:
        await produce(flight.emit)
    except Exception as error:  # noqa: BLE001
        _log.exception("making an answer failed")
        if not flight.ended:
            flight.emit(Failed(error=type(error).__name__, message="the answer failed unexpectedly; see the log"))
