"""The cache in a real Redis: what is shared, what is kept separate, and what happens when the server fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import redis
import trustme
from pydantic import SecretStr

from rag_serving.cache.entries import Entry, ReviewItem
from rag_serving.cache.evidence_record import Evidence
from rag_serving.cache.redis_connection import RedisConnection, connect
from rag_serving.cache.redis_store import RedisStore, open_redis
from rag_serving.cache.store import USE_SECONDS
from rag_serving.clients.lake import AsyncRagClient
from rag_serving.clients.sync import RagClient
from rag_serving.errors import CacheUnavailable, SettingsError
from rag_serving.results import Answer
from rag_serving.settings import ServingSettings
from tests.servers import Certificate, redis_server

if TYPE_CHECKING:
    from tests.servers import RedisKind, RedisServer

ASKED = "What was the cause of the Brattholm outage in November 2023?"
SAME = "what was the cause of the Brattholm outage in November 2023"
REWORDED = "What caused the Brattholm outage in November 2023?"
OTHER_YEAR = "What was the cause of the Brattholm outage in November 2022?"
SCOPE = {"regions": ["oslo"], "departments": ["engineering"]}


@contextlib.contextmanager
def open_client(lake: str, url: str, **values: Any) -> Iterator[RagClient]:
    """Open a client without local copies, and with a cache timeout that even a busy machine does not reach."""
    settings = ServingSettings(
        **{
            "lake_uri": lake,
            "redis_url": url,
            "llm_model": None,
            "cache_timeout": 5.0,
            "cache_copy_seconds": 0,
            "cache_prefix": "test",
            **values,
        }
    )
    with RagClient(lambda: AsyncRagClient(settings)) as client:
        yield client


def make_entry(question: str) -> Entry:
    return Entry(
        tenant="t",
        question=question,
        answer=Answer(question=question, text="T", citations=(), kind="extract", model=None),
        digests={},
        evidence=(),
        created_at=1.0,
        expires_at=9e9,
    )


def ask(client: RagClient, question: str, **arguments: Any) -> Answer:
    return client.ask(question, **{**SCOPE, **arguments})


def asked_thrice(client: RagClient) -> list[str]:
    """Return the cache states of a question, an equal one and a paraphrase."""
    return [ask(client, question).cache for question in (ASKED, SAME, REWORDED)]


@pytest.fixture
def server(redis_clean: str) -> Iterator[redis.Redis]:
    """A direct connection to the emptied Redis."""
    with redis.Redis.from_url(redis_clean) as direct:
        yield direct


def entries(server: redis.Redis) -> list[bytes]:
    return sorted(server.scan_iter("{test}:e:*"))


@pytest.mark.parametrize("protocol", ["", "?protocol=2", "?protocol=3"])
def test_an_equal_question_is_an_exact_hit_and_a_paraphrase_a_semantic_hit(
    sample_lake: str, redis_clean: str, protocol: str
) -> None:
    with open_client(sample_lake, redis_clean + protocol) as client:
        first = ask(client, ASKED)
        exact = ask(client, SAME)
        semantic = ask(client, REWORDED)
    assert (first.cache, first.degraded) == ("miss", ())
    assert (exact.cache, exact.question, exact.similarity) == ("exact", SAME, 1.0)
    assert (semantic.cache, semantic.question, semantic.cached_question) == ("semantic", REWORDED, ASKED)
    assert semantic.similarity is not None
    assert 0.98 <= semantic.similarity < 1
    for served in (exact, semantic):
        assert served.degraded == ()
        assert (served.text, served.citations) == (first.text, first.citations)


def test_a_question_about_another_year_is_a_miss(sample_lake: str, redis_clean: str) -> None:
    with open_client(sample_lake, redis_clean) as client:
        ask(client, ASKED)
        answer = ask(client, OTHER_YEAR)
    assert (answer.cache, answer.degraded) == ("miss", ())


def test_an_unreachable_error_bound_leaves_only_hits_above_the_sure_similarity(
    sample_lake: str, redis_clean: str
) -> None:
    with open_client(sample_lake, redis_clean, cache_max_error=1e-9, cache_similarity=0.999) as client:
        ask(client, ASKED)
        refused = ask(client, REWORDED)
    assert refused.cache == "miss"
    assert refused.cache_reason is not None
    assert "refused by similarity" in refused.cache_reason


@contextlib.contextmanager
def commands_counted(server: redis.Redis) -> Iterator[Counter[str]]:
    """Count the commands that the server executes during the block, by name."""

    def calls() -> Counter[str]:
        stats: Any = server.info("commandstats")
        return Counter({name.removeprefix("cmdstat_").lower(): one["calls"] for name, one in stats.items()})

    counted: Counter[str] = Counter()
    before = calls()
    yield counted
    counted.update(calls() - before)


def test_a_hot_question_and_its_paraphrase_cost_one_lookup_each_and_every_use_is_counted(
    sample_lake: str, redis_clean: str, server: redis.Redis
) -> None:
    with open_client(sample_lake, redis_clean, cache_copy_seconds=60) as client:
        ask(client, ASKED)
        assert ask(client, REWORDED).cache == "semantic"
        (key,) = entries(server)
        worth: Any = server.zscore("{test}:usage", key)
        with commands_counted(server) as counted:
            assert [ask(client, ASKED).cache for _ in range(10)] == ["exact"] * 10
            assert [ask(client, REWORDED).cache for _ in range(10)] == ["semantic"] * 10
        assert counted["ft.search"] == 0
        assert counted["hget"] == 1 + 10  # the entry once, and for each paraphrase whether it has an entry of its own
        ask(client, OTHER_YEAR)  # its lookup brings the uses that Redis does not know yet
        assert server.zscore("{test}:usage", key) == worth + 21 * USE_SECONDS


def test_feedback_drops_an_entry_at_once_here_and_after_the_copys_seconds_in_other_processes(
    sample_lake: str, redis_clean: str
) -> None:
    with (
        open_client(sample_lake, redis_clean, cache_copy_seconds=1) as one,
        open_client(sample_lake, redis_clean, cache_copy_seconds=1) as two,
    ):
        ask(one, ASKED)
        answer = ask(two, ASKED)
        assert answer.cache == "exact"
        assert ask(one, ASKED).cache == "exact"
        assert one.feedback(answer, correct=False)
        assert ask(one, ASKED, k=6).cache == "miss"
        deadline = time.monotonic() + 10
        while ask(two, ASKED).cache != "miss":
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_copy_is_not_served_after_a_new_version_was_published(
    sample_lake: str, redis_clean: str, tmp_path: Path
) -> None:
    lake = Path(shutil.copytree(sample_lake, tmp_path / "own-lake"))
    path = lake / "catalog" / "oslo.engineering.json"
    with open_client(str(lake), redis_clean, catalog_refresh=0, cache_copy_seconds=60) as client:
        ask(client, ASKED)
        assert [ask(client, question).cache for question in (ASKED, REWORDED)] == ["exact", "semantic"]
        entry = json.loads(path.read_text())
        entry["current"]["content_digest"] = "0" * len(entry["current"]["content_digest"])
        path.write_text(json.dumps(entry))
        # The passages are the same, so the copies are revalidated by a search, and then moved to the new version.
        assert [ask(client, question).cache for question in (ASKED, ASKED)] == ["revalidated", "exact"]


def test_two_clients_share_the_cache(sample_lake: str, redis_clean: str) -> None:
    with open_client(sample_lake, redis_clean) as one, open_client(sample_lake, redis_clean) as two:
        ask(one, ASKED)
        assert ask(two, SAME).cache == "exact"
        assert ask(two, REWORDED).cache == "semantic"


@pytest.mark.parametrize(
    "other",
    [
        {"departments": None},
        {"departments": ["people"]},
        {"regions": ["lisbon"]},
        {"regions": ["oslo", "lisbon"]},
        {"tenant": "another"},
        {"k": 7},
    ],
    ids=str,
)
def test_another_scope_tenant_or_number_of_passages_does_not_share_answers(
    sample_lake: str, redis_clean: str, other: dict[str, Any]
) -> None:
    with open_client(sample_lake, redis_clean) as client:
        ask(client, ASKED)
        assert ask(client, ASKED, **other).cache == "miss"
        assert ask(client, ASKED).cache == "exact"


def test_another_prefix_does_not_share_answers(sample_lake: str, redis_clean: str) -> None:
    with open_client(sample_lake, redis_clean) as one, open_client(sample_lake, redis_clean, cache_prefix="o") as two:
        ask(one, ASKED)
        assert ask(two, ASKED).cache == "miss"


def test_publishing_equal_contents_keeps_cached_answers(sample_lake: str, redis_clean: str, tmp_path: Path) -> None:
    lake = Path(shutil.copytree(sample_lake, tmp_path / "own-lake"))
    path = lake / "catalog" / "oslo.engineering.json"
    with open_client(str(lake), redis_clean, catalog_refresh=0) as client:
        ask(client, ASKED)
        entry = json.loads(path.read_text())
        entry["current"]["run_id"] = "another-run"
        path.write_text(json.dumps(entry))
        assert ask(client, ASKED).cache == "exact"


def test_entries_expire_in_redis_and_a_hit_does_not_extend_their_ttl(
    sample_lake: str, redis_clean: str, server: redis.Redis
) -> None:
    with open_client(sample_lake, redis_clean, cache_ttl=1000) as client:
        ask(client, ASKED)
        (key,) = entries(server)
        end = server.expiretime(key)
        assert end > 0
        server.expireat(key, end - 500)  # as if half of its TTL had passed
        assert ask(client, SAME).cache == "exact"
        assert ask(client, REWORDED).cache == "semantic"
        assert server.expiretime(key) == end - 500


def test_an_expired_entry_is_a_miss(sample_lake: str, redis_clean: str, server: redis.Redis) -> None:
    with open_client(sample_lake, redis_clean) as client:
        ask(client, ASKED)
        (key,) = entries(server)
        entry = json.loads(server.hget(key, "entry"))
        server.hset(key, "entry", json.dumps({**entry, "expires_at": entry["created_at"] - 1}))
        assert ask(client, ASKED).cache == "miss"


def test_a_full_cache_evicts_the_least_used_entry(sample_lake: str, redis_clean: str, server: redis.Redis) -> None:
    questions = [ASKED, "Who reviews a change?", "How is a release made?"]
    with open_client(sample_lake, redis_clean, cache_entries=2) as client:
        ask(client, questions[0])
        ask(client, questions[1])
        assert ask(client, questions[0]).cache == "exact"
        ask(client, questions[2])
        assert len(entries(server)) == 2
        assert ask(client, questions[0]).cache == "exact"
        assert ask(client, questions[2]).cache == "exact"
        assert ask(client, questions[1]).cache == "miss"


def test_the_cache_works_again_after_a_flush(sample_lake: str, redis_clean: str, server: redis.Redis) -> None:
    with open_client(sample_lake, redis_clean) as client:
        ask(client, ASKED)
        assert ask(client, REWORDED).cache == "semantic"
        server.flushdb()
        lost = ask(client, ASKED)
        assert (lost.cache, lost.degraded) == ("miss", ())
        assert ask(client, ASKED).cache == "exact"
        assert ask(client, REWORDED).cache == "semantic"


def test_without_search_commands_the_exact_tier_still_works(sample_lake: str, plain_redis_url: str) -> None:
    with redis.Redis.from_url(plain_redis_url) as direct:
        direct.flushdb()
    with open_client(sample_lake, plain_redis_url) as client:
        answers = [ask(client, question) for question in (ASKED, SAME, REWORDED)]
    assert [answer.cache for answer in answers] == ["miss", "exact", "miss"]
    assert [answer.degraded for answer in answers] == [(), (), ()]


def test_a_store_reports_whether_its_server_has_search_commands(redis_clean: str, plain_redis_url: str) -> None:
    async def searchable(url: str) -> bool:
        store = open_redis(url, timeout=5, prefix="test")
        await store.nearest("0" * 32, np.ones(4, dtype=np.float32) / 2)
        await store.close()
        return store.searchable

    assert asyncio.run(searchable(redis_clean))
    assert not asyncio.run(searchable(plain_redis_url))


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_an_unreachable_server_is_bypassed_and_the_answer_marked_degraded(sample_lake: str, scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with open_client(sample_lake, f"{scheme}://127.0.0.1:{taken.getsockname()[1]}/0") as client:
            for _ in range(2):
                answer = ask(client, ASKED)
                assert (answer.cache, answer.degraded) == ("bypass", ("cache_unavailable",))
                assert answer.citations
            assert client.search(ASKED).degraded == ()


def test_a_client_shows_that_redis_is_bypassed(sample_lake: str) -> None:
    async def shown(url: str) -> bool:
        settings = ServingSettings(lake_uri=sample_lake, redis_url=SecretStr(url), llm_model=None)
        async with AsyncRagClient(settings) as client:
            assert not client.states()["cache_breaker_open"]
            for _ in range(5):
                with pytest.raises(CacheUnavailable):
                    await client.notes()
            return bool(client.states()["cache_breaker_open"])

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        assert asyncio.run(shown(f"redis://127.0.0.1:{taken.getsockname()[1]}/0"))


@contextlib.contextmanager
def frozen(server: RedisServer) -> Iterator[None]:
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_a_frozen_server_is_bypassed_and_used_again_after_it_recovers(sample_lake: str, server_binaries: Path) -> None:
    with redis_server(server_binaries) as own:

        def make() -> AsyncRagClient:
            store = RedisStore(connect(own.url, purpose="test", timeout=1.0, pause=0.0), prefix="test")
            settings = ServingSettings(lake_uri=sample_lake, redis_url=None, llm_model=None)
            return AsyncRagClient(settings, cache_store=store)

        with RagClient(make) as client:
            assert ask(client, ASKED).cache == "miss"
            with frozen(own):
                answer = ask(client, ASKED)
                assert (answer.cache, answer.degraded) == ("bypass", ("cache_unavailable",))
                assert answer.citations
            other = "How many reviewers does a change to the brake logic need?"
            deadline = time.monotonic() + 30
            while (answer := ask(client, other)).cache == "bypass":  # until a probe succeeds
                assert time.monotonic() < deadline
            # A late reply of the frozen server must not be used for another question.
            assert answer.cache == "miss"
            assert ask(client, ASKED).cache == "exact"


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_the_breaker_opens_after_failures_in_a_row_and_each_change_is_logged_once(
    server_binaries: Path, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    caplog.set_level(logging.INFO)

    async def asked(own: RedisServer) -> None:
        url = own.url.replace("redis://", f"{scheme}://")
        store = RedisStore(connect(url, purpose="test", timeout=0.2, pause=0.05), prefix="test")
        await store.get("tag", "key")
        with frozen(own):
            for _ in range(5):
                assert not store.breaker_open
                with pytest.raises(CacheUnavailable, match="does not respond"):
                    await store.get("tag", "key")
            assert store.breaker_open
            for _ in range(20):
                with pytest.raises(CacheUnavailable, match="bypassing the cache"):
                    await store.nearest("0" * 32, np.ones(4, dtype=np.float32) / 2)
        deadline = time.monotonic() + 30
        while store.breaker_open:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
            with contextlib.suppress(CacheUnavailable):
                await store.get("tag", "key")
        assert await store.get("tag", "key") is None
        await store.close()

    with redis_server(server_binaries, cluster=scheme != "redis") as own:
        asyncio.run(asked(own))
    opened, closed = [record for record in caplog.records if "circuit breaker" in record.message]
    assert (opened.levelname, closed.levelname) == ("WARNING", "INFO")
    assert "opened: Redis (test) failed 5 times in a row, last with TimeoutError" in opened.message
    assert re.search(r"closed: Redis \(test\) responds again after \d+\.\d seconds", closed.message)


def test_a_success_between_failures_keeps_the_breaker_closed(server_binaries: Path) -> None:
    async def asked(own: RedisServer) -> None:
        store = RedisStore(connect(own.url, purpose="test", timeout=0.2, pause=3_600.0), prefix="test")
        for _ in range(2):
            with frozen(own):
                for _ in range(3):
                    with pytest.raises(CacheUnavailable, match="does not respond"):
                        await store.get("tag", "key")
            await store.state()
        assert not store.breaker_open
        await store.close()

    with redis_server(server_binaries) as own:
        asyncio.run(asked(own))


def test_requests_that_wait_for_a_connection_to_a_frozen_server_fail_with_the_first_ones(
    server_binaries: Path,
) -> None:
    async def asked(own: RedisServer) -> None:
        client = redis.asyncio.Redis.from_url(own.url, socket_timeout=None, socket_connect_timeout=None)
        connection = RedisConnection(client, purpose="test", timeout=0.5, connections=8, pause=3_600.0)
        store = RedisStore(connection, prefix="test")
        with frozen(own):
            gets = (store.get("tag", str(number)) for number in range(80))
            errors = await asyncio.gather(*gets, return_exceptions=True)
        assert all(isinstance(error, CacheUnavailable) for error in errors)
        # Four more may begin before the fifth failure opens the breaker.
        assert 8 <= sum("does not respond" in str(error) for error in errors) <= 12
        await store.close()

    with redis_server(server_binaries) as own:
        asyncio.run(asked(own))


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_a_late_event_loop_is_no_failure_of_redis(server_binaries: Path, scheme: str) -> None:
    async def asked(url: str) -> None:
        store = open_redis(url, timeout=0.1, prefix="test")
        entry = make_entry("Q")
        await store.put("0" * 32, "1" * 32, None, entry)
        loop = asyncio.get_running_loop()

        def block() -> None:  # while commands wait for their replies, as a burst of other requests does
            nonlocal blocks
            time.sleep(0.15)
            blocks -= 1
            if blocks:
                loop.call_soon(block)

        blocks = 8
        loop.call_soon(block)
        found = await asyncio.gather(*(store.get("0" * 32, "1" * 32) for _ in range(20)))
        assert found == [entry] * 20
        assert not store.breaker_open
        await store.close()

    with redis_server(server_binaries, cluster=scheme != "redis") as own:
        asyncio.run(asked(own.url.replace("redis://", f"{scheme}://")))


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_a_timed_out_or_cancelled_command_leaves_no_reply_for_the_next_one(server_binaries: Path, scheme: str) -> None:
    async def asked(url: str, own: RedisServer) -> None:
        connection = connect(url, purpose="test", timeout=0.3, pause=3_600.0)
        client = connection.client
        await connection.run(lambda: client.set("late", "old reply"))
        await connection.run(lambda: client.set("next", "right reply"))
        with frozen(own):
            with pytest.raises(CacheUnavailable):
                await connection.run(lambda: client.get("late"))
            cancelled = asyncio.create_task(connection.run(lambda: client.get("late")))
            await asyncio.sleep(0.05)
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
        for _ in range(3):
            assert await connection.run(lambda: client.get("next")) == b"right reply"
        await connection.close()

    with redis_server(server_binaries, cluster=scheme != "redis") as own:
        asyncio.run(asked(own.url.replace("redis://", f"{scheme}://"), own))


@pytest.mark.parametrize(
    ("scheme", "options", "most"), [("redis", "", 64), ("redis", "?max_connections=5", 5), ("redis+cluster", "", 64)]
)
def test_concurrent_requests_share_a_bounded_number_of_connections(
    server_binaries: Path, scheme: str, options: str, most: int
) -> None:
    async def asked(url: str) -> None:
        store = open_redis(url, timeout=5, prefix="test")
        assert await asyncio.gather(*(store.get("tag", str(number)) for number in range(500))) == [None] * 500
        await store.close()

    with redis_server(server_binaries, cluster=scheme != "redis") as own, redis.Redis.from_url(own.url) as direct:
        before = direct.info("stats")["total_connections_received"]  # type: ignore[index]
        asyncio.run(asked(own.url.replace("redis://", f"{scheme}://") + options))
        # A cluster client has a few more to discover the nodes.
        assert most // 2 <= direct.info("stats")["total_connections_received"] - before <= most + 2  # type: ignore[index]


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"question": "x"}', b'{"question": 1, "answer": {"text": []}}']
)
def test_a_corrupt_entry_is_a_miss_and_is_replaced(
    sample_lake: str, redis_clean: str, server: redis.Redis, garbage: bytes
) -> None:
    with open_client(sample_lake, redis_clean) as client:
        ask(client, ASKED)
        (key,) = entries(server)
        server.hset(key, "entry", garbage)
        answer = ask(client, ASKED)
        assert (answer.cache, answer.degraded) == ("miss", ())
        assert ask(client, ASKED).cache == "exact"
        assert ask(client, REWORDED).cache == "semantic"


def test_a_key_of_another_redis_type_is_a_miss_and_is_replaced(
    sample_lake: str, redis_clean: str, server: redis.Redis
) -> None:
    with open_client(sample_lake, redis_clean) as client:
        ask(client, ASKED)
        (key,) = entries(server)
        server.delete(key)
        server.rpush(key, "a list")
        answer = ask(client, ASKED)
        assert (answer.cache, answer.degraded) == ("miss", ())
        assert ask(client, ASKED).cache == "exact"


def test_a_server_out_of_memory_is_bypassed_and_the_answer_marked_without_logging_the_question(
    sample_lake: str, server_binaries: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        redis_server(server_binaries) as own,
        redis.Redis.from_url(own.url) as direct,
        open_client(sample_lake, own.url) as client,
    ):
        direct.config_set("maxmemory", 1)
        answer = ask(client, ASKED)
        assert (answer.cache, answer.degraded) == ("bypass", ("cache_unavailable",))
        assert answer.citations
        assert ": OutOfMemoryError" in caplog.text
        assert not any(word in caplog.text for word in ASKED.split() if len(word) > 4)
        direct.config_set("maxmemory", 0)
        answer = ask(client, ASKED)
        assert (answer.cache, answer.degraded) == ("miss", ())
        assert ask(client, ASKED).cache == "exact"


def test_a_server_is_bypassed_without_its_password_and_used_with_it(sample_lake: str, server_binaries: Path) -> None:
    with redis_server(server_binaries) as own:
        with redis.Redis.from_url(own.url) as direct:
            direct.config_set("requirepass", "correct-horse")
        with open_client(sample_lake, own.url) as client:
            assert ask(client, ASKED).degraded == ("cache_unavailable",)
        with open_client(sample_lake, own.url.replace("redis://", "redis://:correct-horse@")) as client:
            assert ask(client, ASKED).cache == "miss"
            assert ask(client, ASKED).cache == "exact"


def test_a_malformed_url_is_a_settings_error(sample_lake: str) -> None:
    for url in ("redis://:correct-horse@127.0.0.1:banana/0", "127.0.0.1:6379", "redis://127.0.0.1:1/0?no_such=1"):
        with pytest.raises(SettingsError, match="RAG_REDIS_URL") as caught, open_client(sample_lake, url):
            pass
        assert "correct-horse" not in str(caught.value)


@pytest.mark.parametrize("kind", ["stack", "redis-8"])
def test_a_stored_entry_is_read_back_moved_and_dropped(server_binaries: Path, kind: RedisKind) -> None:
    answer = Answer(question="Q “ü” 日本", text="T", citations=(), kind="extract", model=None, degraded=("d",))
    entry = Entry(
        tenant="t",
        question=answer.question,
        answer=answer,
        digests={"a/b": "1"},
        evidence=(Evidence(chunk_id="c", content_hash="h", score=0.5, cited=True),),
        created_at=1.0,
        expires_at=9e9,
    )
    vector = np.array([0.6, 0.8], dtype=np.float32)

    async def stored(url: str) -> None:
        store = RedisStore(connect(url, purpose="test", timeout=5), prefix="test", clock=lambda: 8.9e9)
        await store.put("0" * 32, "1" * 32, vector, entry)
        assert await store.get("0" * 32, "1" * 32) == entry
        (found,) = await store.nearest("0" * 32, np.array([0.8, 0.6], dtype=np.float32))
        assert found.entry == entry
        assert found.similarity == pytest.approx(0.96, abs=1e-5)
        assert await store.nearest("f" * 32, vector) == []
        await store.put("0" * 32, "2" * 32, None, entry)
        assert await store.get("0" * 32, "2" * 32) == entry
        # An entry without a vector is found only by the exact tier.
        assert len(await store.nearest("0" * 32, vector)) == 1
        moved = entry.model_copy(update={"digests": {"a/b": "2"}})
        await store.move("0" * 32, "1" * 32, moved)
        (found,) = await store.nearest("0" * 32, vector)
        assert found.entry == moved == await store.get("0" * 32, "1" * 32)
        assert await store.drop("0" * 32, "1" * 32)
        assert not await store.drop("0" * 32, "1" * 32)
        await store.move("0" * 32, "1" * 32, moved)
        assert await store.get("0" * 32, "1" * 32) is None
        note = ReviewItem(kind="feedback", tenant="t", asked="a", cached="b", similarity=0.9, same=False, at=1.0)
        await store.note(note)
        assert await store.notes() == [note]
        await store.close()

    with redis_server(server_binaries, kind=kind) as own:
        asyncio.run(stored(own.url))


def test_redis_8_serves_semantic_hits_also_after_a_flush(sample_lake: str, server_binaries: Path) -> None:
    with (
        redis_server(server_binaries, kind="redis-8") as own,
        redis.Redis.from_url(own.url) as direct,
        open_client(sample_lake, own.url) as client,
    ):
        assert str(direct.info("server")["redis_version"]).startswith("8.")  # type: ignore[index]
        for _ in range(2):
            assert [ask(client, question).cache for question in (ASKED, SAME, REWORDED)] == [
                "miss",
                "exact",
                "semantic",
            ]
            direct.flushdb()
            assert ask(client, OTHER_YEAR).cache == "miss"  # finds the index missing and recreates it


def test_valkey_without_a_search_module_serves_the_exact_tier_and_reports_it(
    sample_lake: str, server_binaries: Path
) -> None:
    async def state(url: str) -> str:
        store = open_redis(url, timeout=5, prefix="test")
        try:
            return await store.state()
        finally:
            await store.close()

    with redis_server(server_binaries, kind="valkey") as own, open_client(sample_lake, own.url) as client:
        answers = [ask(client, question) for question in (ASKED, SAME, REWORDED)]
        assert [answer.cache for answer in answers] == ["miss", "exact", "miss"]
        assert [answer.degraded for answer in answers] == [(), (), ()]
        assert asyncio.run(state(own.url)) == "exact tier only: the server has no search commands"


@pytest.mark.parametrize("cluster", [False, True])
def test_a_server_behind_tls_is_used_only_with_a_trusted_certificate(
    sample_lake: str, server_binaries: Path, tmp_path: Path, cluster: bool
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate = Certificate(tmp_path / "certificate.pem", tmp_path / "key.pem")
    for number, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(certificate.certificate, append=number > 0)
    issued.private_key_pem.write_to_path(certificate.key)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    with redis_server(server_binaries, tls=certificate, cluster=cluster) as own:
        url = own.url.replace("rediss://", "rediss+cluster://") if cluster else own.url
        with open_client(sample_lake, f"{url}?ssl_ca_certs={tmp_path / 'authority.pem'}") as client:
            assert [ask(client, question).cache for question in (ASKED, SAME, REWORDED)] == [
                "miss",
                "exact",
                "semantic",
            ]
        with open_client(sample_lake, url) as client:
            assert ask(client, ASKED).degraded == ("cache_unavailable",)


@pytest.mark.parametrize("scheme", ["redis+cluster", "redis"])
def test_entries_of_a_cluster_are_stored_and_found_on_one_node(server_binaries: Path, scheme: str) -> None:
    entry = make_entry("Q")
    vector = np.array([0.6, 0.8], dtype=np.float32)

    async def stored(url: str) -> None:
        store = open_redis(url, timeout=5, prefix="test", most_entries=3)
        for number in range(5):
            await store.put("0" * 32, f"{number}" * 32, vector, entry)
        assert await store.get("0" * 32, "4" * 32) == entry
        assert await store.get("0" * 32, "0" * 32) is None
        assert len(await store.nearest("0" * 32, vector)) == 3
        assert await store.acquire("flight", "me", 5) is None
        assert await store.acquire("flight", "you", 5) == "me"
        await store.publish("flight", "me", [b"1", b"2"], 5)
        assert await store.events("flight", "me", 1) == [b"2"]
        await store.release("flight", "you")
        assert await store.leader("flight") == "me"
        await store.release("flight", "me")
        assert await store.leader("flight") is None
        await store.close()

    with redis_server(server_binaries, cluster=scheme != "redis") as own:
        asyncio.run(stored(own.url.replace("redis://", f"{scheme}://")))
