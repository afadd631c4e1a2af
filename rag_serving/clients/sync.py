"""The synchronous client: its methods run an asynchronous client on an event loop in a background thread.

The asynchronous clients are imported on first use.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import suppress
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast, overload

from rag_serving.clients.base import BaseRagClient
from rag_serving.requirements import needs_extra
from rag_serving.settings import ServiceSettings

_T = TypeVar("_T")
_P = ParamSpec("_P")


class RagClient:
    """The synchronous client of a lake or a service; thread-safe.

    `RagClient(base_url="https://…", key="rag_…")` queries a service; `RagClient(make)` wraps the client that `make`
    returns.
    """

    @overload
    def __init__(self, make: Callable[[], BaseRagClient]) -> None: ...
    @overload
    def __init__(self, *, base_url: str, key: str | None = None) -> None: ...
    def __init__(
        self,
        make: Callable[[], BaseRagClient] | None = None,
        *,
        base_url: str | None = None,
        key: str | None = None,
    ) -> None:
        if (make is None) == (base_url is None) or (make is not None and key is not None):
            raise TypeError("use RagClient.from_env(), or pass base_url and key, or a function that returns a client")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rag-client", daemon=True)
        self._thread.start()

        async def build() -> BaseRagClient:
            return make() if make is not None else _of_a_service(base_url or "", key)

        try:
            self._core = self._run(build())
        except BaseException:
            self._stop()
            raise

    @classmethod
    def from_env(cls) -> Self:
        """Create a client of the service at `RAG_SERVICE_URL`, or else of the lake; raises `SettingsError`."""
        return cls(client_of_environment)

    # Signatures and docstrings come from the interface.

    @staticmethod
    def _waited(
        method: Callable[Concatenate[BaseRagClient, _P], Coroutine[Any, Any, _T]],
    ) -> Callable[Concatenate["RagClient", _P], _T]:
        @wraps(method)
        def wait(self: "RagClient", *args: _P.args, **kwargs: _P.kwargs) -> _T:
            bound: Callable[_P, Coroutine[Any, Any, _T]] = getattr(self._core, method.__name__)
            return self._run(_called(lambda: bound(*args, **kwargs)))

        return wait

    @staticmethod
    def _iterated(
        method: Callable[Concatenate[BaseRagClient, _P], AsyncGenerator[_T]],
    ) -> Callable[Concatenate["RagClient", _P], Generator[_T]]:
        @wraps(method)
        def iterate(self: "RagClient", *args: _P.args, **kwargs: _P.kwargs) -> Generator[_T]:
            bound: Callable[_P, AsyncGenerator[_T]] = getattr(self._core, method.__name__)
            return self._each(_called(lambda: bound(*args, **kwargs)))

        return iterate

    search = _waited(BaseRagClient.search)
    search_documents = _waited(BaseRagClient.search_documents)
    ask = _waited(BaseRagClient.ask)
    stream = _iterated(BaseRagClient.stream)
    feedback = _waited(BaseRagClient.feedback)
    document = _waited(BaseRagClient.document)
    shards = _waited(BaseRagClient.shards)
    health = _waited(BaseRagClient.health)
    warm = _waited(BaseRagClient.warm)
    notes = _waited(BaseRagClient.notes)

    def stats(self) -> dict[str, int]:
        """Return counters since the client was created: answers by cache state, refusals by guard, model calls."""
        return self._core.stats()

    def close(self) -> None:
        """Close the client and stop the event loop."""
        if not self._loop.is_closed():
            self._run(self._core.close())
            self._run(self._loop.shutdown_asyncgens())
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            with suppress(RuntimeError):
                future.cancel()
            raise

    def _each(self, items: AsyncGenerator[_T]) -> Generator[_T]:
        nothing = object()

        async def following() -> _T | object:
            return await anext(items, nothing)

        async def end() -> None:
            with suppress(RuntimeError):  # an interrupted step is already closing the generator
                await items.aclose()

        try:
            while (item := self._run(following())) is not nothing:
                yield cast("_T", item)
        finally:
            if not self._loop.is_closed():
                ended = asyncio.run_coroutine_threadsafe(end(), self._loop)
                # The garbage collector may close the generator on the loop's thread, which cannot wait for itself.
                if threading.current_thread() is not self._thread:
                    ended.result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _called(call: Callable[[], _T]) -> _T:
    """Call, and name `RagClient` in an error about the arguments instead of the class that has the method."""
    try:
        return call()
    except TypeError as error:
        raise TypeError(str(error).replace("BaseRagClient.", "RagClient.")) from None


def _of_a_service(base_url: str, key: str | None) -> BaseRagClient:
    from rag_serving.clients.remote import RemoteRagClient

    return RemoteRagClient(base_url, key)


def client_of_environment() -> BaseRagClient:
    """Create a client of the service at `RAG_SERVICE_URL`, or else of the lake; raises `SettingsError`."""
    if ServiceSettings.from_env().url is None:
        with needs_extra("serving", "a client of a lake"):
            from rag_serving.clients.lake import AsyncRagClient
        return AsyncRagClient.from_env()
    from rag_serving.clients.remote import RemoteRagClient

    return RemoteRagClient.from_env()
