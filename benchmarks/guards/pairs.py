"""Labelled pairs of questions from the sets that `RAG_TEST_DATA` holds, each set cut into two parts.

Two thirds are for calibration; the rest is used only to report figures. The cut is by a hash of what a question belongs
to (a paragraph, an intent, a cluster of pairs with a question in common), so that no question is in both parts.
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
from rag_serving.cache.entries import normalise
from rag_serving.cache.evidence_record import Evidence

SEED = "guards-1"
PARTS = ("tune", "report")
LEAST = 0.7
"""Pairs of different questions below this cosine are not looked at: no threshold here would serve them."""
KEPT = 8
"""Passages that are kept of each question."""

DISPUTED = Path(__file__).with_name("disputed.txt")
"""Digests of pairs of two intents that ask the same all the same, by one reading of all above a cosine of 0.885.

"How long do transfers take?" is one intent or another, by chance. They were read before any model had judged them.
"""

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Two questions, and whether the answer to one answers the other."""

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
    """Map every question to one of its cluster: all questions that a chain of pairs joins."""
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
    """RQE: clinical questions and shorter ones that they entail, or others drawn at random; equal ones left out."""
    root = ET.parse(folder / "RQE_Train_8588_AMIA2016.xml").getroot()  # noqa: S314  # a set of our own choice
    rows = [
        (_text(pair, "chq"), _text(pair, "faq"), pair.get("value") == "true")
        for pair in root.iter("pair")
        if normalise(_text(pair, "chq")) != normalise(_text(pair, "faq"))
    ]
    # A question drawn at random joins no clusters, else all were one; such a pair goes where its first question is.
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
    """Questions of two intents of one part, the most similar ones: never duplicates, by their labels."""
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
                if normalise(texts[row]) != normalise(texts[other])  # one text with two labels is no pair
            ]
    return matched(found)


def disputed(pairs: Sequence[Labelled]) -> list[bool]:
    """Whether each pair is one of those whose label nobody should be held to."""
    known = set(DISPUTED.read_text("ascii").split())
    digests = ("\0".join(sorted((pair.asked, pair.cached))).encode() for pair in pairs)
    return [hashlib.sha256(digest).hexdigest()[:16] in known for digest in digests]


def matched(pairs: Iterable[Labelled]) -> list[Labelled]:
    """Pairs, the most similar first, such that no question stands in two: bounds of error want independent trials."""
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
    """A paragraph, and its questions with the answers that were marked in it, none where it has no answer."""

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
    """SQuAD: questions on one paragraph with different answers, on different ones, and rewordings of its questions.

    Two questions that the paragraph does not answer are left out: nobody knows whether they are one.
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
    """The pairs with the passages that both questions find among all paragraphs, searched as serving searches."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.asked, pair.cached)))
    task = Task("SQuAD", {p.name: p.text for p in paragraphs}, [Question(text, text, {}) for text in texts])
    from rag_assets.storage.search_indexes import index_text

    with tempfile.TemporaryDirectory(prefix="rag-bench-") as lake:
        table = table_of(lake, task, embed(list(task.passages.values())), fingerprint, index_text)
        ranked = rank(table, task.questions, embed(texts))
    found: dict[str, tuple[Evidence, ...]] = {}
    for one in ranked:
        scores = dict(one.vector)
        best = by_rank(one, candidates=30, constant=60)[:KEPT]
        found[one.question.text] = tuple(Evidence(name, name, scores.get(name)) for name in best)
    return [_with(pair, found[pair.asked], found[pair.cached]) for pair in pairs]


def _with(pair: Labelled, asked: tuple[Evidence, ...], cached: tuple[Evidence, ...]) -> Labelled:
    return replace(pair, asked_evidence=asked, cached_evidence=cached)


def _embedded(pairs: Sequence[Labelled], embed: Embed) -> list[Labelled]:
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.asked, pair.cached)))
    vectors = dict(zip(texts, embed(texts), strict=True))
    return [replace(pair, similarity=float(vectors[pair.asked] @ vectors[pair.cached])) for pair in pairs]


def _alike(answers: frozenset[str], others: frozenset[str]) -> bool:
    """Whether an answer to one stands in an answer to the other."""
    return any(one in other or other in one for one in answers for other in others)


def _text(pair: Any, tag: str) -> str:
    return " ".join((pair.findtext(tag) or "").split())
