"""Copies of a shared store's entries: how old they may be, what ends them, and how many are kept."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from rag_serving.cache.entries import CachedAnswer, Entry
from rag_serving.cache.local_copies import LocalCopies
from rag_serving.cache.memory_store import MemoryStore
from rag_serving.errors import CacheUnavailable
from rag_serving.results import Answer

VECTOR = np.array([1.0, 0.0], dtype=np.float32)
NOW = 1_000.0


def make_entry(text: str = "T", *, expires_at: float = 9e9) -> Entry:
    answer = Answer(question="Q", text=text, citations=(), kind="extract", model=None)
    return Entry(
        tenant="t", question="Q", answer=answer, digests={}, evidence=(), created_at=1.0, expires_at=expires_at
    )


class SharedStore(MemoryStore):
    """A store that counts what it is asked; lookups wait for `gate`, and fail while `broken`."""

    def __init__(self) -> None:
        super().__init__(100, lambda: NOW)
        self.asked = 0
        self.uses: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False

    async def get(self, tag: str, key: str) -> Entry | None:
        found = await super().get(tag, key)  # as of now; the reply comes later
        await self._reply()
        return found

    async def nearest(self, tag: str, vector: npt.NDArray[np.float32]) -> list[CachedAnswer]:
        found = await super().nearest(tag, vector)
        await self._reply()
        return found

    async def used(self, tag: str, key: str) -> None:
        self.uses[key] += 1

    async def _reply(self) -> None:
        self.asked += 1
        await self.gate.wait()
        if self.broken:
            raise CacheUnavailable("Redis does not respond")


class World:
    """Copies of a shared store, on clocks that stand still."""

    def __init__(self, *, seconds: float = 2.0, most_copies: int = 10, most_bytes: int = 10**6) -> None:
        self.now = NOW
        self.timer = 0.0
        self.shared = SharedStore()
        self.copies = LocalCopies(
            self.shared,
            seconds=seconds,
            most_copies=most_copies,
            most_bytes=most_bytes,
            clock=lambda: self.now,
            timer=lambda: self.timer,
        )

    async def put(self, key: str, entry: Entry) -> None:
        """Store an entry from another process."""
        await self.shared.put("tag", key, VECTOR, entry)

    async def text(self, key: str = "a") -> str | None:
        entry = await self.copies.get("tag", key)
        return None if entry is None else entry.answer.text

    async def nearest(self) -> list[str]:
        return [found.entry.answer.text for found in await self.copies.nearest("tag", VECTOR)]


def test_an_entry_is_asked_for_again_only_after_the_copys_seconds() -> None:
    async def go() -> None:
        world = World()
        await world.put("a", make_entry("old"))
        assert [await world.text(), await world.nearest()] == ["old", ["old"]]
        await world.put("a", make_entry("new"))
        world.timer = 1.9
        assert [await world.text(), await world.nearest()] == ["old", ["old"]]
        assert world.shared.asked == 2
        world.timer = 2.0
        assert [await world.text(), await world.nearest()] == ["new", ["new"]]

    asyncio.run(go())


def test_concurrent_lookups_of_one_entry_share_a_request_even_if_the_first_caller_leaves() -> None:
    async def go() -> None:
        world = World()
        await world.put("a", make_entry())
        world.shared.gate.clear()
        callers = [asyncio.create_task(world.text()) for _ in range(50)]
        await asyncio.sleep(0)
        callers[0].cancel()
        await asyncio.sleep(0)
        world.shared.gate.set()
        assert await asyncio.gather(*callers[1:]) == ["T"] * 49
        assert world.shared.asked == 1

    asyncio.run(go())


@pytest.mark.parametrize("change", ["put", "move", "drop"])
def test_a_change_by_this_process_takes_effect_at_once(change: str) -> None:
    async def go() -> None:
        world = World()
        await world.put("a", make_entry("old"))
        await world.put("b", make_entry("other"))
        await world.text()
        await world.text("b")
        await world.nearest()
        if change == "drop":
            assert await world.copies.drop("tag", "a")
            assert await world.text() is None
            assert await world.nearest() == ["other"]
            return
        if change == "put":
            await world.copies.put("tag", "a", VECTOR, make_entry("new"))
        else:
            await world.copies.move("tag", "a", make_entry("new"))
        assert await world.text() == "new"
        assert sorted(await world.nearest()) == ["new", "other"]
        asked = world.shared.asked
        assert await world.text("b") == "other"
        assert world.shared.asked == asked

    asyncio.run(go())


def test_a_reply_from_before_a_change_is_not_kept() -> None:
    async def go() -> None:
        world = World()
        await world.put("a", make_entry())
        world.shared.gate.clear()
        before = asyncio.create_task(world.text())
        await asyncio.sleep(0.001)
        assert world.shared.asked == 1
        await world.copies.drop("tag", "a")
        world.shared.gate.set()
        assert await before == "T"
        assert await world.text() is None

    asyncio.run(go())


def test_a_copy_is_not_served_after_the_entry_has_expired() -> None:
    async def go() -> None:
        world = World()
        await world.put("a", make_entry(expires_at=NOW + 1))
        await world.text()
        world.now += 1
        await world.text()
        assert world.shared.asked == 2

    asyncio.run(go())


def test_that_nothing_was_found_is_asked_again() -> None:
    async def go() -> None:
        world = World()
        assert [await world.text(), await world.nearest()] == [None, []]
        await world.put("a", make_entry())
        assert [await world.text(), await world.nearest()] == ["T", ["T"]]

    asyncio.run(go())


def test_an_unavailable_store_is_answered_from_copies_that_are_young_enough() -> None:
    async def go() -> None:
        world = World()
        await world.put("a", make_entry())
        await world.text()
        world.shared.broken = True
        world.timer = 1.9
        assert await world.text() == "T"
        world.timer = 2.0
        with pytest.raises(CacheUnavailable):
            await world.text()

    asyncio.run(go())


def test_every_use_of_a_copy_is_counted() -> None:
    async def go() -> None:
        world = World()
        await world.put("a", make_entry())
        await asyncio.gather(*(world.text() for _ in range(10)))
        await world.text()
        assert world.shared.uses == {"a": 11}

    asyncio.run(go())


def test_the_least_recently_used_copy_is_dropped_beyond_the_number_or_the_bytes() -> None:
    async def go(world: World) -> None:
        for key in "abc":
            await world.put(key, make_entry("x" * 1_000))
        for key in "abac":
            await world.text(key)
        asked = world.shared.asked
        await world.text("a")
        await world.text("c")
        assert world.shared.asked == asked
        await world.text("b")
        assert world.shared.asked == asked + 1

    for limits in ({"most_copies": 2}, {"most_bytes": 3_000}):
        asyncio.run(go(World(**limits)))
