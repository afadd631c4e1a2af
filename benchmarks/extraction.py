"""Extract every file of the test data: what is read, what is rejected and why, and how accurate the text is.

The pipeline's limited parser processes read the files, because some of them are built to crash or hang a parser. The
ground truth is the Markdown next to the sources of one folder. Similarity is the F1 of words and of pairs of adjacent
words, counting repetitions and ignoring case and markup. It shows lost or invented words, but not whether blocks are
correct.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.reporting import arguments, show
from rag_assets.extraction.errors import ExtractionError
from rag_assets.extraction.sandbox.pool import ParserLimits, ParserPool

GRADED = "mixed-docling"
NOT_DOCUMENTS = frozenset({"SOURCE.txt", "files.json"})
SAMPLE_OF_QUICK = 15

_WORD = re.compile(r"[^\W_]+")
_MARKUP = re.compile(r"<!--.*?-->|<[^>]{1,200}>|&[a-z]+;|!?\[([^\]]*)\]\([^)]*\)", re.DOTALL)
# Scripts without spaces between words are compared by character.
_UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u9fff])")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The texts of one file, or the reason why it was rejected."""

    reason: str
    texts: tuple[str, ...] = ()
    refused_parts: int = 0
    detail: str = ""
    seconds: float = 0.0


def read_all(paths: Iterable[Path], pool: ParserPool) -> Iterator[tuple[Path, Outcome]]:
    """Read each file as the pipeline does."""
    for path in paths:
        data = path.read_bytes()
        started = time.perf_counter()
        try:
            reading = pool.read(data, path.name)
            texts = tuple(part.document.text for part in reading.parts)
            outcome = Outcome("text", texts, len(reading.refused), "", time.perf_counter() - started)
        except ExtractionError as error:
            outcome = Outcome(str(error.reason), (), 0, error.detail, time.perf_counter() - started)
        yield path, outcome


def likeness(text: str, truth: str) -> tuple[float, float]:
    """Return the F1 of words, and of pairs of adjacent words."""
    found, expected = _words(text), _words(truth)
    return _f1(Counter(found), Counter(expected)), _f1(_pairs(found), _pairs(expected))


def _words(text: str) -> list[str]:
    plain = _UNSPACED.sub(r" \1 ", _MARKUP.sub(r" \1 ", text.replace("\\_", "_").replace("\\", "")))
    return _WORD.findall(plain.casefold())


def _pairs(words: list[str]) -> Counter[Any]:
    return Counter(pairwise(words))


def _f1(found: Counter[Any], expected: Counter[Any]) -> float:
    total = found.total() + expected.total()
    return 2 * (found & expected).total() / total if total else 1.0


def documents(root: Path, *, quick: bool) -> list[Path]:
    """Return the files to read; with `quick`, a few of each folder."""
    by_folder: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.is_file() and path.name not in NOT_DOCUMENTS and "groundtruth" not in inside.parts:
            by_folder[inside.parts[0]].append(path)
    return [
        path
        for paths in by_folder.values()
        for path in (paths[:: 1 + len(paths) // SAMPLE_OF_QUICK] if quick else paths)
    ]


def truth_of(path: Path) -> Path:
    """Return the path of a source's ground truth, which may not exist."""
    truths = path.parent.parent / "groundtruth"
    exact = truths / f"{path.name}.md"
    return exact if exact.is_file() else truths / f"{path.stem}.md"


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = arguments(__doc__ or "")
    options = parser.parse_args()
    data = os.environ.get("RAG_TEST_DATA")
    root = Path(data or ".", "files")
    if data is None or not root.is_dir():
        print("nothing to read: set RAG_TEST_DATA to a folder that contains files/")
        return
    outcomes: dict[str, list[tuple[Path, Outcome]]] = defaultdict(list)
    grades: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    pool = ParserPool(ParserLimits(), 1)
    for path, outcome in read_all(documents(root, quick=options.quick), pool):
        folder = path.relative_to(root).parts[0]
        outcomes[folder].append((path, outcome))
        truth = truth_of(path)
        if folder == GRADED and outcome.texts and truth.is_file():
            words, pairs = likeness("\n".join(outcome.texts), truth.read_text(encoding="utf-8"))
            grades[path.relative_to(root / folder).parts[0]].append((words, pairs, path.name))
    pool.close()
    reasons = sorted({outcome.reason for found in outcomes.values() for _, outcome in found})
    rows = [
        {
            "folder": folder,
            "files": len(found),
            **{reason: sum(outcome.reason == reason for _, outcome in found) for reason in reasons},
            "seconds": round(sum(outcome.seconds for _, outcome in found), 1),
            "slowest s": round(max(outcome.seconds for _, outcome in found), 1),
        }
        for folder, found in outcomes.items()
    ]
    graded = [
        {
            "format": name,
            "files": len(found),
            "word F1, median": round(statistics.median(words for words, _, _ in found), 3),
            "word F1, worst": round(min(words for words, _, _ in found), 3),
            "pair F1, median": round(statistics.median(pairs for _, pairs, _ in found), 3),
            "pair F1, worst": round(min(pairs for _, pairs, _ in found), 3),
            "worst file": min((pairs, name) for _, pairs, name in found)[1],
        }
        for name, found in sorted(grades.items())
    ]
    each = [
        {
            "file": str(path.relative_to(root)),
            "outcome": outcome.reason,
            "detail": outcome.detail,
            "characters": sum(map(len, outcome.texts)),
            "refused_parts": outcome.refused_parts,
            "seconds": round(outcome.seconds, 3),
        }
        for found in outcomes.values()
        for path, outcome in found
    ]
    if graded:
        show(f"similarity to the ground truth of {GRADED}", graded, None)
    show("extraction by folder and outcome", rows, options.json, likeness=graded, grades=grades, files=each)
    print(f"{sum(map(len, outcomes.values()))} files, {pool.started} parser processes started")


if __name__ == "__main__":
    main()
