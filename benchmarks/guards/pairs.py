"""Labelled pairs of questions from the data sets in `RAG_TEST_DATA`, each set split into two parts.

Two thirds are for calibration; the rest is used only to report figures. A hash of the group of a question (a paragraph,
an intent, or a cluster of pairs that share questions) selects the part, so that no question is in both.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.guards.rewordings import rewordings
from benchmarks.quality.retrieval import Question, Task, by_rank, rank, table_of
from rag_serving.cache.evidence_record import Evidence
from rag_serving.cache.normalization import normalise

SEED = "guards-1"
PARTS = ("tune", "report")
LEAST = 0.7
"""Pairs of different questions below this cosine are dropped; no threshold here would serve them."""
KEPT = 8
"""Passages kept per question."""

DISPUTED = Path(__file__).with_name("disputed.txt")
"""Digests of pairs with different intents but the same meaning, found by reading all pairs above a cosine of 0.885.

"How long do transfers take?" has one intent or another, by chance. The pairs were read before any model judged them.
"""

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Two questions, and whether an answer to one also answers the other."""

    set: str
    part: str
    asked: str
    cached: str
    same: bool
    similarity: float = 0.0
    asked_evidence: tuple[Evidence, ...] | None = None
    cached_evidence: tuple[Evidence, ...] | None = None


def part_of(cluster: str) -> str:
    """Return the part that a cluster of questions belongs to."""
    digest = hashlib.sha256(f"{SEED}/{cluster}".encode()).digest()
    return PARTS[int.from_bytes(digest[:4], "big") % 3 == 2]


def clusters(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map every question to a representative of its cluster: the questions connected by pairs."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for one, other in pairs:
        parent[root(one)] = root(other)
    return {text: root(text) for text in list(parent)}


def entailed(folder: Path, embed: Embed) -> list[Labelled]:
    """Read RQE: clinical questions with a shorter one that they entail or a random one, without identical pairs."""
    root = ET.parse(folder / "RQE_Train_8588_AMIA2016.xml").getroot()  # noqa: S314  # a trusted data set
    rows = [
        (_text(pair, "chq"), _text(pair, "faq"), pair.get("value") == "true")
        for pair in root.iter("pair")
        if normalise(_text(pair, "chq")) != normalise(_text(pair, "faq"))
    ]
    # Random pairs do not connect clusters, or there would be only one; they are kept if both sides are in one part.
    joined = clusters([(asked, cached) for asked, cached, same in rows if same])

    def home(text: str) -> str:
        return joined.get(text, text)

    return _embedded(
        [
            Labelled("RQE", part_of(home(asked)), asked, cached, same)
            for asked, cached, same in rows
            if same or part_of(home(asked)) == part_of(home(cached))
        ],
        embed,
    )


def intents(name: str, questions: Sequence[tuple[str, str]], embed: Embed) -> list[Labelled]:
    """Return the most similar pairs of questions with different intents in one part; by label, never duplicates."""
    found: list[Labelled] = []
    for part in PARTS:
        some = sorted({(text, intent) for text, intent in questions if part_of(f"{name}/{intent}") == part})
        texts = [text for text, _ in some]
        labels = np.unique([intent for _, intent in some], return_inverse=True)[1]
        vectors = embed(texts)
        for row in range(1, len(some)):
            cosines = vectors[:row] @ vectors[row]
            cosines[labels[:row] == labels[row]] = -1.0
            found += [
                Labelled(name, part, texts[row], texts[other], False, float(cosines[other]))
                for other in np.flatnonzero(cosines >= LEAST)
                if normalise(texts[row]) != normalise(texts[other])  # skip a text with two labels
            ]
    return matched(found)


def disputed(pairs: Sequence[Labelled]) -> list[bool]:
    """Return, for each pair, whether its label is disputed."""
    known = set(DISPUTED.read_text("ascii").split())
    digests = ("\0".join(sorted((pair.asked, pair.cached))).encode() for pair in pairs)
    return [hashlib.sha256(digest).hexdigest()[:16] in known for digest in digests]


def matched(pairs: Iterable[Labelled]) -> list[Labelled]:
    """Return pairs, the most similar first, without repeating a question: error bounds assume independent trials."""
    used: set[str] = set()
    found: list[Labelled] = []
    for pair in sorted(pairs, key=lambda pair: (-pair.similarity, pair.asked, pair.cached)):
        if pair.asked not in used and pair.cached not in used:
            used |= {pair.asked, pair.cached}
            found.append(pair)
    return found


def read_banking(folder: Path) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for file in ("train.csv", "test.csv"):
        with (folder / file).open(encoding="utf-8", newline="") as lines:
            rows += [(row["text"], row["category"]) for row in csv.DictReader(lines)]
    return rows


def read_clinc(folder: Path) -> list[tuple[str, str]]:
    data = json.loads((folder / "data_full.json").read_text("utf-8"))
    return [(text, intent) for part in ("train", "val", "test") for text, intent in data[part]]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph, and its questions with the answers marked in it; no answers if it does not answer the question."""

    name: str
    text: str
    questions: tuple[tuple[str, frozenset[str]], ...]


def read_paragraphs(folder: Path) -> list[Paragraph]:
    return [
        Paragraph(
            f"{article['title']}/{number}",
            paragraph["context"],
            tuple(
                (qa["question"].strip(), frozenset(a["text"].casefold().strip(" .") for a in qa["answers"]))
                for qa in paragraph["qas"]
            ),
        )
        for article in json.loads((folder / "dev-v2.0.json").read_text("utf-8"))["data"]
        for number, paragraph in enumerate(article["paragraphs"])
    ]


def on_paragraphs(paragraphs: Sequence[Paragraph], embed: Embed) -> list[Labelled]:
    """Return pairs of SQuAD: different questions on one or on two paragraphs, and paraphrases.

    Two questions that the paragraph does not answer are skipped, because it is unknown whether they mean the same.
    """
    found: list[Labelled] = []
    for paragraph in paragraphs:
        part = part_of(paragraph.name)
        for place, (asked, answers) in enumerate(paragraph.questions):
            for cached, others in paragraph.questions[:place]:
                if (answers or others) and not _alike(answers, others) and normalise(asked) != normalise(cached):
                    found.append(Labelled("SQuAD, one paragraph", part, asked, cached, False))
            if answers:
                found += [Labelled("SQuAD, reworded", part, new, asked, True) for new in rewordings(asked)]
    for part in PARTS:
        some = [(p.name, text, a) for p in paragraphs if part_of(p.name) == part for text, a in p.questions if a]
        vectors = embed([text for _, text, _ in some])
        homes = np.unique([name for name, _, _ in some], return_inverse=True)[1]
        for row, (_, asked, answers) in enumerate(some):
            cosines = vectors @ vectors[row]
            cosines[homes == homes[row]] = -1.0
            nearest = int(np.argmax(cosines))
            if not _alike(answers, some[nearest][2]) and normalise(asked) != normalise(some[nearest][1]):
                found.append(Labelled("SQuAD, two paragraphs", part, asked, some[nearest][1], False))
    embedded = [pair for pair in _embedded(found, embed) if pair.same or pair.similarity >= LEAST]
    sets = dict.fromkeys((pair.set, pair.part) for pair in embedded if not pair.same)
    different = [[pair for pair in embedded if not pair.same and (pair.set, pair.part) == which] for which in sets]
    return [pair for pair in embedded if pair.same] + [pair for some in different for pair in matched(some)]


def retrieve(
    pairs: Sequence[Labelled], paragraphs: Sequence[Paragraph], embed: Embed, fingerprint: str
) -> list[Labelled]:
    """Return the pairs with the passages that both questions retrieve from the paragraphs, searched as in serving."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.asked, pair.cached)))
    task = Task("SQuAD", {p.name: p.text for p in paragraphs}, [Question(text, text, {}) for text in texts])
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as lake:
        table, target = table_of(lake, task, embed(list(task.passages.values())), fingerprint)
        ranked = rank(table, target, task.questions, embed(texts))
    found: dict[str, tuple[Evidence, ...]] = {}
    for one in ranked:
        scores = dict(one.vector)
        best = by_rank(one, candidates=30, constant=60)[:KEPT]
        found[one.question.text] = tuple(Evidence(name, name, scores.get(name)) for name in best)
    return [replace(pair, asked_evidence=found[pair.asked], cached_evidence=found[pair.cached]) for pair in pairs]


def _embedded(pairs: Sequence[Labelled], embed: Embed) -> list[Labelled]:
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.asked, pair.cached)))
    vectors = dict(zip(texts, embed(texts), strict=True))
    return [replace(pair, similarity=float(vectors[pair.asked] @ vectors[pair.cached])) for pair in pairs]


def _alike(answers: frozenset[str], others: frozenset[str]) -> bool:
    """Return whether an answer to one contains an answer to the other."""
    return any(one in other or other in one for one in answers for other in others)


def _text(pair: Any, tag: str) -> str:
    return " ".join((pair.findtext(tag) or "").split())
