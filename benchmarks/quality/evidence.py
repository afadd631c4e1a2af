"""Find the cosine below which evidence is too weak to answer, from questions with and without an answer.

SQuAD's paragraphs are searched with SQuAD's own questions, and with questions to assistants and banks (CLINC150,
BANKING77), which no paragraph answers. A hash splits the questions in halves. The floor is chosen on one half, as the
highest that refuses at most a given share of the answerable questions, and reported on the other.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.ingest import export
from benchmarks.quality.retrieval import QUICK, VectorCache, read_squad
from benchmarks.reporting import arguments, show

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TOP = 8
MOST_OF_A_SET = 2_000


def read_others(folder: Path) -> dict[str, list[str]]:
    """Read the questions that no paragraph answers, by data set."""
    clinc = json.loads((folder / "clinc150" / "data_full.json").read_text("utf-8"))["test"]
    with (folder / "banking77" / "test.csv").open(encoding="utf-8", newline="") as file:
        banking = [row["text"] for row in csv.DictReader(file)]
    return {"CLINC150": [text for text, _ in clinc], "BANKING77": banking}


def tuning(question: str) -> bool:
    """Return whether the question belongs to the half on which the floor is chosen."""
    return hashlib.sha256(question.encode()).digest()[0] % 2 == 1


def some(questions: Sequence[str]) -> list[str]:
    """Return at most `MOST_OF_A_SET` of the questions, selected by a hash."""
    return sorted(questions, key=lambda text: hashlib.sha256(text.encode()).digest())[:MOST_OF_A_SET]


def highest_cosines(
    questions: Sequence[str],
    vectors: npt.NDArray[np.float32],
    passages: Sequence[str],
    passage_vectors: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """Return the cosine of each question with its nearest passage, or 2 if a passage contains half of its words."""
    import numpy as np

    from rag_serving.answering.evidence_floor import shares_words

    cosines = vectors @ passage_vectors.T
    best = np.argsort(-cosines, axis=1)[:, :TOP]
    return np.array(
        [
            2.0 if shares_words(question, [passages[row] for row in rows]) else float(cosines[number, rows[0]])
            for number, (question, rows) in enumerate(zip(questions, best, strict=True))
        ]
    )


def main(argv: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--refused",
        type=float,
        default=0.005,
        help="share of answerable questions that may be refused (default %(default)s)",
    )
    options = parser.parse_args(argv)
    data = os.environ.get("RAG_TEST_DATA")
    if not data:
        parser.error("needs the test data: set RAG_TEST_DATA to a folder that contains eval/")
    import numpy as np

    from rag_assets.models.registry import warm_embedder
    from rag_assets.options import PACKAGED_MODEL

    task = read_squad(Path(data, "eval", "squad"), QUICK if options.quick else None)
    sets = {"SQuAD": [question.text for question in task.questions], **read_others(Path(data, "eval"))}
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as lake:
        export(lake)
        cache = VectorCache(warm_embedder(lake, PACKAGED_MODEL), None)
        passages = list(task.passages.values())
        passage_vectors = cache.documents(passages)
        cosines: dict[tuple[str, bool], npt.NDArray[np.float64]] = {}
        for name, questions in sets.items():
            chosen = some(questions)
            found = highest_cosines(chosen, cache.questions(chosen), passages, passage_vectors)
            for part in (True, False):
                cosines[name, part] = found[[tuning(question) == part for question in chosen]]
    floor = float(np.floor(np.quantile(cosines["SQuAD", True], options.refused) * 100) / 100)
    rows: list[dict[str, object]] = [
        {
            "questions": name,
            "answerable": "yes" if name == "SQuAD" else "no",
            "count": len(cosines[name, False]),
            **{f"refused at {at:.2f}": float(np.mean(cosines[name, False] < at)) for at in (0.2, floor, 0.4)},
        }
        for name in sets
    ]
    show(
        f"weak evidence, reporting halves; floor chosen on the tuning halves: {floor:.2f}",
        rows,
        options.json,
        floor=floor,
    )
