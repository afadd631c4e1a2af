"""Questions that every shard can be asked: for some of its own documents, by title, by file name and by a code in them.

They guard a shard without golden questions: an index or an embedder that does not fit the rows finds nothing.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rag_assets.evaluation.index_recall import CUTOFF
from rag_assets.evaluation.ranking import rankings
from rag_assets.storage.lake import Table
from rag_serving.lake.embedders.base import Embedder
from rag_serving.lake.search.plan import Target

MOST_OF_A_KIND = 3
_SAMPLED_ROWS = 64
_CODE = re.compile(r"(?<![\w./-])(?=\w*\d)(?=\w*[A-Za-z])\w{4,20}(?![\w/-])")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class KnownItem:
    """A question, and whether a row answers it."""

    question: str
    answers: Callable[[Row], bool]


def missed_items(lake_uri: str, table: Table, target: Target, embedder: Embedder) -> tuple[int, tuple[str, ...]]:
    """Return the number of questions asked, and those without an answer among the first ten of a hybrid search.

    Raises `LakeUnavailable` if the version cannot be searched.
    """
    items = draw(table)
    if not items:
        return 0, ()
    vectors = embedder.embed_queries([item.question for item in items])
    questions = [(item.question, vector) for item, vector in zip(items, vectors, strict=True)]
    missed = tuple(
        item.question
        for item, found in zip(items, rankings(lake_uri, target, questions), strict=True)
        if not any(item.answers(dict(candidate.row)) for candidate in found["hybrid"][:CUTOFF])
    )
    return len(items), missed


def draw(table: Table) -> list[KnownItem]:
    """Return questions about a sample of the table's rows; the same for the same version."""
    rows = table.count_rows()
    count = min(_SAMPLED_ROWS, rows)
    offsets = [rows * number // count for number in range(count)]
    if not offsets:
        return []
    names = ["doc_id", "title", "path", "text"]
    sample: list[Row] = table.take_offsets(offsets).select(names).to_arrow().to_pylist()
    documents = list({row["doc_id"]: row for row in sample}.values())
    kinds = (_titles(documents), _names(documents), _codes(documents))
    return [item for kind in kinds for item in islice(kind, MOST_OF_A_KIND)]


def _titles(documents: list[Row]) -> Iterator[KnownItem]:
    for title in dict.fromkeys(str(row["title"]) for row in documents):
        if len(title.split()) > 1:
            yield KnownItem(title, lambda row, title=title: row["title"] == title)


def _names(documents: list[Row]) -> Iterator[KnownItem]:
    for name in dict.fromkeys(_file_name(row) for row in documents):
        if len(re.findall(r"\w+", name)) > 2:  # with the extension
            yield KnownItem(name, lambda row, name=name: _file_name(row) == name)


def _file_name(row: Row) -> str:
    return str(row["path"]).rpartition("/")[2].partition("#")[0]


def _codes(documents: list[Row]) -> Iterator[KnownItem]:
    found = (code[0] for row in documents if (code := _CODE.search(row["text"])) is not None)
    for code in dict.fromkeys(found):
        yield KnownItem(code, lambda row, code=code: code in row["text"])
