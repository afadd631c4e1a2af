"""Ask the sample corpus questions without a language model, and count the extracts that contain the answer.

The questions with an answer are those of examples/questions.jsonl and `extracts.jsonl`; those without one are in
`extracts.jsonl`. A hash of each divides them into a tuning and a reporting half. An extract contains the answer if it
has the words of the expected quote in their order.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.lakes import build
from benchmarks.reporting import arguments, show

ROOT = Path(__file__).parents[2]
SEED = "x19"
"""Selects the halves as they were when the weights of extracts were chosen on the tuning half."""
_WORD = re.compile(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+")


def read_questions(half: str) -> list[dict[str, Any]]:
    """Return the questions of a half; those without an answer have no quote."""
    corpus = ROOT / "examples"
    rows: list[dict[str, Any]] = []
    for file in (corpus / "questions.jsonl", Path(__file__).with_name("extracts.jsonl")):
        rows += map(json.loads, file.read_text("utf-8").splitlines())
    for file in sorted(corpus.glob("corpus/*/*/_eval/questions.jsonl")):
        scope = {"regions": [file.parts[-4]], "departments": [file.parts[-3]]}
        rows += [{**json.loads(line), **scope} for line in file.read_text("utf-8").splitlines()]
    return [row for row in rows if "quote" in row and half_of(row["question"]) == half]


def half_of(question: str) -> str:
    """Return the half to which a question belongs."""
    return ("tuning", "reporting")[hashlib.sha256(f"{SEED}{question}".encode()).digest()[0] % 2]


def contains(text: str, quote: str) -> bool:
    """Return whether a text has the words of a quote in their order."""
    words = iter(_WORD.findall(text.casefold()))
    return all(word in words for word in _WORD.findall(quote.casefold()))


def main(argv: Sequence[str]) -> None:
    """Index the sample corpus, ask the questions and print the counts."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--lake", help="a lake that has the sample corpus already")
    parser.add_argument("--half", choices=["tuning", "reporting"], default="reporting")
    parser.add_argument("--texts", action="store_true", help="also print the extracts that are wrong")
    options = parser.parse_args(argv)
    from rag_serving import AsyncRagClient, RagClient
    from rag_serving.settings import ServingSettings

    counts: dict[str, Counter[str]] = {"with an answer": Counter(), "without an answer": Counter()}
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as scratch:
        if not options.lake:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(build, str(ROOT / "examples" / "corpus"), scratch).result()
        values = {"lake_uri": options.lake or scratch, "llm_model": None, "cache_mode": "off"}
        settings = ServingSettings.from_env().model_copy(update=values)
        with RagClient(lambda: AsyncRagClient(settings)) as client:
            for row in read_questions(options.half)[: 10 if options.quick else None]:
                answer = client.ask(row["question"], regions=row.get("regions"), departments=row.get("departments"))
                counted = counts["with an answer" if row["quote"] else "without an answer"]
                right = contains(answer.text, row["quote"]) if row["quote"] else answer.kind == "none"
                counted["questions"] += 1
                counted["quoted as the answer"] += answer.kind == "extract"
                counted["quoted as nearest"] += answer.kind == "none" and bool(answer.quotes)
                counted["contain the answer"] += bool(row["quote"]) and right
                if options.texts and not right:
                    print(f"{row['question']} | {row['quote']}\n{answer.text}\n")
    show(
        f"extracts, {options.half} half",
        [
            {
                "kind": f"questions {name}",
                "count": counted["questions"],
                **{key: counted[key] for key in ("contain the answer", "quoted as the answer", "quoted as nearest")},
            }
            for name, counted in counts.items()
        ],
        options.json,
    )
