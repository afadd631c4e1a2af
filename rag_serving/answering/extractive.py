"""Answers without a language model: sentences extracted from the passages."""

import re
from collections.abc import Sequence

from rag_serving.answering.citations import citations_of
from rag_serving.answering.evidence_floor import long_words
from rag_serving.answering.marks import MODEL_UNAVAILABLE
from rag_serving.answering.prompts import NOT_FOUND
from rag_serving.lake.embedders.base import Embedder
from rag_serving.results import Answer, Hit

_EXTRACT_NOTE = "Quoted from the documents (no language model is configured):"
_DEGRADED_NOTE = "Quoted from the documents (the language model did not answer):"
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\w\"'(*])|(?<=[。！？])")
_ITEM = re.compile(r"\s*(?:[-*+]\s|[>|]|\d+[.)]\s)")
_MARKUP = re.compile(r"^\s*(?:[-*+]\s+|\d+[.)]\s+|>\s*)|\*\*|__|`")
_DANGLING = re.compile(r"[,;](?:\s+(?:and|or|und|oder|og|eller|et|ou|y|o|e))?$|[，；、]$")
"""What joins a list item to the next one, and looks cut off without it."""
_RULE = re.compile(r"^[\s|:=*#~`_-]+$")


def extract(
    embedder: Embedder,
    question: str,
    hits: Sequence[Hit],
    *,
    sentences: int = 2,
    degraded: tuple[str, ...] = (),
) -> Answer:
    """Return the sentences of the best passages that are most similar to the question, quoted verbatim."""
    if not hits:
        return not_found(question, degraded=degraded)
    candidates = [
        (number, sentence) for number, hit in enumerate(hits[:4], start=1) for sentence in split_sentences(hit.text)
    ][:64]
    if not candidates:
        candidates = [(1, hits[0].text.strip())]
    cosines = embedder.embed_documents([sentence for _, sentence in candidates]) @ embedder.embed_query(question)
    asked = long_words(question)
    shared = [len(asked & long_words(sentence)) / max(len(asked), 1) for _, sentence in candidates]
    # Shared words separate sentences of one topic; the passage's rank breaks near ties.
    scores = [
        float(cosine) + 0.5 * common - 0.02 * number
        for cosine, common, (number, _) in zip(cosines, shared, candidates, strict=True)
    ]
    order = sorted(range(len(candidates)), key=lambda row: scores[row], reverse=True)
    chosen: list[tuple[int, str]] = []
    for row in order:
        if candidates[row][1] not in (sentence for _, sentence in chosen):
            chosen.append(candidates[row])
        if len(chosen) == sentences:
            break
    note = _DEGRADED_NOTE if MODEL_UNAVAILABLE in degraded else _EXTRACT_NOTE
    text = note + " " + " … ".join(f"“{sentence}” [{number}]" for number, sentence in chosen)
    cited = {number for number, _ in chosen}
    return Answer(
        question=question,
        text=text,
        citations=citations_of(hits, [hit for number, hit in enumerate(hits, start=1) if number in cited]),
        kind="extract",
        model=None,
        degraded=degraded,
    )


def not_found(question: str, *, degraded: tuple[str, ...] = ()) -> Answer:
    """Return the answer for a question that the documents do not answer."""
    return Answer(question=question, text=NOT_FOUND, citations=(), kind="none", model=None, degraded=degraded)


def split_sentences(text: str) -> list[str]:
    """Return the sentences, list items and table rows of a passage without markup, headings and rules."""
    units: list[str] = []
    joins = False
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#") or _RULE.match(line):
            joins = False
            continue
        # Any line that starts no item continues the one before, because paragraphs are often wrapped in the source.
        if joins and not _ITEM.match(line):
            units[-1] += " " + line.strip()
        else:
            units.append(line)
        joins = "|" not in line
    found: list[str] = []
    for unit in units:
        for part in _SENTENCE.split(_MARKUP.sub("", unit)):
            sentence = " ".join(part.split()).strip("| ")
            if _ITEM.match(unit):
                sentence = _DANGLING.sub("", sentence)
            if len(sentence) >= 8:
                found.append(sentence)
    return found
