"""Passages and an embedder for tests of answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from rag_serving.lake.embedders.base import EmbedderIdentity
from rag_serving.results import Hit

IDENTITY = EmbedderIdentity(
    format=1,
    model="fake",
    weights_sha256="0" * 64,
    dimensions=8,
    window=64,
    pooling="mean",
    normalized=True,
    inputs=("input_ids",),
    files={},
    self_test=(1.0,),
)


class FakeEmbedder:
    """A text is closer to the question the more of the `near` words it contains."""

    identity = IDENTITY

    def __init__(self, *near: str) -> None:
        self._near = near

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        angles = [
            np.pi / 2 * (1 - sum(word in text for word in self._near) / max(len(self._near), 1)) for text in texts
        ]
        return np.array([[np.cos(angle), np.sin(angle)] for angle in angles], dtype=np.float32)

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        return np.array([1.0, 0.0], dtype=np.float32)


def hit(number: int, text: str, *, title: str = "Travel", heading_path: tuple[str, ...] = ()) -> Hit:
    return Hit(
        source=f"s3://docs/oslo/finance/{number}.md",
        title=title,
        heading_path=heading_path,
        page=None,
        start=10,
        end=10 + len(text),
        shard="oslo/finance",
        score=0.5,
        chunk_id=f"chunk-{number}",
        text=text,
        rank=number,
        fused=0.03,
        path=f"{number}.md",
        doc_id=f"document-{number}",
        type="text/markdown",
        modified_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


HITS = [
    hit(1, "Meals are paid per day. The per-diem in Oslo is NOK 780 per day."),
    hit(2, "Hotels are booked by the travel desk. A hotel in Lisbon may cost EUR 175 per night."),
    hit(3, "Trains are preferred to planes. Tickets are bought one week ahead."),
]
