"""The measures of Chroma's "Evaluating Chunking Strategies for Retrieval" (2024), on spans of characters.

A question has references, the spans of a corpus that answer it. For the chunks retrieved for it:

- Recall is the share of the references that the chunks cover.
- Precision is the share of the chunks' characters that is reference.
- IoU is the number of covered characters divided by all retrieved characters (repeated ones each time) plus the missed
  characters of the references.
- Precision-omega is the precision if exactly the chunks that touch a reference were retrieved: the upper bound that the
  cuts allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of one corpus; `embedded` is the text that the model embeds for it."""

    corpus: str
    start: int
    end: int
    embedded: str

    @property
    def span(self) -> Span:
        return self.start, self.end


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one corpus, and the spans that answer it."""

    text: str
    corpus: str
    references: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one question, each between 0 and 1."""

    recall: float
    precision: float
    omega: float
    iou: float


def score(question: Question, retrieved: Sequence[Chunk], corpus: Iterable[Chunk]) -> Scores:
    """Score the retrieved chunks; `corpus` contains all chunks of the question's corpus."""
    wanted = length(question.references)
    spans = [chunk.span for chunk in retrieved if chunk.corpus == question.corpus]
    covered = length(union(overlaps(spans, question.references)))
    taken = sum(chunk.end - chunk.start for chunk in retrieved)
    missed = uncovered(question.references, spans)
    touching = [chunk.span for chunk in corpus if touches(chunk.span, question.references)]
    reached = length(union(overlaps(touching, question.references)))
    needed = length(union([*touching, *uncovered_spans(question.references, touching)]))
    return Scores(
        recall=covered / wanted if wanted else 0.0,
        precision=covered / taken if taken else 0.0,
        omega=reached / needed if needed else 0.0,
        iou=covered / (taken + missed) if taken + missed else 0.0,
    )


def length(spans: Iterable[Span]) -> int:
    """Return the total length of the spans; overlaps count each time."""
    return sum(end - start for start, end in spans)


def union(spans: Iterable[Span]) -> list[Span]:
    """Merge overlapping spans; the result is ascending."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def touches(span: Span, others: Iterable[Span]) -> bool:
    """Return whether the span meets another one, even in a single point, as in the paper's code."""
    return any(max(span[0], start) <= min(span[1], end) for start, end in others)


def overlaps(spans: Iterable[Span], others: Sequence[Span]) -> list[Span]:
    """Return the intersections of each span with each of the others."""
    common = [(max(a, c), min(b, d)) for a, b in spans for c, d in others]
    return [(start, end) for start, end in common if start < end]


def uncovered_spans(references: Iterable[Span], spans: Iterable[Span]) -> list[Span]:
    """Return the parts of the references that no span covers."""
    left: list[Span] = []
    cover = union(spans)
    for start, end in references:
        at = start
        for low, high in cover:
            if high <= at or low >= end:
                continue
            if low > at:
                left.append((at, low))
            at = max(at, high)
        if at < end:
            left.append((at, end))
    return left


def uncovered(references: Iterable[Span], spans: Iterable[Span]) -> int:
    """Return the number of characters of the references that no span covers."""
    return length(uncovered_spans(references, spans))
