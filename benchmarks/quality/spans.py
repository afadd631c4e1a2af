"""The measures of Chroma's "Evaluating Chunking Strategies for Retrieval" (2024), on spans of characters.

A question has references, the spans of a corpus that answer it. Of the chunks that are retrieved for it, recall is the
part of the references that they cover, precision the part of their characters that is reference, IoU the ratio of the
covered characters to all characters retrieved, repeated ones each time, with the references missed. Precision-omega is
the precision if all chunks that touch a reference were retrieved and no other: what the cuts alone allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of one corpus; `embedded` is what the model is given for it."""

    corpus: str
    start: int
    end: int
    embedded: str

    @property
    def span(self) -> Span:
        return self.start, self.end


@dataclass(frozen=True, slots=True)
class Question:
    """A question to one corpus, and the spans that answer it."""

    text: str
    corpus: str
    references: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one question, each between 0 and 1."""

    recall: float
    precision: float
    omega: float
    iou: float


def score(question: Question, retrieved: Sequence[Chunk], corpus: Iterable[Chunk]) -> Scores:
    """The scores of what was retrieved; `corpus` holds all chunks of the question's corpus."""
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
    """Characters of the spans, of one that overlaps another too."""
    return sum(end - start for start, end in spans)


def union(spans: Iterable[Span]) -> list[Span]:
    """The spans without what they have in common, ascending."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def touches(span: Span, others: Iterable[Span]) -> bool:
    """Whether they meet, be it in one point: so the paper's code has it."""
    return any(max(span[0], start) <= min(span[1], end) for start, end in others)


def overlaps(spans: Iterable[Span], others: Sequence[Span]) -> list[Span]:
    """What each of the spans has in common with each of the others."""
    common = [(max(a, c), min(b, d)) for a, b in spans for c, d in others]
    return [(start, end) for start, end in common if start < end]


def uncovered_spans(references: Iterable[Span], spans: Iterable[Span]) -> list[Span]:
    """What of the references lies in none of the spans."""
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
    """Characters of the references that lie in none of the spans."""
    return length(uncovered_spans(references, spans))
