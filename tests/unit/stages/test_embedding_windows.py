"""Embedding windows of texts ahead of the writer: each window gets its own vectors, in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from rag_assets.stages.embeddings import Window, embedded
from rag_serving.lake.embedders.base import EmbedderIdentity


class CountingEmbedder:
    """Return a text's number as its vector, even numbers slower, and record how many calls ran at once."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.most = 0
        self.calls = 0
        self._running = 0
        self._fails_at = fails_at
        self._lock = threading.Lock()

    @property
    def identity(self) -> EmbedderIdentity:
        raise NotImplementedError("not used in these tests")

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        return self.embed_documents([text])[0]

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        with self._lock:
            self.calls += 1
            self._running += 1
            self.most = max(self.most, self._running)
        numbers = [int(text) for text in texts]
        time.sleep(0.02 if numbers[0] % 2 else 0.05)
        with self._lock:
            self._running -= 1
        if self._fails_at in numbers:
            raise ValueError("no vector")
        return np.array([[number] for number in numbers], dtype=np.float32)


def window(number: int) -> Window:
    return Window([f"hash{number}"], [str(number)], 1)


def test_windows_are_returned_in_order_with_their_own_vectors() -> None:
    embedder = CountingEmbedder()
    seen = [(w.hashes[0], v.tolist()) for w, v in embedded(embedder, (window(n) for n in range(9)))]
    assert seen == [(f"hash{n}", [[n]]) for n in range(9)]
    assert embedder.most == 2


def test_windows_are_read_only_as_far_ahead_as_they_are_embedded() -> None:
    read: list[int] = []

    def windows() -> object:
        for number in range(100):
            read.append(number)
            yield window(number)

    results = embedded(CountingEmbedder(), windows())  # pyright: ignore[reportArgumentType]
    next(results)
    assert len(read) <= 3
    results.close()


def test_a_failing_window_raises_and_stops_further_embedding() -> None:
    embedder = CountingEmbedder(fails_at=2)
    results = embedded(embedder, (window(n) for n in range(100)))
    assert [next(results)[0].hashes[0] for _ in range(2)] == ["hash0", "hash1"]
    with pytest.raises(ValueError, match="no vector"):
        next(results)
    assert embedder.calls <= 5
