"""The client of a service: compared with a client of the same lake, and against misbehaving services."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rag_serving import Answer, AsyncRagClient, Hits, RagClient, RemoteRagClient, ShardInfo, errors
from rag_serving.clients.base import BaseRagClient
from rag_serving.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotAllowed,
    NotOffered,
    RagError,
    ServiceUnavailable,
    SettingsError,
    TooManyRequests,
    UnexpectedReply,
    UnknownScope,
)
from rag_serving.events import Delta, Done, Event, Failed, Sources
from rag_serving.http.api_keys import create_key
from rag_serving.http.documents.presentation import Presentation
from rag_serving.settings import ServingSettings
from tests.fake_llm import StandIn
from tests.serving_process import Service, service_environment, serving

QUESTION = "How many weeks of parental leave are on full pay?"
KEY = "rag_0123abcd_" + "correct-horse" * 3 + "xxxx"
ANSWER = Answer(question=QUESTION, text="46 weeks [1].", citations=(), kind="generated", model="m", entry="a:b")
DONE = Done(answer=ANSWER)


# Compared with the client of the lake.


@pytest.fixture(scope="module")
def key(keys_file: Path) -> str:
    return create_key(keys_file, "everything", requests_per_minute=10_000)[1]


@pytest.fixture(scope="module")
def narrow(keys_file: Path) -> str:
    return create_key(keys_file, "Oslo alone", tenant="oslo", shards=["oslo/*"])[1]


@pytest.fixture(scope="module")
def slow(keys_file: Path) -> str:
    return create_key(keys_file, "slow", requests_per_minute=2)[1]


@pytest.fixture(scope="module")
def service(
    sample_lake: str,
    stand_in: StandIn,
    keys_file: Path,
    key: str,
    narrow: str,
    slow: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    assert len({key, narrow, slow}) == 3  # all are in the file
    stand_in.words = ("46 weeks", " [1].")
    environment = service_environment(sample_lake, stand_in, keys_file)
    with serving(tmp_path_factory.mktemp("service"), environment) as running:
        yield running


@pytest.fixture(scope="module")
def remote(service: Service, key: str) -> Iterator[RagClient]:
    with RagClient(base_url=service.url, key=key) as client:
        yield client


@pytest.fixture(scope="module")
def local(sample_lake: str, stand_in: StandIn) -> Iterator[RagClient]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stand_in.environment.items():
            patch.setenv(name, value)
        settings = ServingSettings.model_validate({"lake_uri": sample_lake, "llm_model": "openai/stand-in"})
        with RagClient(lambda: AsyncRagClient(settings)) as client:
            yield client


def essence(answer: Answer) -> dict[str, Any]:
    """Return the parts of an answer that do not depend on the process or the time."""
    return answer.model_dump(exclude={"timings", "entry"})


def shown(service: Service, event: Event) -> Event:
    """Return an event of the lake as the service shows it: without a path of the server, and with a link."""
    return Presentation(service.url).event(event)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"regions": ["oslo"], "departments": ("people",), "k": 3},
        {"mode": "text", "join_neighbours": True, "k": 20},
        {"modified_from": date(2020, 1, 1), "modified_before": datetime(2100, 1, 1, tzinfo=UTC)},
        {"path_prefix": "/leave", "regions": ["oslo", "lisbon"]},
    ],
    ids=str,
)
def test_a_search_of_the_service_returns_the_hits_of_the_lake(
    local: RagClient, remote: RagClient, service: Service, arguments: dict[str, Any]
) -> None:
    near, far = local.search(QUESTION, **arguments), remote.search(QUESTION, **arguments)
    assert isinstance(far, Hits)
    assert list(far) == list(map(Presentation(service.url).place, near))
    assert far.degraded == near.degraded
    assert set(far.timings) == set(near.timings)


@pytest.mark.filterwarnings("ignore")  # from litellm
def test_the_service_returns_the_answers_of_the_lake_on_a_miss_and_a_hit(
    local: RagClient, remote: RagClient, service: Service
) -> None:
    def essence_shown(answer: Answer) -> dict[str, Any]:
        done = shown(service, Done(answer=answer))
        assert isinstance(done, Done)
        return essence(done.answer)

    for state in ("miss", "exact"):
        near, far = (client.ask(QUESTION, regions=["oslo"], k=4) for client in (local, remote))
        assert far.cache == state
        assert essence(far) == essence_shown(near)
        assert far.entry is not None
        assert set(far.timings) == set(near.timings)
    history = [{"question": "Is there parental leave in Oslo?", "answer": "Yes."}]
    near, far = (client.ask("How long?", regions=["oslo"], history=history) for client in (local, remote))
    assert essence(far) == essence_shown(near)


@pytest.mark.filterwarnings("ignore")  # from litellm
def test_the_service_streams_the_events_of_the_lake_to_sync_and_async_callers(
    local: RagClient, remote: RagClient, service: Service, key: str
) -> None:
    question = f"{QUESTION} Say it piece by piece."

    async def asked() -> list[Event]:
        async with RemoteRagClient(service.url, key) as client:
            return [event async for event in client.stream(question, regions=["oslo"])]

    for types in (["sources", "delta", "delta", "citations", "done"], ["sources", "delta", "citations", "done"]):
        near = [shown(service, event) for event in local.stream(question, regions=["oslo"])]
        far = list(remote.stream(question, regions=["oslo"]))
        assert [event.type for event in far] == types
        assert far[:-1] == near[:-1]
        assert isinstance(near[-1], Done)
        assert isinstance(far[-1], Done)
        assert essence(far[-1].answer) == essence(near[-1].answer)
    assert [event.type for event in asyncio.run(asked())] == types


@pytest.mark.filterwarnings("ignore")  # from litellm
def test_the_service_returns_the_shards_health_and_feedback_of_the_lake(local: RagClient, remote: RagClient) -> None:
    assert remote.shards() == local.shards()
    assert isinstance(remote.shards()[0], ShardInfo)
    assert remote.health() == local.health()
    for client in (local, remote):
        answer = client.ask("What is the travel per-diem?", regions=["oslo"])
        dropped = [client.feedback(answer, correct=correct) for correct in (True, False, False)]
        assert dropped == [False, True, False]


@pytest.mark.parametrize(
    ("question", "arguments"),
    [
        ("", {}),
        ("x" * 4_001, {}),
        (7, {}),
        (QUESTION, {"k": 0}),
        (QUESTION, {"k": 101}),
        (QUESTION, {"regions": []}),
        (QUESTION, {"regions": "oslo"}),
        (QUESTION, {"regions": ["../.."]}),
        (QUESTION, {"departments": ["x" * 65]}),
        (QUESTION, {"regions": ["olso"]}),
        (QUESTION, {"regions": ["oslo"], "departments": ["nothing"]}),
        (QUESTION, {"mode": "guess"}),
        (QUESTION, {"path_prefix": "x" * 2_000}),
        (QUESTION, {"modified_from": "yesterday"}),
        (QUESTION, {"history": [{"question": "x"}]}),
        (QUESTION, {"history": [{"question": "x", "answer": "y" * 200_001}]}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_arguments_raise_the_same_error_with_a_service_as_with_a_lake(
    local: RagClient, remote: RagClient, question: Any, arguments: dict[str, Any]
) -> None:
    def tried(method: Callable[..., Any]) -> tuple[type[RagError], str]:
        try:
            made = method(question, **arguments)
            next(made)  # a stream raises on its first event
        except RagError as error:
            return type(error), str(error)
        raise AssertionError("nothing was raised")

    for name in ("search", "ask", "stream"):
        if set(arguments) <= set(inspect.signature(getattr(BaseRagClient, name)).parameters):
            assert tried(getattr(remote, name)) == tried(getattr(local, name))


def test_the_key_and_not_an_argument_determines_tenant_and_scope(
    service: Service, remote: RagClient, narrow: str
) -> None:
    answer = remote.ask(QUESTION)
    calls: list[Callable[..., Any]] = [
        lambda **more: remote.ask(QUESTION, **more),
        lambda **more: next(remote.stream(QUESTION, **more)),
        lambda **more: remote.search(QUESTION, **more),
        lambda **more: remote.shards(**more),
        lambda **more: remote.feedback(answer, correct=True, **more),
    ]
    for arguments, named in (({"tenant": "other"}, calls[:2] + calls[4:]), ({"within": ["*/*"]}, calls[:4])):
        for call in named:
            with pytest.raises(InvalidArgument, match="the API key of a service determines"):
                call(**arguments)
    with RagClient(base_url=service.url, key=narrow) as client:
        assert {shard.region for shard in client.shards()} == {"oslo"}
        assert {hit.shard.partition("/")[0] for hit in client.search(QUESTION)} == {"oslo"}
        with pytest.raises(UnknownScope):
            client.ask(QUESTION, regions=["lisbon"])
        with pytest.raises(InvalidArgument, match="another tenant"):
            client.feedback(answer, correct=False)


def test_methods_that_only_a_lake_client_has_raise_not_offered(remote: RagClient) -> None:
    for call in (remote.notes, remote.warm, remote.stats):
        with pytest.raises(NotOffered, match=call.__name__):
            call()


@pytest.mark.parametrize("wrong", [None, KEY])
def test_a_missing_or_unknown_key_is_not_allowed(service: Service, wrong: str | None) -> None:
    with RagClient(base_url=service.url, key=wrong) as client:
        for call in (client.shards, lambda: client.ask(QUESTION), lambda: next(client.stream(QUESTION))):
            with pytest.raises(
                NotAllowed, match="requires an API key" if wrong is None else "rejects the API key"
            ) as no:
                call()
            assert "RAG_SERVICE_KEY" in str(no.value)
            assert "Authorization" not in str(no.value)


def test_a_url_with_the_path_of_a_route_is_named_in_the_error(service: Service, key: str) -> None:
    misplaced = pytest.raises(UnexpectedReply, match=r"RAG_SERVICE_URL .* must not end with a path such as /v1")
    with RagClient(base_url=f"{service.url}/v1", key=key) as client, misplaced:
        client.ask(QUESTION)


def test_requests_over_the_keys_rate_limit_are_rejected_with_retry_after(service: Service, slow: str) -> None:
    with RagClient(lambda: RemoteRagClient(service.url, slow, deadline=2)) as client:
        assert client.shards() == client.shards()
        with pytest.raises(TooManyRequests, match="2 requests per minute") as caught:
            client.shards()
        assert caught.value.retry_after is not None
        assert 2 <= caught.value.retry_after <= 60


def test_threads_share_a_client_of_a_service(remote: RagClient) -> None:
    def ask(number: int) -> tuple[str, int]:
        streamed = list(remote.stream(f"{QUESTION} Number {number}.", regions=["oslo"]))[-1]
        assert isinstance(streamed, Done)
        return streamed.answer.question, len(remote.search(QUESTION, k=1 + number % 5))

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(ask, range(24)))
    assert got == [(f"{QUESTION} Number {number}.", 1 + number % 5) for number in range(24)]


def test_the_command_line_uses_the_service_named_in_the_environment(service: Service, key: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAG_")}
        variables = {"RAG_SERVICE_URL": service.url, "RAG_SERVICE_KEY": key, "RAG_LAKE_URI": "/no/such/lake"}
        command = [sys.executable, "-m", "rag_serving.cli", *arguments]
        return subprocess.run(command, env={**inherited, **variables}, capture_output=True, text=True, check=False)

    assert "46 weeks [1]." in run("ask", QUESTION, "--region", "oslo").stdout
    assert len(run("search", QUESTION, "-k", "2").stdout.splitlines()) == 4
    assert len(run("shards").stdout.splitlines()) == 11
    refused = run("notes")
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: NotOffered: ")


# Services that misbehave.


@dataclass
class Misbehaving:
    """A server that answers with each of `replies` in turn, then repeats the last one; it records the requests."""

    url: str = ""
    replies: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def client(self, **options: Any) -> RagClient:
        return RagClient(lambda: RemoteRagClient(self.url, KEY, **options))


@pytest.fixture
def misbehaving() -> Iterator[Misbehaving]:
    state = Misbehaving()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            state.requests.append((self.path, json.loads(body) if body else None))
            state.headers.append(self.headers)
            self.close_connection = True
            (state.replies.pop(0) if len(state.replies) > 1 else state.replies[0])(self)

        do_GET = do_POST  # noqa: N815 - the base class defines the name

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class defines the name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        state.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


Reply = Callable[[BaseHTTPRequestHandler], None]


def whole(status: int, body: bytes, kind: str = "application/json", **headers: str) -> Reply:
    """Return a reply with this body."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def refusal(status: int, kind: str, message: str = "in words", **headers: str) -> Reply:
    return whole(status, json.dumps({"error": {"type": kind, "message": message}}).encode(), **headers)


def events(*sent: Event, cut: bool = False, then: bytes = b"") -> Reply:
    """Return a stream of these events; with `cut`, it breaks off before its end."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (*(f"event: {one.type}\ndata: {one.model_dump_json()}\n\n".encode() for one in sent), then):
            if part:
                handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        if not cut:
            handler.wfile.write(b"0\r\n\r\n")

    return send


def raw(data: bytes) -> Reply:
    """Return a reply of raw bytes."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data)

    return send


def endless(kind: str, piece: bytes) -> Reply:
    """Return a reply that never ends."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(piece)
        except OSError:
            pass

    return send


GOOD = whole(200, ANSWER.model_dump_json().encode())
LOST = raw(b"")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (whole(200, b"<html>Welcome</html>", "text/html"), UnexpectedReply),
        (whole(200, b'{"answer": 42}'), UnexpectedReply),
        (whole(200, b"[" * 100_000), UnexpectedReply),
        (whole(200, b'"\xff\xfe"'), UnexpectedReply),
        (whole(200, gzip.compress(ANSWER.model_dump_json().encode()), Content_Encoding="gzip"), UnexpectedReply),
        (whole(204, b""), UnexpectedReply),
        (whole(302, b"", Location="http://127.0.0.1:1/"), UnexpectedReply),
        (whole(404, b"<html>nginx</html>", "text/html"), UnexpectedReply),
        (refusal(404, "NotFound"), UnexpectedReply),
        (whole(500, b"Internal Server Error", "text/plain"), ServiceUnavailable),
        (whole(502, b"<html>Bad Gateway</html>", "text/html"), ServiceUnavailable),
        (whole(503, b"", Retry_After="soon"), ServiceUnavailable),
        (refusal(500, "SystemExit"), ServiceUnavailable),
        (refusal(422, "InvalidRequest"), InvalidArgument),
        (refusal(413, "TooLarge"), InvalidArgument),
        (refusal(504, "DeadlineExceeded"), DeadlineExceeded),
        (refusal(503, "EmbedderUnavailable"), errors.EmbedderUnavailable),
        (refusal(401, "NotAllowed"), NotAllowed),
        (endless("application/json", b" " * 65_536), UnexpectedReply),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("method", ["ask", "stream"])
def test_any_other_reply_is_a_named_error_and_is_not_retried(
    misbehaving: Misbehaving, reply: Reply, expected: type[RagError], method: str
) -> None:
    misbehaving.replies = [reply]
    with misbehaving.client() as client, pytest.raises(RagError) as caught:
        client.ask(QUESTION) if method == "ask" else next(client.stream(QUESTION))
    assert caught.type is expected
    assert len(str(caught.value)) < 300
    assert expected in (UnexpectedReply, ServiceUnavailable, NotAllowed) or str(caught.value) == "in words"
    assert len(misbehaving.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        events(),
        events(then=b": nothing to tell\n\nevent: pigeon\ndata: {}\n\n"),
        events(then=b"event: delta\ndata: pigeon\n\n"),
        events(then=b"event: delta\ndata: \xff\xfe\n\n"),
        endless("text/event-stream", b"data: " + b"x" * 65_536),
        endless("text/event-stream", b"event: pigeon\ndata: " + b"x" * 65_536 + b"\n\n"),
    ],
    ids=["empty", "unknown event", "not JSON", "not UTF-8", "endless event", "endless unknown events"],
)
def test_a_malformed_stream_is_an_unexpected_reply(misbehaving: Misbehaving, reply: Reply) -> None:
    misbehaving.replies = [reply]
    with misbehaving.client() as client, pytest.raises(UnexpectedReply):
        next(client.stream(QUESTION))


@pytest.mark.parametrize("cut", [True, False], ids=["cut off", "ended early"])
def test_a_stream_that_breaks_off_ends_with_a_failure_and_is_not_retried(misbehaving: Misbehaving, cut: bool) -> None:
    given = (Sources(sources=()), Delta(text="46 weeks"))
    misbehaving.replies = [events(*given, cut=cut)]
    with misbehaving.client() as client:
        received = list(client.stream(QUESTION))
    assert tuple(received[:-1]) == given
    assert isinstance(received[-1], Failed)
    assert received[-1].error == "ServiceUnavailable"
    assert len(misbehaving.requests) == 1


def test_a_stream_that_breaks_off_before_its_first_event_is_retried(misbehaving: Misbehaving) -> None:
    misbehaving.replies = [LOST, events(cut=True), refusal(503, "Overloaded", Retry_After="0"), events(DONE)]
    with misbehaving.client() as client:
        assert list(client.stream(QUESTION)) == [DONE]
    assert len(misbehaving.requests) == 4


def test_an_unreachable_service_is_retried_and_then_named_in_the_error(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with caplog.at_level(logging.INFO, "rag_serving"), RagClient(lambda: RemoteRagClient(url, tries=3)) as client:
        with pytest.raises(ServiceUnavailable, match=rf"{url} cannot .*check RAG_SERVICE_URL.*\(after 3 attempts\)"):
            client.ask(QUESTION)
        with pytest.raises(ServiceUnavailable, match="cannot be reached"):
            client.health()
    records = [record for record in caplog.records if record.name == "rag_serving.clients.transport"]
    assert {record.levelno for record in records} == {logging.INFO}  # a program without logging shows the error only
    messages = [record.getMessage() for record in records]
    assert [message.partition(":")[0].partition(",")[0] for message in messages] == [
        "attempt 1 failed",
        "attempt 2 failed",
        "giving up",
        "giving up",
    ]


@pytest.mark.parametrize(
    ("kind", "status", "wait"),
    [
        ("Overloaded", 503, "0"),
        ("TooManyRequests", 429, "1"),
        ("LakeUnavailable", 503, format_datetime(datetime.now(UTC), usegmt=True)),
    ],
    # Fixed ids: the instant differs between the processes that collect the tests.
    ids=["immediately", "in a second", "at an instant"],
)
def test_a_request_rejected_with_retry_after_is_retried(
    misbehaving: Misbehaving, kind: str, status: int, wait: str
) -> None:
    misbehaving.replies = [refusal(status, kind, Retry_After=wait)] * 2 + [GOOD]
    with misbehaving.client() as client:
        assert client.ask(QUESTION) == ANSWER
    assert len(misbehaving.requests) == 3


def test_retries_are_limited_by_tries_and_by_the_deadline(misbehaving: Misbehaving) -> None:
    misbehaving.replies = [refusal(503, "Overloaded", Retry_After="0")]
    with misbehaving.client(tries=3) as client, pytest.raises(errors.Overloaded, match="after 3 attempts"):
        client.ask(QUESTION)
    assert len(misbehaving.requests) == 3
    misbehaving.replies = [refusal(429, "TooManyRequests", Retry_After="58")]
    with misbehaving.client(deadline=30) as client, pytest.raises(TooManyRequests) as caught:
        client.ask(QUESTION)  # the retry would come after the deadline, so it does not wait
    assert caught.value.retry_after == 58
    assert len(misbehaving.requests) == 4
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    misbehaving.replies = [refusal(503, "LakeUnavailable", Retry_After=later)]
    with misbehaving.client() as client, pytest.raises(errors.LakeUnavailable) as lake:
        client.ask(QUESTION)
    assert lake.value.retry_after is not None
    assert 3_500 < lake.value.retry_after <= 3_600


def test_a_hanging_service_raises_deadline_exceeded(misbehaving: Misbehaving) -> None:
    def silent(_handler: BaseHTTPRequestHandler) -> None:
        misbehaving.over.wait(60)

    def half(handler: BaseHTTPRequestHandler) -> None:
        events(DONE.model_copy(update={"type": "pigeon"}), cut=True)(handler)
        misbehaving.over.wait(60)

    with misbehaving.client(deadline=0.5) as client:
        for reply in (silent, half):
            misbehaving.replies = [reply]
            with pytest.raises(DeadlineExceeded):
                next(client.stream(QUESTION))
        misbehaving.replies = [silent]
        with pytest.raises(DeadlineExceeded, match=r"within 0\.5 seconds"):
            client.ask(QUESTION)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (LOST, ServiceUnavailable),
        (refusal(503, "CacheUnavailable", Retry_After="0"), errors.CacheUnavailable),
        (refusal(503, "Overloaded", Retry_After="0"), None),
        (refusal(429, "TooManyRequests", Retry_After="0"), None),
    ],
    ids=["lost", "failed midway", "overloaded", "rate limited"],
)
def test_feedback_is_retried_only_if_the_service_cannot_have_counted_it(
    misbehaving: Misbehaving, first: Reply, expected: type[RagError] | None
) -> None:
    misbehaving.replies = [first, whole(200, b'{"dropped": true}')]
    with misbehaving.client() as client:
        if expected is None:
            assert client.feedback(ANSWER, correct=False)
        else:
            with pytest.raises(expected):
                client.feedback(ANSWER, correct=False)
    assert len(misbehaving.requests) == (2 if expected is None else 1)
    path, body = misbehaving.requests[0]
    assert (path, body["correct"], body["answer"]["entry"]) == ("/v1/feedback", False, "a:b")


def test_the_error_for_a_service_that_is_not_ready_names_the_reason(misbehaving: Misbehaving) -> None:
    misbehaving.replies = [whole(503, b'{"ready": false, "problem": "LakeUnavailable"}')]
    with misbehaving.client() as client, pytest.raises(errors.LakeUnavailable, match="is not ready: LakeUnavailable"):
        client.health()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Restore Python's own interrupt handler: Dagster, in earlier tests, may have left one that only records them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_a_blocked_stream(misbehaving: Misbehaving) -> None:
    def silent(handler: BaseHTTPRequestHandler) -> None:
        events(Sources(sources=()), cut=True)(handler)
        misbehaving.over.wait(60)

    misbehaving.replies = [silent]
    with misbehaving.client() as client:
        stream = client.stream(QUESTION)
        assert next(stream).type == "sources"
        interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        interrupt.join()
        misbehaving.replies = [GOOD]
        assert client.ask(QUESTION) == ANSWER


def test_a_streamed_failure_is_passed_on_with_the_key_redacted(misbehaving: Misbehaving) -> None:
    misbehaving.replies = [events(Failed(error="Overloaded", message=f"no room for {KEY}"))]
    with misbehaving.client() as client:
        assert list(client.stream(QUESTION)) == [Failed(error="Overloaded", message="no room for [key]")]


def test_a_base_url_may_have_a_path_and_replies_are_requested_uncompressed(misbehaving: Misbehaving) -> None:
    misbehaving.replies = [GOOD]
    with RagClient(base_url=f"{misbehaving.url}/rag/", key=KEY) as client:
        client.ask(QUESTION)
    assert misbehaving.requests[0][0] == "/rag/v1/ask"
    assert misbehaving.headers[0]["accept-encoding"] == "identity"


def test_an_unknown_argument_is_an_error_that_names_the_method_of_the_sync_client(misbehaving: Misbehaving) -> None:
    with misbehaving.client() as client:
        for method in (client.search, client.stream):
            with pytest.raises(TypeError, match=rf"^RagClient\.{method.__name__}\(\) got an unexpected .*'region'"):
                method(QUESTION, region="oslo")  # type: ignore[call-arg]


# The key.


def test_the_key_appears_in_no_error_log_or_representation(
    misbehaving: Misbehaving, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []

    def echo(handler: BaseHTTPRequestHandler) -> None:
        message = f"\x1b[31mno {handler.headers['Authorization']}"
        refusal(400, "InvalidArgument", message)(handler)

    nonsense = raw(b"HTTP/1.1 nonsense " + KEY.encode() + b"\r\n\r\n")
    with caplog.at_level(logging.DEBUG):
        for reply in (echo, LOST, GOOD, events(DONE), nonsense):
            # The HTTP library's byte traces include a key that the server echoes, so they are off for that reply.
            caplog.set_level(logging.INFO if reply is nonsense else logging.DEBUG, "httpcore2")
            misbehaving.replies = [reply]
            client = RemoteRagClient(misbehaving.url, KEY, tries=2)
            with RagClient(lambda made=client: made) as face:
                said += [repr(client), repr(vars(client)), repr(face), repr(vars(face))]
                try:
                    face.ask(QUESTION)
                except RagError as error:
                    said += [repr(error), str(error)]
    assert any("no Bearer [key]" in text for text in said)
    assert not any("\x1b" in text for text in said)
    said += [record.getMessage() for record in caplog.records]
    assert not [text for text in said if KEY in text or "correct-horse" in text]


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        ("rag.example.com", None, "RAG_SERVICE_URL .*must start with http:// or https://"),
        ("ftp://rag.example.com", None, "RAG_SERVICE_URL .*must start with http:// or https://"),
        ("https://", None, "RAG_SERVICE_URL .*must have a host"),
        ("https://correct-horse:x@rag.example.com", None, "RAG_SERVICE_URL .*no user"),
        ("https://rag.example.com?key=correct-horse", None, "RAG_SERVICE_URL .*query"),
        ("https://rag.example.com:banana", None, "RAG_SERVICE_URL .*is not a URL"),
        ("https://rag.example.com", "correct-horse\nx: y", "RAG_SERVICE_KEY .*is malformed"),
        ("https://rag.example.com", "correct-horse é", "RAG_SERVICE_KEY .*is malformed"),
        ("https://rag.example.com", "correct-horse" * 100, "RAG_SERVICE_KEY .*is malformed"),
    ],
)
def test_an_invalid_base_url_or_key_is_rejected_without_revealing_it(
    monkeypatch: pytest.MonkeyPatch, url: str, key: str | None, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        RagClient(base_url=url, key=key)
    assert "correct-horse" not in str(caught.value)
    monkeypatch.setenv("RAG_SERVICE_URL", url)
    if key is not None:
        monkeypatch.setenv("RAG_SERVICE_KEY", key)
    with pytest.raises(SettingsError, match=message) as malformed:
        RagClient.from_env()
    assert "correct-horse" not in str(malformed.value)
    assert ("RAG_SERVICE_URL" in message) != ("RAG_SERVICE_KEY" in str(malformed.value))


def test_the_environment_decides_between_a_service_and_a_lake_client(
    monkeypatch: pytest.MonkeyPatch, misbehaving: Misbehaving, sample_lake: str
) -> None:
    for name in [name for name in os.environ if name.startswith("RAG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAG_LAKE_URI", sample_lake)
    with RagClient.from_env() as client:
        assert len(client.shards()) == 11
    with pytest.raises(SettingsError, match="RAG_SERVICE_URL"):
        RemoteRagClient.from_env()
    monkeypatch.setenv("RAG_SERVICE_URL", misbehaving.url)
    monkeypatch.setenv("RAG_SERVICE_KEY", KEY)
    misbehaving.replies = [whole(200, b"[]")]
    with RagClient.from_env() as client:
        assert client.shards() == []
    assert misbehaving.requests == [("/v1/shards", None)]


def test_a_client_takes_either_a_base_url_or_a_factory() -> None:
    for arguments in ({}, {"make": list, "base_url": "http://x"}, {"make": list, "key": KEY}):
        with pytest.raises(TypeError, match=r"RagClient\.from_env\(\), or pass base_url and key"):
            RagClient(**arguments)  # type: ignore[arg-type]
